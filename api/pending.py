"""The table of waiting requests of one API process, and the seam to the workers: `submit(job) -> events`.

A request is in the table from `submit` until its generator is closed, however that comes about; what has not ended by
then is cancelled at the worker. This file knows no transport: a `Link` takes jobs and cancellations to the workers, and
whoever receives events calls `deliver`.

    submit ──▶ queued ── Started ──▶ taken ── Delta, Finished, Failed ──▶ over
                 ▲                     │ its worker dies
                 ├── nothing handed out: again, before all others; after two deaths alone in a worker
                 └── something handed out: over, with WorkerDied; to blame: over, with KillsWorkers
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from api.blame import Blame, Case, Name
from api.entry import SUSPICIOUS_DEATHS, Entry
from api.rate import ServiceRate
from errors import (
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
LEFT_LATELY_S = 5.0
MAX_UNREAD = 16_384  # events of one stream that its client has not taken yet: a few megabytes

KILLER = "Workers die of this request. It is refused for some minutes."


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
    ready, and one that makes no progress for `step_timeout_s` is killed. `api_servers`: processes whose requests the
    workers have."""

    max_waiting: int
    heartbeat_max_age_s: float
    step_timeout_s: float
    api_servers: int = 1


@dataclass
class _Worker:
    ready: Ready
    heard_at: float  # time.monotonic()
    step_s: float = 0.0
    left_at: float = -math.inf  # when a request was last given up that it had

    def stuck_s(self, now: float) -> float:
        """How long nothing can have moved in it."""
        return max(self.step_s, now - self.heard_at)


class PendingTable:
    """One for an API process; used from its event loop only."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self._link = link
        self._limits = limits
        self._entries: dict[JobId, Entry] = {}
        self._arrivals = count()
        self._workers: dict[int, _Worker] = {}  # by pid
        self._rate = ServiceRate()
        self._blame = Blame()
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
        case = self._blame.of(job)
        if case.refused:
            raise KillsWorkers(KILLER)
        job = replace(job, alone=case.deaths >= SUSPICIOUS_DEATHS)
        entry = self._entries[job.id] = Entry(job, next(self._arrivals), whole, job.sampling.n, case.deaths)
        try:
            async with asyncio.timeout_at(job.deadline):
                await self._link.send(job)
            while event := await entry.next():
                if isinstance(event, Failed):
                    raise rebuild(event.kind, event.message, event.param)
                yield event
            if case.deaths:
                self._blame.forgive(job)
        except TimeoutError:
            raise entry.too_late() from None
        finally:
            self._leave(entry)

    def close(self, error: EardrumError) -> None:
        """End every request with `error`, and those that come from now on."""
        self._closed = self._closed or error
        for entry in self._entries.values():
            self._give_up(entry, error)

    def _leave(self, entry: Entry) -> None:
        del self._entries[entry.job.id]
        if entry.is_over:
            self._rate.ended(self._num_waiting)
        else:
            self._stop(entry)

    def _give_up(self, entry: Entry, error: EardrumError) -> None:
        if not entry.is_over:
            self._stop(entry)
            entry.fail(error)

    def _stop(self, entry: Entry) -> None:
        if entry.worker is None:  # should a worker be taking it now, its Started is answered
            self._link.withdraw(entry.job.id)
        else:
            self._link.cancel(entry.job.id)
            if worker := self._workers.get(entry.worker):
                worker.left_at = time.monotonic()

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
                self._bury_soon(event.pid, None)

    def _put(self, entry: Entry, event: Delta | Finished | Failed) -> None:
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
        self._bury_soon(pid, self._workers.pop(pid, None))

    def _bury_soon(self, pid: int, worker: _Worker | None) -> None:
        asyncio.get_running_loop().call_later(LAST_WORDS_S, lambda: self._run(self._bury(pid, worker)))

    async def _bury(self, pid: int, worker: _Worker | None) -> None:
        lost = self._had_by(pid)
        # Then nobody else can be to blame: not one who left a moment ago, nor one of another API process.
        sole = len(lost) == self._limits.api_servers == 1 and worker is not None and not self._left_lately(worker)
        names = await self._blame.names(entry.job for entry in lost if entry.deaths or entry.handed_out)
        lost = self._had_by(pid)  # somebody may have left meanwhile
        log.error("worker %d died; requests that it had: %d", pid, len(lost))
        self._lose(lost, sole, names)

    def _had_by(self, pid: int) -> list[Entry]:
        """The requests that a worker had, in the order in which they came."""
        had = (entry for entry in self._entries.values() if entry.worker == pid and not entry.is_over)
        return sorted(had, key=lambda entry: entry.arrival)

    def _left_lately(self, worker: _Worker) -> bool:
        """Whether it may have died of a request whose client did not wait for its end."""
        return time.monotonic() - worker.left_at < worker.step_s + LEFT_LATELY_S

    def _lose(self, lost: Iterable[Entry], sole: bool, names: Mapping[JobId, Name]) -> None:
        """Requests whose worker died. To blame is one that was alone with it, or twice the only one there."""
        again = []
        for entry in lost:
            entry.worker = None
            entry.deaths += 1
            to_blame = entry.job.alone or (sole and entry.deaths >= SUSPICIOUS_DEATHS)
            if entry.job.id in names:
                self._blame.note(names[entry.job.id], Case(entry.deaths, to_blame))
            if to_blame:
                entry.fail(KillsWorkers(KILLER))
            elif entry.handed_out:
                entry.fail(WorkerDied("The worker died while it was processing the request."))
            else:
                again.append(entry)
        for entry in reversed(again):  # each goes before all others
            self._send_again(entry)

    def _send_again(self, entry: Entry) -> None:
        del self._entries[entry.job.id]
        entry.start_over(self.new_job_id())
        self._entries[entry.job.id] = entry
        self._run(self._send_first(entry))

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_first(self, entry: Entry) -> None:
        try:
            await self._link.send(entry.job, first=True)
        except EardrumError as error:
            entry.fail(error)
