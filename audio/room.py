"""How many bytes those who are here may hold together: what does not fit is refused at once.

At the door, for bodies that are being read, then text and audio of requests; in a worker, for audio that is fetched and
not decoded yet.
"""

from __future__ import annotations

from collections.abc import Callable

from errors import Overloaded


class Room:
    """Used from one event loop only. `refusal` makes the error for what does not fit."""

    def __init__(self, max_bytes: int, refusal: Callable[[], Overloaded]) -> None:
        self._max_bytes = max_bytes
        self._refusal = refusal
        self.held = 0

    def reserve(self) -> Reservation:
        return Reservation(self)

    def change(self, by: int) -> None:
        """Raises `Overloaded` instead of growing over the limit."""
        if by > 0 and self.held + by > self._max_bytes:
            raise self._refusal()
        self.held += by


class Reservation:
    """What one of them holds, in bytes, until it is closed."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    def hold(self, size: int) -> None:
        """Hold so much from now on, more or less than before. Raises `Overloaded`."""
        self._room.change(size - self._bytes)
        self._bytes = size

    def add(self, size: int) -> None:
        """Hold so much more. Raises `Overloaded`."""
        self.hold(self._bytes + size)

    def close(self) -> None:
        self.hold(0)
