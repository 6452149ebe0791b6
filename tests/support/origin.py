"""A web server of the tests' own on the loopback address, where audio is fetched from, well-behaved or not."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.speech import DATA

RELEASE_LIMIT_S = 6  # less than a server waits for a fetch


class _Handler(BaseHTTPRequestHandler):
    """`/clip/NAME` sends a clip of tests/data; the other paths misbehave. `?wait=2` waits 2 s before the answer, and
    then for `Origin.release`."""

    origin: Origin

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.origin.requested.append(self.path)
        if wait := parse_qs(url.query).get("wait"):
            time.sleep(float(wait[0]))
            self.origin.release.wait(RELEASE_LIMIT_S)
        verb, _, rest = url.path.strip("/").partition("/")
        with suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"send_{verb}")(rest)

    def send_clip(self, name: str) -> None:
        self._send(200, (DATA / name).read_bytes())

    def send_text(self, _: str) -> None:
        self._send(200, b"<html>no audio here</html>")

    def send_status(self, code: str) -> None:
        self._send(int(code), b"")

    def send_redirect(self, target: str) -> None:
        self._send(302, b"", {"Location": "/" + target})

    def send_astray(self, target: str) -> None:
        self._send(302, b"", {"Location": unquote(target)})

    def send_cookie(self, _: str) -> None:
        body = self.headers.get("Cookie", "none").encode()
        self._send(200, body, {"Set-Cookie": "session=somebody; Path=/"})

    def send_loop(self, _: str) -> None:
        self._send(302, b"", {"Location": self.path})

    def send_gzip(self, name: str) -> None:
        self._send(200, (DATA / name).read_bytes(), {"Content-Encoding": "gzip"})

    def send_endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"\0" * 65536)

    def send_drip(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"\0")
            time.sleep(0.05)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class Origin:
    """The origin's address, and the paths that it was asked for."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.requested: list[str] = []
        self.release = threading.Event()

    def url(self, path: str) -> str:
        return f"{self.base_url}/{path}"


@contextmanager
def run_origin() -> Iterator[Origin]:
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.origin = origin = Origin(server.server_address[1])  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


Talk = Callable[[asyncio.StreamWriter, str], Awaitable[None]]


class RawOrigin:
    """Says, byte for byte, what a test wants: `talk` gets the head of each request and writes what it likes."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._tasks: set[asyncio.Task] = set()
        self.connections = 0
        self.open = 0
        self.heads: list[str] = []  # of all requests

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    def stop_talking(self) -> None:
        """Whoever still talks does so to a client that has left; what it says is not heard by anybody."""
        for task in self._tasks:
            task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while not writer.is_closing():
                    self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                    await self._talk(writer, self.heads[-1])
                    await writer.drain()
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None) -> AsyncIterator[RawOrigin]:
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def talking(talk: Talk, tls: ssl.SSLContext | None = None) -> AbstractAsyncContextManager[RawOrigin]:
    return RawOrigin(talk).running(tls)


def saying(*answers: bytes, close: bool = False) -> Talk:
    """The answers in turn, the last one for ever."""
    left = list(answers)

    async def talk(writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        if close:
            await writer.drain()
            writer.close()

    return talk


def answer(body: bytes = b"", status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """An HTTP answer. `length`: what it says of its body, where that is not so."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
