"""The queue of jobs in the manager process: API processes put them in, workers take them.

Taking a job and telling its API process so is one act, done here. A worker that dies has therefore either left a job in
the queue, or is known to have taken it; nothing is lost between the two.

A job that is to be alone in its worker waits until one is empty. Where all are busy, one of them is emptied: it gets
nothing more for a while. Between two such jobs all others have a turn that is as long.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import insort
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from wire import Event, Job, JobId, Started

EMPTYING_S = 10.0  # most answers have ended by then; where one has not, all others need not wait for it
RECESS_S = 30.0  # until it is tried again

Ticket = tuple[int, int, Job]  # priority, turn


class Outbox(Protocol):
    """The way to one API process."""

    def put(self, message: object) -> None: ...


class JobQueue:
    """Lower priorities go first, of one priority those who came first. Called by the manager's threads, one for each
    process that it talks with.

    `outboxes`: one for each API process; `envelope` makes a message for them. `clock`: that of deadlines.
    """

    def __init__(
        self,
        outboxes: Sequence[Outbox],
        envelope: Callable[[list[Event]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outboxes = outboxes
        self._envelope = envelope
        self._clock = clock
        self._jobs: list[Ticket] = []
        self._turns = count(1)
        self._emptying: int | None = None  # pid of the worker that is being emptied
        self._emptying_until = self._recess_until = 0.0
        self._alone_since: dict[int, float] = {}  # by pid of the worker that has a job alone
        self._lock = threading.Lock()

    def put(self, job: Job, first: bool = False) -> None:
        """Queue a job; `first`: before all others of its priority, as one that had its turn."""
        with self._lock:
            turn = next(self._turns)
            self._insert((job.priority, -turn if first else turn, job))

    def take(self, pid: int, empty: bool) -> Job | None:
        """The next job for the worker `pid`, once its API process has been told; `None` where there is none for it.
        `empty`: it holds no job. Drops jobs whose time is over: nobody waits for them."""
        with self._lock:
            ticket = self._next(pid, empty, self._clock())
        if ticket is None:
            return None
        job = ticket[2]
        try:
            self._outboxes[job.id.api_server].put(self._envelope([Started(job.id, pid)]))
        except BaseException:
            with self._lock:
                self._insert(ticket)
            raise
        return job

    def discard(self, job_id: JobId) -> None:
        """Forget a job that nobody waits for. One that has been taken is no error."""
        with self._lock:
            self._jobs = [ticket for ticket in self._jobs if ticket[2].id != job_id]

    def _insert(self, ticket: Ticket) -> None:
        insort(self._jobs, ticket, key=lambda each: each[:2])

    def _next(self, pid: int, empty: bool, now: float) -> Ticket | None:
        self._jobs = [each for each in self._jobs if each[2].deadline is None or each[2].deadline > now]
        self._look_at_workers(pid, now)
        in_recess = now < self._recess_until and not all(job.alone for *_, job in self._jobs)
        for index, (*_, job) in enumerate(self._jobs):
            if job.alone and in_recess:
                continue
            if job.alone and not empty:
                if self._is_to_empty(pid, now):
                    return None
                continue
            if job.alone:
                self._alone_since[pid] = now
            return self._jobs.pop(index)
        return None

    def _look_at_workers(self, pid: int, now: float) -> None:
        """Whether one has ended what it had alone, or was to be emptied and is not, or has died."""
        if pid in self._alone_since:
            self._recess_until = 2 * now - self._alone_since.pop(pid)
        self._alone_since = {each: since for each, since in self._alone_since.items() if _lives(each)}
        if self._emptying is not None and now > self._emptying_until:
            self._emptying, self._recess_until = None, now + RECESS_S
        if not any(job.alone for *_, job in self._jobs) or (self._emptying and not _lives(self._emptying)):
            self._emptying = None

    def _is_to_empty(self, pid: int, now: float) -> bool:
        if self._emptying is None:
            self._emptying, self._emptying_until = pid, now + EMPTYING_S
        return self._emptying == pid


def _lives(pid: int) -> bool:
    """Whether a worker does; its main process sees to it at once that a dead one's pid is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
