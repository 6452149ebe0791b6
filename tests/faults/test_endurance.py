"""Two thousand requests later the server is what it was: no larger, no file and no descriptor more."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import cycle, islice

import openai
import psutil
import pytest

from tests.faults.counting import Asked, ask, tally
from tests.faults.processes import run_counted
from tests.support.origin import Origin
from tests.support.speech import audio_url, input_audio, user

MB = 1_000_000
AT_ONCE = 16
WARM_UP, MEASURED = 600, 2000
GROWTH_BYTES = 16 * MB  # of one process: what an allocator may take between two looks, and far below a leak's share


@dataclass(frozen=True)
class Size:
    """Of one process."""

    resident_bytes: int
    descriptors: int


def sizes(processes: list[psutil.Process]) -> list[Size]:
    return [Size(process.memory_info().rss, process.num_fds()) for process in processes]


@pytest.mark.endurance
@pytest.mark.timeout(300)
async def test_two_thousand_requests_leave_nothing_behind(origin: Origin) -> None:
    """With audio of every kind, some of it broken or not to be had, streamed and not."""
    names = ("jfk.wav", "cv-en-no.mp3", "jfk.ogg", "jfk.m4a", "jfk.webm", "librispeech-61-70968-0000.flac")
    parts = [input_audio(name) for name in names]
    parts += [audio_url(origin.url("clip/jfk.ogg")), audio_url(origin.url("status/404"))]
    parts += [{"type": "input_audio", "input_audio": {"data": "bm8gYXVkaW8=", "format": "wav"}}]
    kinds = cycle([(user(part, "and?"), stream) for part in parts for stream in (False, True)])

    async def run(client: openai.AsyncOpenAI, count: int) -> dict[str, int]:
        running = asyncio.Semaphore(AT_ONCE)

        async def one(messages: list[dict], stream: bool) -> Asked:
            async with running:
                asked = ask(client, "", messages=messages, stream=stream)
                await asked.task
                return asked

        return await tally(await asyncio.gather(*(one(*kind) for kind in islice(kinds, count))))

    with run_counted("--allow-private-networks") as (server, processes):
        async with server.async_client() as client:
            await run(client, WARM_UP)
            tree = server.tree()
            before = sizes(tree)
            counts = await run(client, MEASURED)
            after = sizes(tree)
    assert sum(counts.values()) == MEASURED
    assert counts["ok"] > MEASURED * 7 // 10
    assert set(counts) == {"ok", "invalid_audio", "invalid_audio_url"}
    for old, new in zip(before, after, strict=True):
        assert new.resident_bytes - old.resident_bytes < GROWTH_BYTES, (before, after)
        assert new.descriptors <= old.descriptors, (before, after)
    assert processes.spooled() == []
