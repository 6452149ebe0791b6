"""How many bytes the requests in flight may hold in this process: bodies that are being read, then audio in the spool.

A request reserves what it holds from its first byte to its end. What does not fit is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable

from errors import Overloaded


class Room:
    """One for an API process; used from its event loop only. `retry_after_s` tells when there may be room again."""

    def __init__(self, max_bytes: int, retry_after_s: Callable[[], int]) -> None:
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._held = 0

    def reserve(self) -> Reservation:
        return Reservation(self)

    def change(self, by: int) -> None:
        """Raises `Overloaded` instead of growing over the limit."""
        if by > 0 and self._held + by > self._max_bytes:
            raise Overloaded("Too much audio is waiting. Try again later.", retry_after_s=self._retry_after_s())
        self._held += by


class Reservation:
    """What one request holds, in bytes."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    def hold(self, size: int) -> None:
        """Hold so much from now on, more or less than before. Raises `Overloaded`."""
        self._room.change(size - self._bytes)
        self._bytes = size

    def close(self) -> None:
        self.hold(0)
