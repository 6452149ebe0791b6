"""Server-sent events: the only place that writes "data: ". Every event is closed by its blank line."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.answers import Json
from api.boundary import while_connected
from errors import EardrumError

DONE = b"data: [DONE]\n\n"


def encode(value: Json) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def encode_event(value: Json) -> bytes:
    """The same under the name of its type, as the Responses API has it."""
    return f"event: {value['type']}\n".encode() + encode(value)


def encode_error(error: EardrumError) -> bytes:
    """An error after the stream has begun. No [DONE] follows it."""
    return encode(error.body())


class EventStream(StreamingResponse):
    """Streams encoded events, and closes their source at once when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], source: AsyncGenerator[object, None]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._events):
            await while_connected(receive, self.stream_response(send))
