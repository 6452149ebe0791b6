"""httpx over connections that dial only what they have checked, and read only so much of a head.

The address is checked where it cannot change any more, in the connection: the name is resolved once, every answer
is checked, and the checked address is dialled. TLS and the Host header go on using the name. No proxies. This file
knows addresses and connections, and nothing of what is fetched over them.

HTTP/1.1 only. One file is fetched over one connection, so HTTP/2 would save nothing that keep-alive does not, and
httpcore's shares too much: it never resets a stream that is given up, which takes the connection's window from the
others, and one stream's failed read ends them all.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import httpcore
import httpx

from audio.addresses import FetchRules
from errors import BadAudioUrl

RESOLVE_THREADS = 64  # as many as jobs are prepared ahead, by default: who names a slow name server holds one
MAX_HEAD_BYTES = 65_536  # of an answer, with all 1xx before it; servers send 1 or 2 kB, rarely 16
MAX_READ_BYTES = 16_384  # at once: what is read is parsed in one go, which takes a while where chunks are tiny
KEPT_CONNECTIONS = 16
KEEP_ALIVE_S = 15.0  # less than servers keep theirs, mostly


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Dials only addresses that it has resolved and checked itself."""

    def __init__(self, rules: FetchRules) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._rules = rules
        self._resolvers = ThreadPoolExecutor(RESOLVE_THREADS, thread_name_prefix="resolve")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        dial = partial(
            self._inner.connect_tcp,
            port=port,
            timeout=timeout,
            local_address=local_address,
            socket_options=socket_options,
        )
        *others, last = await self._resolve(host, port)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return MeteredStream(await dial(address))
        return MeteredStream(await dial(last))

    async def _resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a name, each of them allowed. In threads of its own, which a slow name server may hold."""
        resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._resolvers, resolve)
        except (OSError, UnicodeError) as error:
            raise BadAudioUrl("the host name could not be resolved.") from error
        addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if not addresses:
            raise BadAudioUrl("the host name could not be resolved.")
        if not all(map(self._rules.allows_address, addresses)):
            raise BadAudioUrl("the address is not a public one, and this server fetches only public ones.")
        return addresses

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)


class MeteredStream(httpcore.AsyncNetworkStream):
    """A connection on which no more than `MAX_HEAD_BYTES` are read between a request and the body of its answer.

    That bounds the number of 1xx answers, too, which httpcore skips one after another.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._head_left: int | None = None  # none: the head is over

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- httpcore's
        max_bytes = min(max_bytes, MAX_READ_BYTES)
        if self._head_left is None:
            return await self._inner.read(max_bytes, timeout)
        if self._head_left == 0:
            raise BadAudioUrl("the head of the host's answer is too large.")
        data = await self._inner.read(min(max_bytes, self._head_left), timeout)
        self._head_left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- httpcore's
        self._head_left = MAX_HEAD_BYTES
        await self._inner.write(buffer, timeout)

    def begin_body(self) -> None:
        """The head is there. Raises where it was there before it was asked for: behind the answer before it, as what
        was left of it."""
        before, self._head_left = self._head_left, None
        if before == MAX_HEAD_BYTES:
            raise httpcore.RemoteProtocolError("an answer came before its request")

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's
    ) -> httpcore.AsyncNetworkStream:
        return MeteredStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Line(httpcore.AsyncNetworkBackend):
    """One connection, and the socket below it. For httpcore it is the backend that dials, for us what can be closed for
    certain: cancelled at the wrong moment, in a TLS handshake above all, httpcore lets go of sockets that are open."""

    def __init__(self, origin: httpcore.Origin, backend: _GuardedBackend, ssl_context: ssl.SSLContext) -> None:
        self.connection = httpcore.AsyncHTTPConnection(
            origin, ssl_context, keepalive_expiry=KEEP_ALIVE_S, network_backend=self
        )
        self._backend = backend
        self._stream: httpcore.AsyncNetworkStream | None = None

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        self._stream = await self._backend.connect_tcp(host, port, *args, **options)
        return self._stream

    async def ask(self, request: httpcore.Request) -> httpcore.Response:
        response = await self.connection.handle_async_request(request)
        response.extensions["network_stream"].begin_body()
        return response

    async def aclose(self) -> None:
        """The socket is closed before anything here waits."""
        if self._stream is not None:
            await self._stream.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, release: Callable[[], Awaitable[None]]) -> None:
        self._response = response
        self._release = release

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            await self._release()


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpx over connections of ours, each of which has one user at a time.

    Some are kept for the next fetch from the same scheme, host and port. Their addresses were checked when they were
    dialled, by rules that never change, so they are as good as new ones. The number in use has no bound but the jobs
    in preparation: a slow host must not take the places of others.
    """

    def __init__(self, rules: FetchRules, ssl_context: ssl.SSLContext) -> None:
        self._backend = _GuardedBackend(rules)
        self._ssl_context = ssl_context
        self._kept: list[_Line] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        inner = httpcore.Request(request.method, url, headers=request.headers.raw, extensions=request.extensions)
        while (line := self._take(url.origin)) is not None:
            with suppress(httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                return await self._ask(line, inner)  # if its host has not just closed it
        return await self._ask(_Line(url.origin, self._backend, self._ssl_context), inner)

    async def _ask(self, line: _Line, request: httpcore.Request) -> httpx.Response:
        try:
            response = await line.ask(request)
        except BaseException:
            await line.aclose()
            raise
        body = _Body(response, partial(self._release, line))
        return httpx.Response(response.status, headers=response.headers, stream=body, extensions=response.extensions)

    def _take(self, origin: httpcore.Origin) -> _Line | None:
        """A kept connection, the one that was used last. One on which something waits to be read has expired."""
        for line in reversed(self._kept):
            if line.connection.can_handle_request(origin) and not line.connection.has_expired():
                self._kept.remove(line)
                return line
        return None

    async def _release(self, line: _Line) -> None:
        """Keep a connection whose answer was read to its end, rather than one that is over or too much."""
        over: _Line | None = line
        if line.connection.is_idle():
            self._kept.append(line)
            over = next((kept for kept in self._kept if kept.connection.has_expired()), None)
            if over is None and len(self._kept) > KEPT_CONNECTIONS:
                over = self._kept[0]
            if over is not None:
                self._kept.remove(over)
        if over is not None:
            await over.aclose()

    async def aclose(self) -> None:
        self._backend.close()
        for line in self._kept:
            await line.aclose()
