"""More comes than can be served: everybody is answered, and nothing grows without end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.counting import ask, begun, tally
from tests.faults.processes import run_counted
from tests.support.inprocess import run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import input_audio, user
from wire import Job, Message, Sampling, TextPart

CHAT = "/v1/chat/completions"
MB = 1_000_000


async def test_two_hundred_clients_at_eight_rows() -> None:
    """Each is answered, with 200 or with 429 and the seconds until there may be room; the memory stays where it was."""
    flags = ("--max-rows", "8", "--prepare-ahead", "8", "--queue-requests", "32")
    with run_counted(*flags) as (server, processes):
        audio = input_audio("jfk.wav")
        body = json.dumps({"model": "fake", "messages": user(audio, "#tokens=10 #delay=0.01")}).encode()
        headers = {"content-type": "application/json"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.base_url, timeout=60, limits=limits) as http:

            async def everybody() -> list[httpx.Response]:
                return await asyncio.gather(*(http.post(CHAT, content=body, headers=headers) for _ in range(200)))

            await everybody()
            before = [process.memory_info().rss for process in server.tree()]
            answers = await everybody()
            after = [process.memory_info().rss for process in server.tree()]
        counts = Counter(answer.status_code for answer in answers)
        assert set(counts) == {200, 429}
        assert counts[200] >= 32
        for answer in answers:
            if answer.status_code == 429:
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.json()["error"]["code"] == "queue_full"
        assert sum(after) - sum(before) < 200 * MB
        assert processes.spooled() == []
        async with server.async_client() as client:
            assert await tally([ask(client, "hello")]) == {"ok": 1}


async def test_who_was_accepted_keeps_his_place() -> None:
    """First come, first served."""
    async with run_in_process(max_rows=1, prepare_ahead=2) as server:
        ended: list[int] = []

        async def one(i: int) -> None:
            message = Message("user", (TextPart("#tokens=2"),))
            async for _ in server.pending.submit(Job(server.pending.new_job_id(), (message,), Sampling())):
                pass
            ended.append(i)

        await asyncio.gather(*(one(i) for i in range(40)))
    assert ended == list(range(40))


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningServer]:
    """It has one row, and waits a second for a client."""
    with run_counted("--max-rows", "1", "--send-timeout", "1", "--receive-timeout", "1") as (server, _):
        yield server


HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def test_a_client_that_does_not_read_loses_its_row(impatient: RunningServer) -> None:
    """Its stream is larger than all buffers on the way; the only row is free for the next one, and its connection
    breaks off."""
    body = json.dumps({"model": "fake", "messages": user("#tokens=100000"), "stream": True}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", impatient.port))
        raw.sendall(f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert raw.recv(12) == b"HTTP/1.1 200"
        async with impatient.async_client() as client:
            assert await tally([ask(client, "hello")]) == {"ok": 1}
        raw.settimeout(10)
        received = b""
        while more := await asyncio.to_thread(raw.recv, MB):
            received += more
        assert b"[DONE]" not in received


async def test_clients_that_stop_sending_are_let_go(impatient: RunningServer) -> None:
    """Before the head of a request, in it, and in the body: a 408 in the envelope, and the connection is closed. Who
    sends slowly, but sends, is answered."""
    starts = [b"", b"POST ", HEAD.encode(), f"{HEAD}Content-Length: 100\r\n\r\n{{".encode()]
    connections = [await asyncio.open_connection("127.0.0.1", impatient.port) for _ in starts]
    for (_, writer), start in zip(connections, starts, strict=True):
        writer.write(start)
    for reader, writer in connections:
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"]["code"] == "request_timeout"
        writer.close()

    body = json.dumps({"model": "fake", "messages": user("hello")}).encode()
    request = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", impatient.port)
    for i in range(0, len(request), 40):
        writer.write(request[i : i + 40])
        await asyncio.sleep(0.1)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_work_goes_to_the_worker_with_a_free_row() -> None:
    """Not behind somebody else's long answer."""
    with run_counted("--workers-per-device", "2", "--max-rows", "1") as (server, processes):
        await processes.workers_ready(2)
        async with server.async_client() as client:
            long = ask(client, "#tokens=400 #delay=0.02", stream=True)
            await begun([long])
            overtook = 0
            for i in range(20):
                await ask(client, f"hello {i}").task
                overtook += not long.task.done()
            assert overtook >= 18
            long.task.cancel()
            await asyncio.gather(long.task, return_exceptions=True)
