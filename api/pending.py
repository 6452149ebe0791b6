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
from dataclasses import dataclass, field, replace
from typing import Protocol

from errors import DeadlineExceeded, EardrumError, Overloaded, Unavailable, WorkerDied, rebuild
from wire import Capabilities, Delta, Event, Failed, Finished, Heartbeat, Job, JobId, Ready, Started

log = logging.getLogger("eardrum.api")

LAST_WORDS_S = 1.0  # what a worker sent before it died has arrived by then
MAX_SUBMISSIONS = 3


class Link(Protocol):
    """The way to the workers."""

    api_server: int

    async def send(self, job: Job) -> None:
        """Queue a job for whichever worker has room first."""

    def cancel(self, job_id: JobId) -> None:
        """Tell the workers that nobody waits for a job any more. Does not block."""

    def watch(self, ready: Ready) -> None:
        """A worker is there; call `PendingTable.worker_died` as soon as it is not."""


@dataclass
class _Worker:
    ready: Ready
    heard_at: float  # time.monotonic()


@dataclass(eq=False)
class _Entry:
    """One waiting request. Its job may stand in the queue under several ids, of which the first that starts counts."""

    job: Job
    open_choices: int
    ids: list[JobId]
    started: Started | None = None
    failed: bool = False
    events: deque[Delta | Finished | Failed] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, event: Delta | Finished | Failed) -> None:
        self.events.append(event)
        self.arrived.set()

    def fail(self, error: EardrumError) -> None:
        self.put(Failed(self.job.id, *error.fields()))

    async def next(self, until: float) -> Delta | Finished | Failed:
        """The next event; waits for it until the loop's time `until`. Raises `TimeoutError`."""
        async with asyncio.timeout_at(until):
            while not self.events:
                self.arrived.clear()
                await self.arrived.wait()
        return self.events.popleft()


class PendingTable:
    """One for an API process; used from its event loop only. `max_waiting`: requests that no worker has taken yet."""

    def __init__(self, link: Link, max_waiting: int, request_timeout_s: float, heartbeat_max_age_s: float) -> None:
        self._link = link
        self._max_waiting = max_waiting
        self._request_timeout_s = request_timeout_s
        self._heartbeat_max_age_s = heartbeat_max_age_s
        self._entries: dict[JobId, _Entry] = {}
        self._workers: dict[int, _Worker] = {}  # by pid
        self._sending: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------ towards the routes

    def new_job_id(self) -> JobId:
        return JobId(self._link.api_server, uuid.uuid4().hex)

    def check_room(self) -> None:
        """Raise `Overloaded` when too many requests wait for a worker, `Unavailable` when no worker lives."""
        if not self.is_ready:
            raise Unavailable("No worker is ready. Try again shortly.")
        if sum(entry.started is None for entry in self._requests()) >= self._max_waiting:
            raise Overloaded("Too many requests are waiting. Try again shortly.")

    async def submit(self, job: Job) -> AsyncGenerator[Delta | Finished, None]:
        """The events of a job, until each of its choices has finished. Raises the `EardrumError` it failed with.

        Close the generator to give up; the worker drops the job within a step.
        """
        self.check_room()
        until = asyncio.get_running_loop().time() + self._request_timeout_s
        job = replace(job, deadline=time.monotonic() + self._request_timeout_s)
        entry = self._entries[job.id] = _Entry(job, job.sampling.n, [job.id])
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
            for id_ in entry.ids:
                del self._entries[id_]
                if entry.open_choices and not entry.failed:
                    self._link.cancel(id_)

    def _requests(self) -> Iterable[_Entry]:
        """Each entry once, under however many ids its job was submitted."""
        return dict.fromkeys(self._entries.values())

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

    def deliver(self, event: Event) -> None:
        match event:
            case Ready():
                self._workers[event.pid] = _Worker(event, time.monotonic())
                self._link.watch(event)
            case Heartbeat():
                if event.pid in self._workers:
                    self._workers[event.pid].heard_at = time.monotonic()
            case Started():
                self._start(event)
            case Delta() | Finished() | Failed():
                entry = self._entries.get(event.job_id)
                if entry and entry.started and entry.started.job_id == event.job_id:
                    entry.put(event)

    def _start(self, event: Started) -> None:
        entry = self._entries.get(event.job_id)
        if entry is None or entry.started:  # the client left while the job was queued, or it has started elsewhere
            self._link.cancel(event.job_id)
        elif event.pid in self._workers:  # else its last words: it has died since, and the job is submitted again
            entry.started = event

    def worker_died(self, pid: int) -> None:
        """Fail what the worker had begun, and soon submit again what nobody has begun: it may have taken a job from the
        queue and died before it could say so."""
        self._workers.pop(pid, None)
        lost = [entry for entry in self._requests() if entry.started and entry.started.pid == pid]
        log.error("worker %d died; %d requests fail", pid, len(lost))
        for entry in lost:
            entry.fail(WorkerDied("The worker died while it was processing the request."))
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._submit_again)

    def _submit_again(self) -> None:
        """What has not started, under new ids. Of a job that was in the queue all the time, too, one start counts."""
        for entry in self._requests():
            if entry.started or len(entry.ids) == MAX_SUBMISSIONS:
                continue
            again = replace(entry.job, id=self.new_job_id())
            entry.ids.append(again.id)
            self._entries[again.id] = entry
            task = asyncio.ensure_future(self._link.send(again))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
