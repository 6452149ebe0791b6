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
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count

from api.blame import RUNNING, WAITING, Blame, name_of
from api.entry import Entry
from api.link import Leaver, Limits, Link, Worker
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
STUCK_S = 1.5  # a step that is longer, or a silence, is looked at
MAX_UNREAD = 16_384  # events of one stream that its client has not taken yet: a few megabytes

KILLER = "Workers die of this request. It is refused for some minutes."


class PendingTable:
    """One for an API process; used from its event loop only."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self._link = link
        self._limits = limits
        self._entries: dict[JobId, Entry] = {}
        self._arrivals = count()
        self._workers: dict[int, Worker] = {}  # by pid
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
        name = await self._blame.known(job)
        self.check_room()
        case = self._blame.case(name)
        if case.is_refused:
            raise KillsWorkers(KILLER)
        job = replace(job, alone=case.is_suspicious)
        entry = self._entries[job.id] = Entry(job, next(self._arrivals), whole, job.sampling.n, name)
        try:
            async with asyncio.timeout_at(job.deadline):
                await self._link.send(job)
            while event := await entry.next():
                if isinstance(event, Failed):
                    raise rebuild(event.kind, event.message, event.param)
                yield event
            if entry.name:
                self._blame.forgive(entry.name)
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
                self._note_leaver(worker, entry)

    def _note_leaver(self, worker: Worker, entry: Entry) -> None:
        """The worker may die of it yet. Its name is taken before its files go, where that costs little, or matters."""
        now = time.monotonic()
        worker.has_left = now
        if entry.job.alone or not entry.job.spool_bytes or worker.stuck_s(now) > STUCK_S:
            with suppress(OSError):
                worker.left.append(Leaver(entry.name or name_of(entry.job), now, entry.job.alone))

    @property
    def is_ready(self) -> bool:
        """Whether a worker was heard of lately."""
        oldest = time.monotonic() - self._limits.heartbeat_max_age_s
        return any(worker.heard_at > oldest for worker in self._workers.values())

    # ----------------------------------------------------------------------------------------- towards the workers

    def deliver(self, event: Event) -> None:
        match event:
            case Ready():
                self._workers[event.pid] = Worker(event, time.monotonic())
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
        log.error("worker %d died", pid)
        worker = self._workers.pop(pid, None)
        is_lone = self._limits.api_servers == 1 and len(self._had_by(pid)) == 1
        self._bury_soon(pid, worker, is_lone and worker is not None and not worker.may_have(worker.has_left))

    def _bury_soon(self, pid: int, worker: Worker | None = None, is_lone: bool = False) -> None:
        bury = partial(self._bury, pid, worker, is_lone)
        asyncio.get_running_loop().call_later(LAST_WORDS_S, lambda: self._run(bury()))

    def _had_by(self, pid: int) -> list[Entry]:
        """The requests that a worker had: first those that it had surely begun, then as they came."""
        had = (entry for entry in self._entries.values() if entry.worker == pid and not entry.is_over)
        return sorted(had, key=lambda entry: (not entry.spoken, entry.arrival))

    async def _bury(self, pid: int, worker: Worker | None, is_lone: bool) -> None:
        """Blame those that it had, and run again what can be. `is_lone`: only one was there."""
        lost = self._had_by(pid)
        for entry in lost:
            entry.name = entry.name or await self._blame.name(entry.job)
        self._note_death(lost, worker, is_lone and len(lost) == 1)
        again = [entry for entry in self._had_by(pid) if not self._has_ended(entry)]
        for entry in sorted(again, key=lambda entry: entry.arrival, reverse=True):  # each goes before all others
            self._send_again(entry)
        for entry in self._entries.values():  # copies of what is refused now, wherever they are
            if self._blame.case(entry.name).is_refused:
                self._give_up(entry, KillsWorkers(KILLER))

    def _note_death(self, lost: Sequence[Entry], worker: Worker | None, is_lone: bool) -> None:
        """Of all that were there, also of those whose clients have just left."""
        leavers = [leaver for leaver in worker.left if worker.may_have(leaver.left_at)] if worker else []
        weights = {leaver.name: RUNNING for leaver in leavers}
        for index, entry in enumerate(lost):
            if entry.name:
                weights.setdefault(entry.name, RUNNING if index < self._limits.rows else WAITING)
        alone = {entry.name for entry in lost if entry.job.alone} | {each.name for each in leavers if each.was_alone}
        self._blame.note_death(weights, alone=is_lone, refuse={name for name in alone if name})

    def _has_ended(self, entry: Entry) -> bool:
        """Of a request whose worker died: whether it cannot be run again."""
        entry.worker = None
        entry.has_lost = True
        if self._blame.case(entry.name).is_refused:
            entry.fail(KillsWorkers(KILLER))
        elif entry.handed_out:
            entry.fail(WorkerDied("The worker died while it was processing the request."))
        return entry.is_over

    def _send_again(self, entry: Entry) -> None:
        del self._entries[entry.job.id]
        entry.start_over(self.new_job_id(), self._blame.case(entry.name).is_suspicious)
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
