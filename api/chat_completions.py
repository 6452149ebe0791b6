"""`/v1/chat/completions`: a body to a job, and the job's events to an answer or to a stream.

An error before the first event is an HTTP error, also where a stream was asked for; a later one is an event in the
stream.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from api import sse
from api.answers import Chunks, Completion, Reply
from api.chat import build_job, check_limits
from api.pending import PendingTable
from api.reception import INLINE_BYTES, Accepted, Arrival, Events, Reception
from api.schema import parse
from config import Settings
from errors import EardrumError
from wire import Delta, Finished


@dataclass(frozen=True)
class Form:
    """How the client wants its answer."""

    stream: bool
    include_usage: bool
    logprobs: bool


class ChatCompletions:
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
        chat = await arrival.run(parse, body, large=large)
        self._check_model(chat.model)
        check_limits(chat, self._settings)
        job_id, max_bytes = self._pending.new_job_id(), self._settings.max_audio_bytes
        job = await arrival.run(build_job, chat, job_id, arrival.intake, max_bytes, large=large)
        include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
        form = Form(bool(chat.stream), include_usage, logprobs=bool(chat.logprobs))
        return Accepted(job, form.stream, partial(self._answer, n=job.sampling.n, form=form))

    async def _answer(self, events: Events, n: int, form: Form) -> Response:
        """The response to a valid request, once its first event is here."""
        first = await anext(events)
        reply = Reply(f"chatcmpl-{first.job_id.key}", int(time.time()), self._settings.public_name)
        if form.stream:
            chunks = Chunks(reply, form.include_usage, form.logprobs)
            return sse.EventStream(_stream(first, events, chunks), events)
        completion = Completion(reply, n, form.logprobs)
        completion.add(first)
        async for event in events:
            completion.add(event)
        return JSONResponse(completion.body())


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
