"""uvicorn's protocol with our bounds: what becomes of a client that reads nothing. The rest is in tests/faults."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvicorn
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from api.protocol import http_protocol
from tests.support.waiting import until

SIZE = 30_000_000  # more than all buffers on the way hold


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, send_timeout_s: float, head_timeout_s: float = 10
) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """A server and its port."""
    protocol = http_protocol(head_timeout_s, send_timeout_s)
    config = uvicorn.Config(app, port=0, http=protocol, log_level="critical", lifespan="off", timeout_keep_alive=60)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    running = asyncio.ensure_future(server.serve([listening]))
    try:
        yield server, listening.getsockname()[1]
    finally:
        server.should_exit = True
        await running


def collected() -> Response:
    return Response(b"x" * SIZE)


def streamed() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(SIZE // 10_000):
            yield b"x" * 10_000

    return StreamingResponse(pieces())


@pytest.mark.parametrize("answer", [collected, streamed])
async def test_a_client_that_does_not_read_its_answer_is_let_go(answer: Callable[[], Response]) -> None:
    """Its connection breaks off; one that reads slowly, but reads, gets all of it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer()(scope, receive, send)

    async with serving(app, 0.5) as (server, port), asyncio.timeout(30):
        received = []
        for reads in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            if not reads:
                await until(lambda: not server.server_state.connections)
            num_bytes = 0
            while more := await reader.read(100_000):
                num_bytes += len(more)
                await asyncio.sleep(0)
            received.append(num_bytes)
            writer.close()
            await writer.wait_closed()
    assert received[0] < SIZE < received[1]


async def small(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(b"x" * 50_000)(scope, receive, send)


async def test_the_last_bytes_of_an_answer_are_bounded_too() -> None:
    """A transport tells of what is unread only above a mark, and waits for what is below it without an end."""
    async with serving(small, 0.5) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: server.server_state.connections)
        (protocol,) = server.server_state.connections
        assert protocol.transport.get_write_buffer_limits() == (0, 0)
        writer.close()
        await writer.wait_closed()


async def test_the_rest_of_a_request_that_was_answered_is_not_waited_for() -> None:
    """A byte of it now and then would keep the connection for ever."""
    async with serving(small, 30, head_timeout_s=0.5) as (server, port), asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        answer = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(50_000)
        writer.write(b"a")
        assert await reader.read() == b"", "no second answer"
        assert answer.startswith(b"HTTP/1.1 200 ")
        await until(lambda: not server.server_state.connections)
        writer.close()
