"""Server-sent events: the only place that writes "data: ". Every event is closed by its blank line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.answers import Json
from api.boundary import ClientGone, while_connected
from errors import EardrumError

DONE = b"data: [DONE]\n\n"


def encode(value: Json) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def encode_error(error: EardrumError) -> bytes:
    """An error after the stream has begun. No [DONE] follows it."""
    return encode(error.body())


class EventStream(StreamingResponse):
    """Streams encoded events, and closes their source at once when the client leaves, or takes nothing for
    `send_timeout_s` seconds."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], source: AsyncGenerator[object, None], send_timeout_s: float
    ) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events, self._source, self._send_timeout_s = events, source, send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError:
                raise ClientGone from None

        async with aclosing(self._source), aclosing(self._events):
            await while_connected(receive, self.stream_response(send_in_time))
