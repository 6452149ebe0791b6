"""The server is told to end: it finishes what it has accepted, takes nothing new, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.counting import ask, ask_about_audio, ask_many, begun, tally
from tests.faults.processes import becomes_ready, run_counted, status
from tests.support.servers import RunningServer, run_server, still_running

SLOW = "#tokens=100 #delay=0.03"


async def ended(server: RunningServer, within_s: float) -> int:
    """Its exit status."""
    return await asyncio.to_thread(server.process.wait, within_s)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to", ["main", "group"])
async def test_what_was_accepted_is_finished(number: int, to: str) -> None:
    """Streams, collected answers and what is still queued; `/ready` says 503 meanwhile, and so does the door. Also when
    every process gets the signal, as by Ctrl-C. Then nothing is left, and the status is 0."""
    with run_counted("--max-rows", "2") as (server, processes):
        all_of_it = server.tree()
        async with server.async_client() as client:
            accepted = ask_many(client, [SLOW] * 2, stream=True)
            await begun(accepted)
            queued = [ask_about_audio(client, f"#tokens=9 {i}") for i in range(8)]
            await processes.accepted(queued)
            if to == "main":
                server.process.send_signal(number)
            else:
                os.killpg(server.process.pid, number)
            await becomes_ready(server, False)
            assert [await status(server, path) for path in ("/ready", "/live")] == [503, 200]
            refused = await ask(client, "too late").task
            assert (refused.status, refused.code) == (503, "draining")
            assert await tally(accepted, queued) == {"ok": 10}
        assert await ended(server, 10) == 0
        assert still_running(all_of_it) == []
        assert await status(server, "/live") is None
        assert processes.spool_is_gone
        assert "Warning" not in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


async def test_a_worker_that_dies_meanwhile_is_started_anew() -> None:
    """What it had accepted is still owed."""
    with run_counted() as (server, processes):
        (worker,) = processes.workers()
        async with server.async_client() as client:
            accepted = [ask_about_audio(client, f"{SLOW} {i}") for i in range(3)]
            await processes.accepted(accepted)
            server.process.send_signal(signal.SIGTERM)
            await becomes_ready(server, False)
            worker.kill()
            assert await tally(accepted) == {"ok": 3}
        assert await ended(server, 10) == 0


async def test_who_takes_too_long_is_told() -> None:
    """After `--drain-timeout` a stream ends with an error, and a waiting request and an upload that had begun with a
    503; the status is still 0."""
    with run_counted("--drain-timeout", "1") as (server, processes):
        async with server.async_client() as client, half_an_upload(server) as upload:
            endless = "#tokens=100000 #delay=0.02"
            stream, waiting = ask(client, endless, stream=True), ask_about_audio(client, endless)
            await begun([stream])
            await processes.accepted([waiting])
            told_at = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                head, _, body = (await upload.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body)["error"]["code"] == "draining"
            assert await tally([stream, waiting]) == {"draining": 2}
            assert waiting.outcome.status == 503
        assert await ended(server, 10) == 0
        assert time.monotonic() - told_at < 5
        assert "completing response" not in server.log.read_text()


@asynccontextmanager
async def half_an_upload(server: RunningServer) -> AsyncIterator[asyncio.StreamReader]:
    """A request that is inside, and whose body never comes to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 100 "), "it is inside"
    await reader.readline()
    writer.write(b"{")
    yield reader
    writer.close()


async def test_a_second_signal_ends_it_at_once() -> None:
    """Whatever is running."""
    with run_counted() as (server, _):
        processes = server.tree()
        async with server.async_client() as client:
            stream = ask(client, "#tokens=100000 #delay=0.02", stream=True)
            await begun([stream])
            server.process.send_signal(signal.SIGTERM)
            await becomes_ready(server, False)
            server.process.send_signal(signal.SIGTERM)
            assert await ended(server, 2) == 128 + signal.SIGTERM
            stream.task.cancel()
            await asyncio.gather(stream.task, return_exceptions=True)
        assert still_running(processes) == []


UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_unshare(), reason="making a PID namespace takes rights")
async def test_as_pid_1_it_ends_like_everywhere() -> None:
    """The kernel sends a container's first process no signal that it has no handler for."""
    with run_server("--model", "fake", inside=UNSHARE) as server:
        outside, first, *_ = server.tree()
        assert first.cmdline()[1] == "server.py"
        async with server.async_client() as client:
            stream = ask(client, SLOW, stream=True)
            await begun([stream])
            first.send_signal(signal.SIGTERM)
            assert await tally([stream]) == {"ok": 1}
        assert await ended(server, 10) == 0
        assert still_running([outside, first]) == []
