"""The request boundary: an id on every answer, one log line for each request, and every exception to an answer.

One of the two places that catch broadly (the other is the worker's step). Pure ASGI, so that streams pass untouched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Coroutine
from typing import TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from errors import EardrumError, InternalError, RequestTimeout

log = logging.getLogger("eardrum.access")

PROBES = frozenset({"/live", "/ready", "/health"})  # need no key, and are not worth a log line
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left; it is logged, nobody receives it
ANSWER_HEADERS = "eardrum.headers"  # key of the scope: headers that every answer to this request is to have
_SANE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


# What a refused request may still send: a connection closed in the middle of an upload hides the answer.
DRAIN_BYTES = 100_000_000
DRAIN_S = 10.0

T = TypeVar("T")


class ClientGone(Exception):
    """The client left before its answer; there is nobody to tell."""


async def while_connected(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """What `work` returns; where the client leaves first, cancel it and raise `ClientGone`.

    The request's body must have been read: what `receive` tells next is that the client has left.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class RequestBoundary:
    """The outermost ASGI middleware of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(scope, receive)
        answer = _Answer(body, send, _request_id(scope))
        try:
            await self._app({**scope, ANSWER_HEADERS: answer.headers}, body.receive, answer.send)
        except ClientGone:
            answer.status = CLIENT_CLOSED_REQUEST
        except EardrumError as error:
            await answer.fail(error)
        except Exception:
            log.exception("%s %s %r failed", answer.request_id, scope["method"], scope["path"])
            await answer.fail(InternalError("The server failed on this request. The request id is in x-request-id."))
        finally:
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            line = (answer.request_id, scope["method"], scope["path"], answer.status, answer.elapsed_ms)
            log.log(level, "%s %s %r %d %.0f ms", *line)


class _Body:
    """Receives, and remembers whether the client has sent all of its body."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._complete = "expect" in Headers(scope=scope)  # such a client waits for our word before it sends

    async def receive(self) -> Message:
        message = await self._receive()
        self._complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read and drop the rest, within bounds."""
        dropped = 0
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._complete and dropped < DRAIN_BYTES:
                    dropped += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


class _Answer:
    """Sends, and remembers what was sent."""

    def __init__(self, body: _Body, send: Send, request_id: str) -> None:
        self._body = body
        self._send = send
        self._started = time.perf_counter()
        self.request_id = request_id
        self.status = 0
        self.headers: dict[str, str] = {}

    @property
    def elapsed_ms(self) -> float:
        """Since the request came."""
        return 1000 * (time.perf_counter() - self._started)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            told = {"x-request-id": self.request_id, "openai-processing-ms": str(round(self.elapsed_ms))}
            MutableHeaders(scope=message).update({**told, **self.headers})
        await self._send(message)

    async def fail(self, error: EardrumError) -> None:
        if self.status:  # too late for an answer: break the connection, which no client takes for an end
            raise error
        body = json.dumps(error.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        if not isinstance(error, RequestTimeout):  # else nothing comes any more
            await self._body.drain()
        await self.send({"type": "http.response.body"})


def _request_id(scope: Scope) -> str:
    """The client's own id where it is a sane one, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
