"""The endpoints, plain FastAPI over `submit`. Neither LitServe nor any queue shows here.

A handler reads: parse, build the job, wait for its first event, answer. An error before the first event is an HTTP
error, also where a stream was asked for; a later one is an event in the stream.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api import sse
from api.answers import Chunks, Completion, Json, Reply
from api.auth import KeyCheck, owner_of
from api.boundary import ClientGone, RequestBoundary, while_connected
from api.chat import build_job, check_limits
from api.door import Door
from api.intake import KeptAudio, RequestIntake
from api.pending import PendingTable
from api.room import Reservation, Room
from api.schema import parse
from audio.spool import Spool
from config import MB, Settings
from errors import (
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Draining,
    EardrumError,
    ModelNotFound,
    RequestTimeout,
    UnsupportedMediaType,
    for_status,
)
from wire import Capabilities, Delta, Finished, Job, TextPart

T = TypeVar("T")
Events = AsyncGenerator[Delta | Finished, None]

INLINE_BYTES = 32_768  # a body up to this size is parsed at once; a larger one in a thread
PARSE_THREADS = 2
FAREWELL_S = 1.0  # for clients to take the error that ends their request


def mount(app: FastAPI, settings: Settings, pending: PendingTable, spool: Spool) -> Api:
    """Put endpoints, error answers and middlewares on `app`."""
    api = Api(settings, pending, spool)
    app.include_router(api.router())
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_middleware(KeyCheck, keys=settings.api_keys)
    app.add_middleware(RequestBoundary)
    return api


async def _framework_error(_: Request, error: Exception) -> Response:
    """What the framework itself refuses, such as an unknown route."""
    assert isinstance(error, HTTPException)
    translated = for_status(error.status_code, f"{error.detail}. See the README for the endpoints.")
    return JSONResponse(translated.body(), translated.status, error.headers)


@dataclass(frozen=True)
class Form:
    """How the client wants its answer."""

    stream: bool
    include_usage: bool
    logprobs: bool


class Api:
    """The handlers, and what they share."""

    def __init__(self, settings: Settings, pending: PendingTable, spool: Spool) -> None:
        self._settings = settings
        self._pending = pending
        self._spool = spool
        self._room = Room(settings.queue_bytes // settings.api_servers, lambda: pending.retry_after_s)
        self._door = Door()
        self._kept = KeptAudio(spool, settings.uuid_cache_mb * MB // settings.api_servers)
        self._started = int(time.time())
        self._threads = ThreadPoolExecutor(PARSE_THREADS, thread_name_prefix="parse")

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/v1/chat/completions", self.chat_completions, methods=["POST"])
        router.add_api_route("/v1/models", self.list_models, methods=["GET"])
        router.add_api_route("/v1/models/{name:path}", self.get_model, methods=["GET"])
        router.add_api_route("/live", self.live, methods=["GET"])
        router.add_api_route("/ready", self.ready, methods=["GET"])
        router.add_api_route("/health", self.ready, methods=["GET"])
        return router

    async def drain(self, timeout_s: float) -> None:
        """Take no more requests, and return when those that are here have ended; after `timeout_s` seconds they are
        ended, each with an error."""
        self._door.close()
        try:
            await self._door.wait_empty(timeout_s)
        except TimeoutError:
            self._door.shut()
            self._pending.close(Draining("The server ended before the answer was complete."))
            with suppress(TimeoutError):
                await self._door.wait_empty(FAREWELL_S)

    # ------------------------------------------------------------------------------------------------- probes, models

    async def live(self) -> Json:
        """This process answers."""
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        """A worker answers, too, and new requests are taken."""
        ready = self._pending.is_ready and self._door.is_open
        return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)

    async def list_models(self) -> Json:
        return {"object": "list", "data": [self._card()]}

    async def get_model(self, name: str) -> Json:
        self._check_model(name)
        return self._card()

    def _card(self) -> Json:
        """OpenAI's model object, and beside it what audio the model takes."""
        name = self._settings.public_name
        card: Json = {"id": name, "object": "model", "created": self._started, "owned_by": "eardrum"}
        if capabilities := self._pending.capabilities:
            card["audio"] = _audio_card(capabilities, self._settings)
        return card

    def _check_model(self, name: str) -> None:
        served = self._settings.public_name
        if name != served:
            raise ModelNotFound(f"This model does not exist here. The one that is served is `{served}`.", "model")

    # ------------------------------------------------------------------------------------------------ chat completions

    async def chat_completions(self, request: Request) -> Response:
        deadline = self._deadline(request)
        held = ExitStack()
        try:
            held.enter_context(self._door.enter())
            self._pending.check_room()  # a full server reads no bodies
            job, form = await self._accept_until(deadline, request, held)
            return await while_connected(
                request.receive, self._answer(self._events(job, form, held), job.sampling.n, form)
            )
        except BaseException:
            held.close()
            raise

    def _deadline(self, request: Request) -> float:
        """When the request's time is over, of time.monotonic(). Its header can shorten what the server allows."""
        limit = self._settings.request_timeout
        if given := request.headers.get("x-request-timeout"):
            limit = min(limit, _seconds(given))
        return time.monotonic() + limit

    async def _accept_until(self, deadline: float, request: Request, held: ExitStack) -> tuple[Job, Form]:
        try:
            async with self._door.coming(deadline):
                job, form = await self._accept(request, held)
        except TimeoutError:
            raise DeadlineExceeded("The request's time was over before all of it had arrived.") from None
        return replace(job, deadline=deadline), form

    async def _accept(self, request: Request, held: ExitStack) -> tuple[Job, Form]:
        """The job of a valid request. The body and its base64 are gone on return; only the spool holds audio then."""
        reservation = held.enter_context(closing(self._room.reserve()))
        files = held.enter_context(closing(self._spool.files()))
        body = await self._read(request, reservation)
        large = len(body) > INLINE_BYTES
        chat = await self._run(parse, body, in_thread=large)
        self._check_model(chat.model)
        check_limits(chat, self._settings)
        job_id, max_bytes = self._pending.new_job_id(), self._settings.max_audio_bytes
        intake = RequestIntake(files, self._kept, owner_of(request.scope, self._settings.api_keys))
        job = await self._run(build_job, chat, job_id, intake, max_bytes, in_thread=large)
        reservation.hold(job.spool_bytes + _text_bytes(job))
        include_usage = bool(chat.stream_options and chat.stream_options.include_usage)
        return job, Form(bool(chat.stream), include_usage, logprobs=bool(chat.logprobs))

    async def _read(self, request: Request, reservation: Reservation) -> bytes:
        """The body, within its limit."""
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise UnsupportedMediaType("Send the request as JSON, with the header `Content-Type: application/json`.")
        limit, received, chunks = self._settings.max_body_bytes, 0, []
        try:
            async for chunk in self._chunks(request):
                received += len(chunk)
                if received > limit:
                    raise BodyTooLarge(f"The request body is larger than the limit of {limit} bytes.")
                reservation.hold(received)
                chunks.append(chunk)
        except ClientDisconnect:
            raise ClientGone from None
        return b"".join(chunks)

    async def _chunks(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Of the body. Raises `RequestTimeout` where the client stops sending."""
        async with aclosing(request.stream()) as stream:
            while True:
                try:
                    async with asyncio.timeout(self._settings.receive_timeout):
                        chunk = await anext(stream, None)
                except TimeoutError:
                    raise RequestTimeout("The rest of the request did not arrive in time.") from None
                if chunk is None:
                    return
                yield chunk

    async def _run(self, function: Callable[..., T], *args: object, in_thread: bool) -> T:
        """Call a function that computes: here when it is quick, else in a thread of our own."""
        if not in_thread:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _events(self, job: Job, form: Form, held: ExitStack) -> Events:
        """Run the job. Its spool files and its reservation are gone when this generator is closed."""
        with held:
            async with aclosing(self._pending.submit(job, whole=not form.stream)) as events:
                async for event in events:
                    yield event

    async def _answer(self, events: Events, n: int, form: Form) -> Response:
        """The response to a valid request, once its first event is here."""
        try:
            first = await anext(events)
            reply = Reply(f"chatcmpl-{first.job_id.key}", int(time.time()), self._settings.public_name)
            if form.stream:
                chunks = Chunks(reply, form.include_usage, form.logprobs)
                return sse.EventStream(_stream(first, events, chunks), events)
            completion = Completion(reply, n, form.logprobs)
            completion.add(first)
            async for event in events:
                completion.add(event)
        except BaseException:
            await events.aclose()
            raise
        return JSONResponse(completion.body())


def _text_bytes(job: Job) -> int:
    parts = (part for message in job.messages for part in message.parts)
    return sum(len(part.text.encode()) for part in parts if isinstance(part, TextPart))


def _seconds(header: str) -> float:
    """What `x-request-timeout` says. Raises `BadRequest`."""
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadRequest(
            "The header `x-request-timeout` must be a number of seconds, more than 0.", "x-request-timeout"
        )
    return seconds


def _audio_card(model: Capabilities, settings: Settings) -> Json:
    """What audio is taken: the model's own limits within the operator's. A clip that is longer than
    `max_seconds_per_clip` is refused; where that is more than the model hears at once, `long_audio` says what becomes
    of the rest."""
    long_audio = settings.long_audio or model.long_audio
    refused_from = [settings.max_audio_seconds]
    if long_audio == "error" and model.max_seconds_per_window is not None:
        refused_from.append(model.max_seconds_per_window)
    return {
        "sampling_rate": model.sampling_rate,
        "max_seconds_per_window": model.max_seconds_per_window,
        "max_seconds_per_clip": min(refused_from),
        "max_clips": settings.max_clips if model.max_clips is None else min(settings.max_clips, model.max_clips),
        "formats": model.formats,
        "long_audio": long_audio,
        "batching": model.batching,
        "why": model.why,
    }


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
