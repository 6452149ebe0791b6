"""The table of waiting requests of one API process, and the seam to the workers: `submit(job) -> events`.

A request is in the table from `submit` until its generator is closed, however that comes about; what has not ended by
then is cancelled at the worker. This file knows no transport: a `Link` takes jobs and cancellations to the workers, and
whoever receives events calls `deliver`.

    submit ──▶ queued ── Started ──▶ taken ── Delta, Finished, Failed ──▶ over
                 ▲                     │ its worker dies
                 ├── nothing handed out: again, before all others
                 ├── and again, but one of several may be to blame: each alone, one after another
                 └── something handed out: over, with WorkerDied; to blame: over, with KillsWorkers
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from api.condemned import Condemned
from api.rate import ServiceRate
from errors import (
    DeadlineExceeded,
    EardrumError,
    KillsWorkers,
    Overloaded,
    StreamNotRead,
    Unavailable,
    WorkerDied,
    rebuild,
)
from wire import Capabilities, Delta, Event, Failed, Finished, Heartbeat, Job, JobId, Ready, Started

log = logging.getLogger("eardrum.api")

LAST_WORDS_S = 0.25  # what a worker sent before it died has arrived by then
CHECK_S = 1.0
MAX_UNREAD = 16_384  # events of one stream that its client has not taken yet: a few megabytes

KILLER = "Two workers died while they were processing this request. It is refused for some minutes."


class Link(Protocol):
    """The way to the workers."""

    api_server: int

    async def send(self, job: Job, first: bool = False) -> None:
        """Queue a job for whichever worker has room; `first`: before all others. Raises `Unavailable`."""

    def withdraw(self, job_id: JobId) -> None:
        """Take a job back that is still in the queue. Does not block."""

    def cancel(self, job_id: JobId) -> None:
        """Tell the workers that nobody waits for a job any more. Does not block."""

    def watch(self, ready: Ready) -> None:
        """A worker is there; call `PendingTable.worker_died` as soon as it is not."""

    def kill(self, pid: int) -> None:
        """End a worker that does not answer any more."""


@dataclass(frozen=True)
class Limits:
    """`max_waiting`: requests that no worker has taken yet. A worker that is silent for `heartbeat_max_age_s` is not
    ready, and one that makes no progress for `step_timeout_s` is killed."""

    max_waiting: int
    heartbeat_max_age_s: float
    step_timeout_s: float


@dataclass
class _Worker:
    ready: Ready
    heard_at: float  # time.monotonic()
    step_s: float = 0.0

    def stuck_s(self, now: float) -> float:
        """How long nothing can have moved in it."""
        return max(self.step_s, now - self.heard_at)


@dataclass(eq=False)
class _Entry:
    """One waiting request. A job that is sent again has a new id, so that what its dead worker said is not heard."""

    job: Job
    arrival: int
    whole: bool  # nothing is handed out before all of it is here
    open_choices: int
    worker: int | None = None  # pid of the one that has taken it
    deaths: int = 0  # of workers that had taken it
    alone: bool = False  # no other suspect is with a worker
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
        self.events.append(event)
        self.arrived.set()

    def fail(self, error: EardrumError) -> None:
        self.put(Failed(self.job.id, *error.fields()))

    def start_over(self, job_id: JobId) -> None:
        self.job = replace(self.job, id=job_id)
        self.worker, self.open_choices = None, self.job.sampling.n
        self.events.clear()

    async def next(self) -> Delta | Finished | Failed | None:
        """The next event, `None` after the last. Raises `TimeoutError` when the job's time is over."""
        async with asyncio.timeout_at(self.job.deadline):  # the loop's clock is time.monotonic(), too
            while not (self.is_over or (self.events and not self.whole)):
                self.arrived.clear()
                await self.arrived.wait()
        self.handed_out = True
        return self.events.popleft() if self.events else None


class PendingTable:
    """One for an API process; used from its event loop only."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self._link = link
        self._limits = limits
        self._entries: dict[JobId, _Entry] = {}
        self._arrivals = count()
        self._workers: dict[int, _Worker] = {}  # by pid
        self._rate = ServiceRate()
        self._condemned = Condemned()
        self._trials: deque[_Entry] = deque()  # suspects that wait to be tried alone
        self._on_trial: _Entry | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._checked_at = 0.0
        self._closed: EardrumError | None = None
        self.capabilities: Capabilities | None = None  # what the served model takes, once a worker has said so

    # ------------------------------------------------------------------------------------------ towards the routes

    def new_job_id(self) -> JobId:
        return JobId(self._link.api_server, uuid.uuid4().hex)

    def check_room(self) -> None:
        """Raise `Overloaded` when too many requests wait for a worker, `Unavailable` when no worker lives."""
        if self._closed:
            raise self._closed
        if not self.is_ready:
            raise Unavailable("No worker is ready. Try again shortly.")
        if self._num_waiting >= self._limits.max_waiting:
            raise Overloaded("Too many requests are waiting. Try again later.", retry_after_s=self.retry_after_s)

    @property
    def retry_after_s(self) -> int:
        """Seconds until those who wait now are served, as it goes at present."""
        return self._rate.wait_s(self._num_waiting)

    @property
    def _num_waiting(self) -> int:
        return sum(entry.worker is None and not entry.is_over for entry in self._entries.values())

    async def submit(self, job: Job, whole: bool = False) -> AsyncGenerator[Delta | Finished, None]:
        """The events of a job, until each of its choices has finished. Raises the `EardrumError` it failed with.

        `whole` holds them back until all are here, so that the job can be run again until then. Close the generator to
        give up; the worker drops the job within a step.
        """
        self.check_room()
        if job in self._condemned:
            raise KillsWorkers(KILLER)
        entry = self._entries[job.id] = _Entry(job, next(self._arrivals), whole, job.sampling.n)
        try:
            async with asyncio.timeout_at(job.deadline):
                await self._link.send(job)
            while event := await entry.next():
                if isinstance(event, Failed):
                    raise rebuild(event.kind, event.message, event.param)
                yield event
        except TimeoutError:
            raise _too_late(entry) from None
        finally:
            self._leave(entry)

    def close(self, error: EardrumError) -> None:
        """End every request with `error`, and those that come from now on."""
        self._closed = self._closed or error
        for entry in self._entries.values():
            self._give_up(entry, error)

    def _leave(self, entry: _Entry) -> None:
        del self._entries[entry.job.id]
        if entry.is_over:
            self._rate.ended(self._num_waiting)
        else:
            self._stop(entry)
        if entry in self._trials:
            self._trials.remove(entry)
        if entry is self._on_trial:
            self._on_trial = None
            self._try_next()

    def _give_up(self, entry: _Entry, error: EardrumError) -> None:
        if not entry.is_over:
            self._stop(entry)
            entry.fail(error)

    def _stop(self, entry: _Entry) -> None:
        if entry.worker is None:  # should a worker be taking it now, its Started is answered
            self._link.withdraw(entry.job.id)
        else:
            self._link.cancel(entry.job.id)

    @property
    def is_ready(self) -> bool:
        """Whether a worker was heard of lately."""
        oldest = time.monotonic() - self._limits.heartbeat_max_age_s
        return any(worker.heard_at > oldest for worker in self._workers.values())

    # ----------------------------------------------------------------------------------------- towards the workers

    def deliver(self, event: Event) -> None:
        match event:
            case Ready():
                self._workers[event.pid] = _Worker(event, time.monotonic())
                self.capabilities = event.capabilities
                self._link.watch(event)
            case Heartbeat():
                if worker := self._workers.get(event.pid):
                    worker.heard_at, worker.step_s = time.monotonic(), event.step_s
            case Started():
                self._start(event)
            case Delta() | Finished() | Failed():
                entry = self._entries.get(event.job_id)
                if entry and not entry.is_over:
                    self._put(entry, event)

    def _start(self, event: Started) -> None:
        entry = self._entries.get(event.job_id)
        if entry is None or entry.is_over:  # the client left while the job was queued
            self._link.cancel(event.job_id)
        else:
            entry.worker = event.pid
            if event.pid not in self._workers:  # the last thing that it did
                self._bury_soon(event.pid)

    def _put(self, entry: _Entry, event: Delta | Finished | Failed) -> None:
        if not entry.whole and len(entry.events) >= MAX_UNREAD:
            entry.events.clear()
            self._give_up(entry, StreamNotRead("The stream was not read, and more has gathered than is kept."))
        else:
            entry.put(event)

    async def check_forever(self) -> None:
        """Look after the workers."""
        while True:
            self.check_workers()
            await asyncio.sleep(CHECK_S)

    def check_workers(self) -> None:
        """Kill those that are stuck in a step, or do not say anything any more."""
        now, before = time.monotonic(), self._checked_at
        self._checked_at = now
        if now - before > 2 * CHECK_S:  # this process stood still itself, and has not read yet what they sent
            return
        for pid, worker in self._workers.items():
            if worker.stuck_s(now) > self._limits.step_timeout_s:
                log.error("worker %d has not moved for %.0f s and is killed", pid, worker.stuck_s(now))
                self._link.kill(pid)

    # ------------------------------------------------------------------------------------------------- deaths

    def worker_died(self, pid: int) -> None:
        """It takes no more jobs; those that it had taken are sorted out once its last words have arrived."""
        self._workers.pop(pid, None)
        self._bury_soon(pid)

    def _bury_soon(self, pid: int) -> None:
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._bury, pid)

    def _bury(self, pid: int) -> None:
        lost = [entry for entry in self._entries.values() if entry.worker == pid and not entry.is_over]
        log.error("worker %d died; requests that it had: %d", pid, len(lost))
        self._lose(lost)

    def _lose(self, lost: Sequence[_Entry]) -> None:
        """Requests whose worker died together. One that had lost a worker before is suspected of having killed both."""
        suspects = [entry for entry in lost if entry.deaths]
        again = []
        for entry in sorted(lost, key=lambda entry: entry.arrival):
            entry.worker = None
            entry.deaths += 1
            if entry.alone or suspects == [entry]:
                entry.fail(KillsWorkers(KILLER))
                with suppress(OSError):  # its audio cannot be read now: it may come again
                    self._condemned.add(entry.job)
            elif entry.handed_out:
                entry.fail(WorkerDied("The worker died while it was processing the request."))
            elif entry in suspects:
                self._trials.append(entry)
            else:
                again.append(entry)
        for entry in reversed(again):  # each goes before all others
            self._send_again(entry)
        self._try_next()

    def _try_next(self) -> None:
        if self._trials and self._on_trial is None:
            self._on_trial = entry = self._trials.popleft()
            entry.alone = True
            self._send_again(entry)

    def _send_again(self, entry: _Entry) -> None:
        del self._entries[entry.job.id]
        entry.start_over(self.new_job_id())
        self._entries[entry.job.id] = entry
        task = asyncio.ensure_future(self._send_first(entry))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_first(self, entry: _Entry) -> None:
        try:
            await self._link.send(entry.job, first=True)
        except EardrumError as error:
            entry.fail(error)


def _too_late(entry: _Entry) -> EardrumError:
    if entry.deaths and entry.worker is None:
        return WorkerDied("The worker died while it was processing the request, and no other took it in time.")
    return DeadlineExceeded("The request's time is over. It is what `x-request-timeout` says, or the server's limit.")
