"""Transports that look at all that tests send and receive. What is wrong with an answer fails the test it came in.

For `httpx` and for `httpx2`, with which the official client speaks; they are twins.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import httpx
import httpx2

from tests.schemas.check import Exchange

SEEN: list[str] = []  # what was wrong, since the last look


def wrong_answers() -> list[str]:
    """And forget them."""
    wrong = list(dict.fromkeys(SEEN))
    SEEN.clear()
    return wrong


def _exchange(request: Any, response: Any) -> Exchange:
    asked = None
    if request.headers.get("content-type", "").startswith("application/json"):
        with suppress(ValueError, AttributeError, httpx.StreamError, httpx2.StreamError):
            asked = json.loads(request.content)
    method, path = request.method, request.url.path
    asked = asked if isinstance(asked, dict) else None
    return Exchange(method, path, asked, response.status_code, response.headers)


def _report(request: Any, exchange: Exchange, complete: bool) -> None:
    wrong, exchange.wrong = exchange.end() if complete else exchange.wrong, []  # told once
    SEEN.extend(f"{request.method} {request.url.path}: {each}" for each in wrong)


def watched(transport: Any) -> Any:
    """The same transport, watched."""
    lib = httpx2 if isinstance(transport, httpx2.BaseTransport | httpx2.AsyncBaseTransport) else httpx
    is_async = isinstance(transport, lib.AsyncBaseTransport)
    return (_asynchronous if is_async else _synchronous)(lib, transport)


def _synchronous(lib: ModuleType, inner: Any) -> Any:
    class Body(lib.SyncByteStream):
        def __init__(self, request: Any, response: Any) -> None:
            self._request, self._response = request, response
            self._exchange = _exchange(request, response)
            self._rest = iter(response.stream)

        def __iter__(self) -> Iterator[bytes]:
            """The official client goes through a stream up to [DONE], and then through its rest, to drain it."""
            complete = False
            try:
                for data in self._rest:
                    self._exchange.feed(data)
                    yield data
                complete = True
            finally:
                _report(self._request, self._exchange, complete)

        def close(self) -> None:
            self._response.stream.close()

    class Watched(lib.BaseTransport):
        def handle_request(self, request: Any) -> Any:
            response = inner.handle_request(request)
            stream, more = Body(request, response), response.extensions
            return lib.Response(response.status_code, headers=response.headers, stream=stream, extensions=more)

        def close(self) -> None:
            inner.close()

    return Watched()


def _asynchronous(lib: ModuleType, inner: Any) -> Any:
    class Body(lib.AsyncByteStream):
        def __init__(self, request: Any, response: Any) -> None:
            self._request, self._response = request, response
            self._exchange = _exchange(request, response)
            self._rest = aiter(response.stream)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            """The official client goes through a stream up to [DONE], and then through its rest, to drain it."""
            complete = False
            try:
                async for data in self._rest:
                    self._exchange.feed(data)
                    yield data
                complete = True
            finally:
                _report(self._request, self._exchange, complete)

        async def aclose(self) -> None:
            await self._response.stream.aclose()

    class Watched(lib.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any:
            response = await inner.handle_async_request(request)
            stream, more = Body(request, response), response.extensions
            return lib.Response(response.status_code, headers=response.headers, stream=stream, extensions=more)

        async def aclose(self) -> None:
            await inner.aclose()

    return Watched()
