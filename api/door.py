"""The door of one API process: open until the server is about to end, and it knows who is inside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from errors import Draining


class Door:
    """Used from one event loop only."""

    def __init__(self) -> None:
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def is_open(self) -> bool:
        return self._open

    def close(self) -> None:
        """Let nobody in any more."""
        self._open = False

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
