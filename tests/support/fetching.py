"""A fetcher with rules of a test's own, and a spool that must be empty when all is over."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import cache
from pathlib import Path

from audio.addresses import FetchRules
from audio.fetch import Fetcher
from audio.room import Room
from audio.spool import Spool, open_spool
from errors import Overloaded

LIMIT = 1_000_000
GUARD_S = 10.0


def too_much() -> Overloaded:
    return Overloaded("Too much.")


class Fetching:
    def __init__(self, fetcher: Fetcher, spool: Spool, held: Room) -> None:
        self.fetcher = fetcher
        self.held = held
        self.spool = spool

    async def get(self, url: str) -> bytes:
        """What stands there; its file is gone again."""
        with closing(self.spool.files()) as files:
            async with asyncio.timeout(GUARD_S):
                return _bytes(await self.fetcher.fetch(url, files))

    def files(self) -> list[Path]:
        return sorted(self.spool.directory.glob("*.audio"))


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes()


@cache
def _ssl_context() -> ssl.SSLContext:
    """Made once, as it takes a tenth of a second."""
    return ssl.create_default_context()


@asynccontextmanager
async def fetching(
    *, ssl_context: ssl.SSLContext | None = None, max_held: int = 100 * LIMIT, **rules: object
) -> AsyncIterator[Fetching]:
    """By default: from everywhere, `LIMIT` bytes, two redirects, and times that suit a test."""
    quick = {"max_bytes": LIMIT, "max_redirects": 2, "allow_private": True, "first_byte_s": 5.0, "pace_s": 3.0}
    with open_spool(None, 0) as spool:
        held = Room(max_held, too_much)
        fetcher = Fetcher(FetchRules(**{**quick, **rules}), spool, held, ssl_context or _ssl_context())  # type: ignore[arg-type]
        running = Fetching(fetcher, spool, held)
        try:
            yield running
            kept = len(fetcher._cache._kept)
            assert len(running.files()) == kept
            assert not fetcher._flights._by_key
            assert held.held == 0
        finally:
            await fetcher.aclose()
