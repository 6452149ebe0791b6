"""One request of the pending table: its job, where that is, and what has come of it so far."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace

from api.blame import Name
from errors import DeadlineExceeded, EardrumError, WorkerDied
from wire import Delta, Failed, Finished, Job, JobId


@dataclass(eq=False)
class Entry:
    """A job that is sent again has a new id, so that what its dead worker said is not heard."""

    job: Job
    arrival: int
    whole: bool  # nothing is handed out before all of it is here
    open_choices: int
    name: Name | None = None  # where it is known
    worker: int | None = None  # pid of the one that has taken it
    has_lost: bool = False  # a worker that had taken it died
    spoken: bool = False  # the worker has begun to answer it
    handed_out: bool = False
    failed: bool = False
    events: deque[Delta | Finished | Failed] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        """No more events will come."""
        return self.failed or not self.open_choices

    def put(self, event: Delta | Finished | Failed) -> None:
        if isinstance(event, Failed):
            self.failed = True
            if self.whole:
                self.events.clear()
        elif isinstance(event, Finished):
            self.open_choices -= 1
        self.spoken = True
        self.events.append(event)
        self.arrived.set()

    def fail(self, error: EardrumError) -> None:
        self.put(Failed(self.job.id, *error.fields()))

    def start_over(self, job_id: JobId, alone: bool) -> None:
        self.job = replace(self.job, id=job_id, alone=alone)
        self.open_choices, self.spoken = self.job.sampling.n, False
        self.events.clear()

    async def next(self) -> Delta | Finished | Failed | None:
        """The next event, `None` after the last. Raises `TimeoutError` when the job's time is over."""
        async with asyncio.timeout_at(self.job.deadline):  # the loop's clock is time.monotonic(), too
            while not (self.is_over or (self.events and not self.whole)):
                self.arrived.clear()
                await self.arrived.wait()
        self.handed_out = True
        return self.events.popleft() if self.events else None

    def too_late(self) -> EardrumError:
        """The error of one whose time is over."""
        if self.has_lost and self.worker is None:
            return WorkerDied("The worker died while it was processing the request, and no other took it in time.")
        return DeadlineExceeded(
            "The request's time is over. It is what `x-request-timeout` says, or the server's limit."
        )
