"""An endpoint that asks the model: what is the same whatever API the client speaks.

An error before the first event is an HTTP error, also where a stream was asked for; a later one is the stream's last
event.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ClassVar, Generic, TypeVar

from fastapi import Request
from starlette.responses import Response

from api.answers import Reply
from api.form import Question, parse_as
from api.intake import Intake
from api.pending import PendingTable
from api.reception import INLINE_BYTES, Accepted, Arrival, Events, Reception
from config import Settings
from wire import Delta, Finished, Job, JobId

Q = TypeVar("Q", bound=Question)
Answer = Callable[[Delta | Finished, Events], Awaitable[Response]]


class ModelEndpoint(ABC):
    """Takes requests in by the reception. `check_model` raises for a model that is not served."""

    def __init__(
        self, settings: Settings, pending: PendingTable, reception: Reception, check_model: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._pending = pending
        self._reception = reception
        self._check_model = check_model

    async def __call__(self, request: Request) -> Response:
        return await self._reception.serve(request, self._accept)

    @abstractmethod
    async def _accept(self, arrival: Arrival) -> Accepted:
        """A valid request, read and turned into a job."""


class Endpoint(ModelEndpoint, Generic[Q]):
    """With a JSON body. A subclass says how requests are read and answered."""

    form: type[Q]
    id_prefix: ClassVar[str]  # of its answers

    async def _accept(self, arrival: Arrival) -> Accepted:
        """A valid request. Its body and its base64 are gone on return; only the spool holds audio then."""
        body = await arrival.json()
        large = len(body) > INLINE_BYTES
        asked = await arrival.run(parse_as, self.form, body, large=large)
        self.check_named(asked)
        self.check(asked, self._settings)
        job_id, max_bytes = self._pending.new_job_id(), self._settings.max_audio_bytes
        job = await arrival.run(self.build, asked, job_id, arrival.intake, max_bytes, large=large)
        reply = Reply(f"{self.id_prefix}{job_id.key}", int(time.time()), self._settings.public_name)
        return Accepted(job, bool(asked.stream), partial(self._answer, answer=self.answer(asked, reply)))

    async def _answer(self, events: Events, answer: Answer) -> Response:
        """The response to a valid request, once its first event is here."""
        return await answer(await anext(events), events)

    def check_named(self, asked: Q) -> None:
        """Raises `ModelNotFound` for a request to another model."""
        self._check_model(asked.model)

    @staticmethod
    @abstractmethod
    def check(asked: Q, settings: Settings, /) -> None:
        """Refuse what is over a limit before any audio is decoded. Raises `BadRequest`."""

    @staticmethod
    @abstractmethod
    def build(asked: Q, job_id: JobId, intake: Intake, max_audio_bytes: int, /) -> Job:
        """The job of a checked request. May run in a thread. Raises `BadRequest`."""

    @abstractmethod
    def answer(self, asked: Q, reply: Reply) -> Answer:
        """What makes the response of the first event and those to come. It must not hold `asked`, and with it audio."""
