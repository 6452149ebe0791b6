"""`/v1/chat/completions`: how its jobs' events become answers, or streams of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import chat, sse
from api.answers import Chunks, Completion, Reply
from api.endpoint import Answer, Endpoint
from api.reading import Reading
from api.reception import Events
from api.schema import ChatRequest
from errors import EardrumError
from wire import Delta, Finished


class ChatCompletions(Endpoint[ChatRequest]):
    form = ChatRequest
    id_prefix = "chatcmpl-"
    check = staticmethod(chat.check_limits)
    build = staticmethod(chat.build_job)

    def answer(self, asked: ChatRequest, reply: Reply) -> Answer:
        logprobs, reading = bool(asked.logprobs), Reading.of(asked, lambda: self._pending.capabilities)
        if asked.stream:
            options = asked.stream_options
            chunks = Chunks(reply, chat.with_usage(options), logprobs, chat.tells_usage(options), reading)
            return partial(streamed, chunks=chunks)
        return partial(collected, completion=Completion(reply, asked.n or 1, logprobs, reading))


async def collected(first: Delta | Finished, events: Events, completion: Completion) -> Response:
    """The response in one piece."""
    completion.add(first)
    async for event in events:
        completion.add(event)
    return JSONResponse(completion.body())


async def streamed(first: Delta | Finished, events: Events, chunks: Chunks) -> Response:
    """The response as a stream."""
    return sse.EventStream(_stream(first, events, chunks), events)


async def _stream(first: Delta | Finished, events: Events, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream. An error becomes its last event: the status has been sent."""
    try:
        for chunk in chunks.of(first):
            yield sse.encode(chunk)
        async for event in events:
            for chunk in chunks.of(event):
                yield sse.encode(chunk)
        for chunk in chunks.last():
            yield sse.encode(chunk)
        yield sse.DONE
    except EardrumError as error:
        yield sse.encode_error(error)
