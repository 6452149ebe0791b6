"""`/v1/responses`: the stateless core of OpenAI's Responses API, over the same jobs as chat completions.

An error before the first event is an HTTP error, also where a stream was asked for; a later one is the stream's last
event.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import sse
from api.answers import Json
from api.form import parse_as
from api.pending import PendingTable
from api.reception import INLINE_BYTES, Accepted, Arrival, Events, Reception
from api.responses_events import Frame, ResponseBody, ResponseEvents
from api.responses_schema import ResponsesRequest, build_job, check_limits
from config import Settings
from errors import EardrumError
from wire import Delta, Finished


class Responses:
    """The endpoint. `check_model` raises for a model that is not served."""

    def __init__(
        self, settings: Settings, pending: PendingTable, reception: Reception, check_model: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._pending = pending
        self._reception = reception
        self._check_model = check_model

    async def __call__(self, request: Request) -> Response:
        return await self._reception.serve(request, self._accept)

    async def _accept(self, arrival: Arrival) -> Accepted:
        """A valid request. Its body and its base64 are gone on return; only the spool holds audio then."""
        body = await arrival.json()
        large = len(body) > INLINE_BYTES
        asked = await arrival.run(parse_as, ResponsesRequest, body, large=large)
        self._check_model(asked.model)
        check_limits(asked, self._settings)
        job_id, max_bytes = self._pending.new_job_id(), self._settings.max_audio_bytes
        job = await arrival.run(build_job, asked, job_id, arrival.intake, max_bytes, large=large)
        name = self._settings.public_name
        frame = Frame(job_id.key, int(time.time()), name, _told_again(asked), asked.logprobs)
        return Accepted(job, bool(asked.stream), partial(self._answer, frame=frame, stream=bool(asked.stream)))

    async def _answer(self, events: Events, frame: Frame, stream: bool) -> Response:
        """The response to a valid request, once its first event is here."""
        first = await anext(events)
        if stream:
            return sse.EventStream(_stream(first, events, ResponseEvents(frame)), events)
        said = ResponseBody(frame)
        said.add(first)
        async for event in events:
            said.add(event)
        return JSONResponse(said.body(int(time.time())))


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
    }


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
