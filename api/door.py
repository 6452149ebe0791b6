"""The door of one API process: open until the server is about to end. It knows who is inside, and who still comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from errors import Draining


class Door:
    """Used from one event loop only."""

    def __init__(self) -> None:
        self._open = True
        self._shut = False
        self._inside = 0
        self._coming: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_open(self) -> bool:
        return self._open

    def close(self) -> None:
        """Let nobody in any more."""
        self._open = False

    def shut(self) -> None:
        """Nor let anybody in who has begun to come."""
        self._shut = True
        for timeout in self._coming:
            if not timeout.expired():
                timeout.reschedule(0)

    @asynccontextmanager
    async def coming(self, until: float) -> AsyncIterator[None]:
        """While a request arrives. Raises `TimeoutError` at `until`, of time.monotonic(), or `Draining`."""
        try:
            async with asyncio.timeout_at(0 if self._shut else until) as timeout:  # the loop's clock is the same
                self._coming.add(timeout)
                try:
                    yield
                finally:
                    self._coming.discard(timeout)
        except TimeoutError:
            if self._shut:
                raise Draining("The server ended before all of the request had arrived.") from None
            raise

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside, as long as a request lives. Raises `Draining`."""
        if not self._open:
            raise Draining("The server is about to end and takes no more requests.")
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def wait_empty(self, timeout_s: float) -> None:
        """Until everybody has left. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            await self._empty.wait()
