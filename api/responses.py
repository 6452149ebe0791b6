"""`/v1/responses`: the stateless core of OpenAI's Responses API, over the same jobs as chat completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from functools import partial

from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import responses_schema, sse
from api.answers import Json, Reply
from api.endpoint import Answer, Endpoint
from api.reading import Reading
from api.reception import Events
from api.responses_events import Frame, ResponseBody, ResponseEvents
from api.responses_schema import ResponsesRequest
from api.tool_schema import tools_told_again
from errors import EardrumError
from wire import Delta, Finished


class Responses(Endpoint[ResponsesRequest]):
    form = ResponsesRequest
    id_prefix = "resp_"
    check = staticmethod(responses_schema.check_limits)
    build = staticmethod(responses_schema.build_job)

    def answer(self, asked: ResponsesRequest, reply: Reply) -> Answer:
        reading = Reading.of(asked, lambda: self._pending.capabilities)
        frame = Frame(reply, _told_again(asked), asked.logprobs, reading)
        return partial(_streamed, frame=frame) if asked.stream else partial(_collected, frame=frame)


def _told_again(asked: ResponsesRequest) -> Json:
    """What of a request its response tells again."""
    return {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "temperature": asked.temperature,
        "text": {"format": asked.text_format},
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": asked.top_p,
        **tools_told_again(asked),
    }


async def _collected(first: Delta | Finished, events: Events, frame: Frame) -> Response:
    said = ResponseBody(frame)
    said.add(first)
    async for event in events:
        said.add(event)
    return JSONResponse(said.body(int(time.time())))


async def _streamed(first: Delta | Finished, events: Events, frame: Frame) -> Response:
    return sse.EventStream(_stream(first, events, ResponseEvents(frame)), events)


async def _stream(first: Delta | Finished, events: Events, told: ResponseEvents) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream. An error becomes its last event: the status has been sent."""
    try:
        for event in (*told.first(), *told.of(first)):
            yield sse.encode_event(event)
        async for heard in events:
            for event in told.of(heard):
                yield sse.encode_event(event)
        for event in told.last(int(time.time())):
            yield sse.encode_event(event)
    except EardrumError as error:
        yield sse.encode_event(told.error(error))
