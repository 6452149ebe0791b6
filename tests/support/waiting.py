"""Waiting for what another process or thread does, where it tells nobody: looked at again and again, within a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LIMIT_S = 10.0
LOOK_S = 0.01


async def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Returns once `condition()` holds; raises `TimeoutError` when it does not within a few seconds."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 -- there is no event to wait for
            await asyncio.sleep(LOOK_S)
