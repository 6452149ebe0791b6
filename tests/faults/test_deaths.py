"""Processes die, and every request ends: with its answer, or with an error that says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.faults.counting import ask, ask_about_audio, ask_many, begun, tally
from tests.faults.processes import Processes, last_line, run_counted, status
from tests.support.servers import RunningServer, still_running
from tests.support.speech import user
from tests.support.waiting import until

SLOW = "#tokens=80 #delay=0.02"
LONG = "#tokens=150 #delay=0.02"
Two = tuple[RunningServer, Processes]


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Two]:
    """Which stand for two GPUs, and take no more than one job beside those in their rows."""
    flags = ("--workers-per-device", "2", "--max-rows", "4", "--prepare-ahead", "1", "--max-restarts", "100")
    with run_counted(*flags) as server:
        yield server


async def test_a_killed_worker_ends_its_begun_streams_and_nothing_else(two_workers: Two) -> None:
    """Those of the killed one end within 2 s with one error; the other's go on, and whatever had sent nothing yet is
    answered as if nothing had been. Its decoders die with it."""
    server, processes = two_workers
    victim, survivor = await processes.workers_ready(2)
    decoders = victim.children()
    assert len(decoders) == 2
    async with server.async_client() as client:
        streams = ask_many(client, [LONG] * 8, stream=True)
        await until(lambda: sum(stream.begun.is_set() for stream in streams) >= 7)  # one may wait for a row
        waiting = ask_many(client, [f"#say=number_{i}" for i in range(12)])
        waiting += [ask_about_audio(client, "#say=streamed", stream=True)]
        await processes.accepted(waiting[-1:])
        killed_at = time.monotonic()
        victim.kill()
        ended = await tally(streams)
        assert ended in ({"ok": 4, "worker_died": 4}, {"ok": 5, "worker_died": 3})
        for stream in streams:
            outcome = stream.outcome
            assert len(outcome.text) == 150 or outcome.ended_at - killed_at < 2
        assert await tally(waiting) == {"ok": 13}
        assert [each.outcome.text for each in waiting[:12]] == [f"number {i}" for i in range(12)]
    assert survivor.is_running()
    assert still_running([victim, *decoders]) == []


async def test_a_collected_answer_is_run_again_even_from_its_middle(two_workers: Two) -> None:
    """Its client has seen none of it; its audio is still in the spool, and gone afterwards."""
    server, processes = two_workers
    workers = await processes.workers_ready(2)
    async with server.async_client() as client:
        asked = [ask_about_audio(client, SLOW) for _ in range(5)]
        asked += [ask(client, SLOW, n=2)]
        last = ask_about_audio(client, SLOW, stream=True)  # so that all eight rows are in use
        await until(lambda: len(last.outcome.text) >= 20)
        workers[0].kill()
        assert await tally(asked) == {"ok": 6}
        await tally([last])
    assert processes.spooled() == []


async def test_a_request_that_kills_its_workers_is_refused(two_workers: Two) -> None:
    """With a 500 that says so; when it comes again, nothing dies any more. Others are answered throughout."""
    server, processes = two_workers
    await processes.workers_ready(2)
    killer = "#tokens=9 #delay=0.02 #die"
    async with server.async_client() as client:
        outcome = await ask(client, killer).task
        assert (outcome.status, outcome.code) == (500, "kills_workers")
        before = await processes.workers_ready(2)
        again = await asyncio.gather(*(ask(client, killer, stream=stream).task for stream in (False, True)))
        assert [(each.status, each.code) for each in again] == [(500, "kills_workers")] * 2
        assert await processes.workers_ready(2) == before
        assert await tally([ask(client, killer + " not")]) != {"ok": 1}, "another request, not known yet"
        await processes.workers_ready(2)
        assert await tally([ask(client, "hello")]) == {"ok": 1}


async def test_innocents_are_answered_beside_a_killer(two_workers: Two) -> None:
    """They lose two workers with it, and are told from it: each suspect is tried alone."""
    server, processes = two_workers
    await processes.workers_ready(2)
    async with server.async_client() as client:
        killers = [ask(client, "#tokens=9 #delay=0.05 #die #say=it_was_me")]
        innocents = ask_many(client, [f"#tokens=30 #delay=0.05 {i}" for i in range(7)])
        assert await tally(innocents) == {"ok": 7}
        assert await tally(killers) == {"kills_workers": 1}


async def test_a_killer_that_streams_is_refused_in_the_end() -> None:
    """It is known again, though each time it had begun and others were there, all of whom are answered."""
    flags = ("--workers-per-device", "2", "--max-rows", "4")
    codes = []
    with run_counted(*flags) as (server, processes):
        async with server.async_client() as client:
            for i in range(4):
                await processes.workers_ready(2)
                innocents = ask_many(client, [f"#tokens=20 #delay=0.05 {i} {j}" for j in range(4)])
                killer = ask(client, "#tokens=9 #delay=0.05 #die", stream=True)
                assert await tally(innocents) == {"ok": 4}
                outcome = await killer.task
                codes.append((outcome.code, outcome.status))
    assert codes == [("worker_died", 200)] * 2 + [("kills_workers", 200), ("kills_workers", 500)]


async def test_a_lone_worker_is_waited_for() -> None:
    """What was accepted before it died is answered by its successor; what comes meanwhile is a 503 that says when to
    come again, which the SDK does by itself."""
    with run_counted("--max-rows", "2") as (server, processes):
        (worker,) = processes.workers()
        async with server.async_client() as client, server.async_client(max_retries=9) as patient:
            stream = ask(client, SLOW, stream=True)
            await begun([stream])
            waiting = [ask_about_audio(client, f"{SLOW} {i}") for i in range(5)]
            await processes.accepted(waiting)
            worker.kill()
            await stream.task
            refused = await ask(client, "hello").task
            assert (refused.status, refused.code) == (503, "unavailable")
            assert [await status(server, path) for path in ("/ready", "/live")] == [503, 200]
            assert await tally([stream], waiting, [ask(patient, "hello")]) == {"worker_died": 1, "ok": 6}
        await processes.workers_ready(1, but=worker)
        assert server.stop() == 0


# --------------------------------------------------------------------------------------------- what ends the server


def test_workers_that_never_last_end_the_server() -> None:
    """Rather than being started for ever: a status that is not 0, and the reason as the last line."""
    with run_counted("--max-restarts", "1") as (server, _), server.http() as http:
        body = {"model": "fake", "messages": user("#tokens=9 #die")}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code in (500, 503)
        assert answer.json()["error"]["message"]
        assert server.process.wait(20) == 1
        assert last_line(server).startswith("server.py: Worker 0 died 2 times in a row without having lasted.")
        assert "The last time it ended with status 9" in last_line(server)


SETUPS = """
import os, time
from pathlib import Path

class Mine:
    sampling_rate = 16000

    def setup(self, device):
        {setup}

    def generate(self, batch):
        yield ["hello"] * len(batch)
"""


def a_class(directory: Path, setup: str) -> str:
    """The `--model` of a class with this in its `setup`."""
    path = directory / "mine.py"
    path.write_text(SETUPS.format(setup=setup))
    return f"{path}:Mine"


@pytest.mark.parametrize(
    ("setup", "timeout_s", "message"),
    [
        ("os._exit(3)", 30, "Worker 0 ended with status 3 while it loaded the model; what it said stands above."),
        (
            "os.kill(os.getpid(), 9)",
            30,
            "Worker 0 was killed (SIGKILL), by hand or for want of memory, while it loaded the model",
        ),
        ("time.sleep(600)", 6, "Worker 0 has not loaded the model within 6 s; see --start-timeout."),
    ],
)
def test_a_worker_that_does_not_start_ends_the_start(tmp_path: Path, setup: str, timeout_s: int, message: str) -> None:
    """It dies, or never comes to an end."""
    model = a_class(tmp_path, setup)
    with run_counted("--model", model, "--start-timeout", str(timeout_s), ready=False) as (server, _):
        assert server.process.wait(40) == 1
        assert message in last_line(server)
        assert "Traceback" not in server.log.read_text()


async def test_a_successor_that_hangs_in_setup_is_killed(tmp_path: Path) -> None:
    """And where that goes on, the server ends with the reason."""
    model = a_class(tmp_path, f"while Path({str(tmp_path / 'hang')!r}).exists(): time.sleep(0.1)")
    flags = ("--model", model, "--served-model-name", "fake", "--start-timeout", "12", "--max-restarts", "1")
    with run_counted(*flags) as (server, processes):
        (worker,) = processes.workers()
        (tmp_path / "hang").touch()
        server_processes = server.tree()
        worker.kill()
        assert await asyncio.to_thread(server.process.wait, 40) == 1
        assert last_line(server).startswith("server.py: Worker 0 died 2 times in a row without having lasted.")
        assert still_running(server_processes) == []


async def test_a_killed_api_process_ends_the_server() -> None:
    """Rather than a port that accepts and does not answer; a supervisor starts it anew. Of two, the other's streams
    go on to their end."""
    with run_counted("--api-servers", "2") as (server, processes):
        async with server.async_client() as client:
            streams = ask_many(client, [SLOW] * 8, stream=True)
            await begun(streams)
            all_of_it = server.tree()
            processes.api.kill()
            outcomes = await asyncio.gather(*(stream.task for stream in streams), return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, httpx.TransportError | openai.APIConnectionError) or len(outcome.text) == 80
        assert await asyncio.to_thread(server.process.wait, 20) == 1
        assert last_line(server) == "server.py: An API process died."
        assert still_running(all_of_it) == []


async def test_a_killed_manager_ends_the_server() -> None:
    """Every request is told; no process and no port is left."""
    with run_counted() as (server, processes):
        all_of_it = server.tree()
        async with server.async_client() as client:
            stream, waiting = ask(client, SLOW, stream=True), ask(client, SLOW)
            await begun([stream])
            processes.manager.kill()
            assert await tally([stream, waiting]) == {"unavailable": 2}
        assert await asyncio.to_thread(server.process.wait, 20) == 1
        assert last_line(server) == "server.py: The process that carries the queues died."
        assert still_running(all_of_it) == []
        assert await status(server, "/live") is None


async def test_a_killed_main_process_leaves_no_orphans() -> None:
    """Not even by kill -9: no process, no port; and the next start tidies the spool up."""
    with run_counted() as (server, _):
        all_of_it: list[psutil.Process] = server.tree()
        server.process.kill()
        assert still_running(all_of_it) == []
        assert await status(server, "/live") is None
