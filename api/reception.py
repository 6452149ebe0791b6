"""How a request comes in, whatever its endpoint: the door, limits of several kinds, its files, its job's events.

    door ──▶ room for it ──▶ body, in time and within bounds ──▶ the endpoint's `accept` ──▶ its job's events ──▶ answer

All that is held for a request is let go when its events are closed, however that comes about.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.auth import owner_of
from api.boundary import ANSWER_HEADERS, ClientGone, while_connected
from api.door import Door
from api.intake import KeptAudio, RequestIntake
from api.limits import AUDIO, REQUESTS, KeyLimit
from api.pending import PendingTable
from audio.room import Reservation, Room
from audio.spool import Spool, SpoolFiles
from config import MB, Settings
from errors import (
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Draining,
    Overloaded,
    RequestTimeout,
    UnsupportedMediaType,
)
from wire import Delta, Finished, Job

T = TypeVar("T")
Events = AsyncGenerator[Delta | Finished, None]

INLINE_BYTES = 32_768  # a body up to this size is parsed at once; a larger one in a thread
PARSE_THREADS = 2
FAREWELL_S = 1.0  # for clients to take the error that ends their request


@dataclass(frozen=True)
class Accepted:
    """A valid request. `streams`: its answer may go out before it is complete. `answer` makes the response once the
    first event is here."""

    job: Job
    streams: bool
    answer: Callable[[Events], Awaitable[Response]]


class Arrival:
    """One request that comes in: its body, and where its audio goes."""

    def __init__(
        self,
        request: Request,
        settings: Settings,
        threads: ThreadPoolExecutor,
        reservation: Reservation,
        files: SpoolFiles,
        kept: KeptAudio,
    ) -> None:
        self._request = request
        self._settings = settings
        self._threads = threads
        self._reservation = reservation
        self.intake = RequestIntake(files, kept, owner_of(request.scope, settings.keys))

    @property
    def media_type(self) -> str:
        """Of the body, in lower case and without parameters; JSON where nothing is said."""
        return self._request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()

    @property
    def content_type(self) -> str:
        """The header as it came."""
        return self._request.headers.get("content-type", "")

    async def json(self) -> bytes:
        """The body, within its limit. Raises `UnsupportedMediaType` where it is no JSON."""
        if self.media_type != "application/json" and not self.media_type.endswith("+json"):
            raise UnsupportedMediaType("Send the request as JSON, with the header `Content-Type: application/json`.")
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Of the body, within its limit. Raises `RequestTimeout` where the client stops sending."""
        limit, received = self._settings.max_body_bytes, 0
        async with aclosing(self._request.stream()) as stream:
            while (chunk := await self._next(stream)) is not None:
                received += len(chunk)
                if received > limit:
                    raise BodyTooLarge(f"The request body is larger than the limit of {limit} bytes.")
                self._reservation.hold(received)
                yield chunk

    async def _next(self, stream: AsyncGenerator[bytes, None]) -> bytes | None:
        try:
            async with asyncio.timeout(self._settings.receive_timeout):
                return await anext(stream, None)
        except TimeoutError:
            raise RequestTimeout("The rest of the request did not arrive in time.") from None
        except ClientDisconnect:
            raise ClientGone from None

    async def run(self, function: Callable[..., T], *args: object, large: bool) -> T:
        """Call a function that computes: here when that is quick, else in a thread of our own."""
        if not large:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def hold(self, job: Job) -> None:
        """The body is gone, and the job is what is held from now on."""
        self._reservation.hold(job.spool_bytes + job.text_bytes)


Accept = Callable[[Arrival], Awaitable[Accepted]]


class Reception:
    """Takes requests in, for all endpoints that ask the model."""

    def __init__(self, settings: Settings, pending: PendingTable, spool: Spool) -> None:
        self._settings = settings
        self._pending = pending
        self._spool = spool
        self._room = Room(settings.queue_bytes // settings.api_servers, self._refusal)
        self._door = Door()
        self._requests = KeyLimit(settings.requests_per_minute, REQUESTS)
        self._audio = KeyLimit(settings.audio_seconds_per_minute, AUDIO)
        self._kept = KeptAudio(spool, settings.uuid_cache_mb * MB // settings.api_servers)
        self._threads = ThreadPoolExecutor(PARSE_THREADS, thread_name_prefix="parse")

    def _refusal(self) -> Overloaded:
        message = "Too many bytes of text and audio are waiting. Try again later."
        return Overloaded(message, retry_after_s=self._pending.retry_after_s)

    @property
    def is_open(self) -> bool:
        return self._door.is_open

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

    async def serve(self, request: Request, accept: Accept) -> Response:
        """The response to a request, which `accept` reads. Raises the error that it ends with before its answer."""
        deadline = self._deadline(request)
        held = ExitStack()
        try:
            held.enter_context(self._door.enter())
            self._pending.check_room()  # a full server reads no bodies
            owner, headers = owner_of(request.scope, self._settings.keys), request.scope[ANSWER_HEADERS]
            self._audio.check(owner, headers)
            self._requests.take(owner, headers)
            accepted = await self._accept_until(deadline, accept, request, held)
            job = replace(accepted.job, deadline=deadline)
            events = self._events(job, accepted.streams, owner, held)
            return await while_connected(request.receive, _answered(accepted, events))
        except BaseException:
            held.close()
            raise

    def _deadline(self, request: Request) -> float:
        """When the request's time is over, of time.monotonic(). Its header can shorten what the server allows."""
        limit = self._settings.request_timeout
        if given := request.headers.get("x-request-timeout"):
            limit = min(limit, _seconds(given))
        return time.monotonic() + limit

    async def _accept_until(self, deadline: float, accept: Accept, request: Request, held: ExitStack) -> Accepted:
        reservation = held.enter_context(closing(self._room.reserve()))
        files = held.enter_context(closing(self._spool.files()))
        arrival = Arrival(request, self._settings, self._threads, reservation, files, self._kept)
        try:
            async with self._door.coming(deadline):
                accepted = await accept(arrival)
        except TimeoutError:
            raise DeadlineExceeded("The request's time was over before all of it had arrived.") from None
        arrival.hold(accepted.job)
        return accepted

    async def _events(self, job: Job, streams: bool, owner: str, held: ExitStack) -> Events:
        """Run the job. Its spool files and its reservation are gone when this generator is closed."""
        heard_s = 0.0
        with held:
            async with aclosing(self._pending.submit(job, whole=not streams)) as events:
                async for event in events:
                    if event.usage is not None and not heard_s:  # the choices heard the same
                        heard_s = event.usage.heard.seconds_received
                        self._audio.count(owner, heard_s)
                    yield event


async def _answered(accepted: Accepted, events: Events) -> Response:
    try:
        return await accepted.answer(events)
    except BaseException:
        await events.aclose()
        raise


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
