"""The table of waiting requests of one API process, and the seam to the workers: `submit(job) -> events`.

A request is in the table from `submit` until its generator is closed, however that comes about; what has not ended by
then is cancelled at the worker. This file knows no transport: a `Link` takes jobs and cancellations to the workers, and
whoever receives events calls `deliver`.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from errors import DeadlineExceeded, Overloaded, Unavailable, WorkerDied, rebuild
from wire import Capabilities, Delta, Event, Failed, Finished, Heartbeat, Job, JobId, Ready, Started

log = logging.getLogger("eardrum.api")


class Link(Protocol):
    """The way to the workers."""

    api_server: int

    async def send(self, job: Job) -> None:
        """Queue a job for whichever worker has room first."""

    def cancel(self, job_id: JobId) -> None:
        """Tell the workers that nobody waits for a job any more. Does not block."""

    def watch(self, ready: Ready) -> None:
        """A worker is there; call `PendingTable.worker_died` as soon as it is not."""


@dataclass(frozen=True)
class Bounds:
    """How much may wait for a worker: requests, and bytes of audio in the spool."""

    requests: int
    audio_bytes: int


@dataclass
class _Worker:
    ready: Ready
    heard_at: float  # time.monotonic()


@dataclass(eq=False)
class _Entry:
    """One waiting request: what has arrived for it and was not read yet."""

    job: Job
    open_choices: int
    events: deque[Delta | Finished | Failed] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    worker_pid: int | None = None
    failed: bool = False

    def put(self, event: Delta | Finished | Failed) -> None:
        self.events.append(event)
        self.arrived.set()

    async def next(self, until: float) -> Delta | Finished | Failed:
        """The next event; waits for it until the loop's time `until`. Raises `TimeoutError`."""
        async with asyncio.timeout_at(until):
            while not self.events:
                self.arrived.clear()
                await self.arrived.wait()
        return self.events.popleft()


class PendingTable:
    """One for an API process; used from its event loop only."""

    def __init__(self, link: Link, bounds: Bounds, request_timeout_s: float, heartbeat_max_age_s: float) -> None:
        self._link = link
        self._bounds = bounds
        self._request_timeout_s = request_timeout_s
        self._heartbeat_max_age_s = heartbeat_max_age_s
        self._entries: dict[JobId, _Entry] = {}
        self._workers: dict[int, _Worker] = {}

    # ------------------------------------------------------------------------------------------ towards the routes

    def new_job_id(self) -> JobId:
        return JobId(self._link.api_server, uuid.uuid4().hex)

    def check_room(self, audio_bytes: int) -> None:
        """Raise `Overloaded` when a request with so many bytes of audio cannot wait here, `Unavailable` when no worker
        lives. Asked before a large body is read, too."""
        if not self.is_ready:
            raise Unavailable("No worker is ready. Try again shortly.")
        waiting = [entry.job for entry in self._entries.values() if entry.worker_pid is None]
        if len(waiting) >= self._bounds.requests:
            raise Overloaded("Too many requests are waiting. Try again shortly.")
        if sum(job.spool_bytes for job in waiting) + audio_bytes > self._bounds.audio_bytes:
            raise Overloaded("Too much audio is waiting. Try again shortly.")

    async def submit(self, job: Job) -> AsyncGenerator[Delta | Finished, None]:
        """The events of a job, until each of its choices has finished. Raises the `EardrumError` it failed with.

        Close the generator to give up; the worker drops the job within a step.
        """
        self.check_room(job.spool_bytes)
        until = asyncio.get_running_loop().time() + self._request_timeout_s
        entry = self._entries[job.id] = _Entry(job, job.sampling.n)
        try:
            await self._link.send(job)
            while entry.open_choices:
                event = await entry.next(until)
                if isinstance(event, Failed):
                    entry.failed = True
                    raise rebuild(event.kind, event.message, event.param)
                if isinstance(event, Finished):
                    entry.open_choices -= 1
                yield event
        except TimeoutError:
            raise DeadlineExceeded(f"The request took longer than {self._request_timeout_s:g} seconds.") from None
        finally:
            del self._entries[job.id]
            if entry.open_choices and not entry.failed:
                self._link.cancel(job.id)

    @property
    def num_pending(self) -> int:
        return len(self._entries)

    @property
    def is_ready(self) -> bool:
        """Whether a worker was heard of lately."""
        oldest = time.monotonic() - self._heartbeat_max_age_s
        return any(worker.heard_at > oldest for worker in self._workers.values())

    @property
    def capabilities(self) -> Capabilities | None:
        """What the served model takes; `None` until a worker has said so."""
        return next((worker.ready.capabilities for worker in self._workers.values()), None)

    # ----------------------------------------------------------------------------------------- towards the workers

    def deliver(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Ready():
                    self._workers[event.pid] = _Worker(event, time.monotonic())
                    self._link.watch(event)
                case Heartbeat():
                    if event.pid in self._workers:
                        self._workers[event.pid].heard_at = time.monotonic()
                case Started():
                    self._started(event)
                case Delta() | Finished() | Failed():
                    if event.job_id in self._entries:
                        self._entries[event.job_id].put(event)

    def _started(self, event: Started) -> None:
        entry = self._entries.get(event.job_id)
        if entry is None:  # the client left while the job was in the queue
            self._link.cancel(event.job_id)
        else:
            entry.worker_pid = event.pid

    def worker_died(self, pid: int) -> None:
        """Fail what the worker had begun. What still waits in the queue is another worker's."""
        self._workers.pop(pid, None)
        lost = [entry for entry in self._entries.values() if entry.worker_pid == pid]
        log.error("worker %d died; %d requests fail", pid, len(lost))
        for entry in lost:
            died = WorkerDied("The worker died while it was processing the request.")
            entry.put(Failed(entry.job.id, type(died).__name__, died.message))
