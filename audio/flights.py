"""Fetches that are under way, each shared by all who ask for the same: one download, whoever many wait for it.

The one who asked first is nobody special: a fetch goes on while anybody waits, and ends when the last has left. This
file knows files and tasks, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from audio.spool import Spool, SpoolFiles

Fetch = Callable[[SpoolFiles], Coroutine[Any, Any, str]]


class Flights:
    """From one event loop."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._by_key: dict[str, _Flight] = {}
        self._tasks: set[asyncio.Task[str]] = set()  # also those that were cancelled and have not ended yet

    async def join(self, key: str, fetch: Fetch, files: SpoolFiles) -> str:
        """The path that `fetch` gives, linked for the caller and one of `files`. Raises what `fetch` raises.

        `fetch` is called where nobody waits for `key`, with files that live as long as somebody does.
        """
        flight = self._by_key.get(key) or self._start(key, fetch)
        flight.waiting += 1
        try:
            await asyncio.wait([flight.task])  # unlike the task itself, cancelled alone
            path = self._spool.link(flight.task.result())
            files.add(path)
            return path
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                self._end(key, flight)

    def _start(self, key: str, fetch: Fetch) -> _Flight:
        files = self._spool.files()
        flight = self._by_key[key] = _Flight(asyncio.create_task(fetch(files)), files)
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        return flight

    def _end(self, key: str, flight: _Flight) -> None:
        """The last one leaves. Who asks for `key` in this moment starts anew. Where the fetch has failed already,
        cancelling also tells asyncio that nobody will look at its error."""
        del self._by_key[key]
        flight.task.cancel()
        flight.files.close()

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Flight:
    def __init__(self, task: asyncio.Task[str], files: SpoolFiles) -> None:
        self.task = task
        self.files = files
        self.waiting = 0
