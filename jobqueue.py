"""The queue of jobs in the manager process: API processes put them in, workers take them.

Taking a job and telling its API process so is one act, done here. A worker that dies has therefore either left a job in
the queue, or is known to have taken it; nothing is lost between the two.
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


class Outbox(Protocol):
    """The way to one API process."""

    def put(self, message: object) -> None: ...


class JobQueue:
    """Lower priorities go first, of one priority those who came first. Called by the manager's threads, one for each
    process that it talks with.

    `outboxes`: one for each API process; `envelope` makes a message for them.
    """

    def __init__(self, outboxes: Sequence[Outbox], envelope: Callable[[list[Event]], object]) -> None:
        self._outboxes = outboxes
        self._envelope = envelope
        self._jobs: list[tuple[int, int, Job]] = []  # priority, turn
        self._turns = count(1)
        self._emptying: int | None = None  # pid of the worker that takes nothing more until it can take one alone
        self._lock = threading.Lock()

    def put(self, job: Job, first: bool = False) -> None:
        """Queue a job; `first`: before all others of its priority, as one that had its turn."""
        with self._lock:
            turn = next(self._turns)
            insort(self._jobs, (job.priority, -turn if first else turn, job), key=lambda each: each[:2])

    def take(self, pid: int, empty: bool) -> Job | None:
        """The next job for the worker `pid`, once its API process has been told; `None` where there is none. Drops jobs
        whose time is over: nobody waits for them.

        `empty`: it holds no job. Only such a worker gets one that is to be alone; where all are busy, one of them gets
        nothing until it is empty, and the others go on.
        """
        job = self._next(pid, empty)
        if job is not None:
            self._outboxes[job.id.api_server].put(self._envelope([Started(job.id, pid)]))
        return job

    def discard(self, job_id: JobId) -> None:
        """Forget a job that nobody waits for. One that has been taken is no error."""
        with self._lock:
            self._jobs = [each for each in self._jobs if each[2].id != job_id]

    def _next(self, pid: int, empty: bool) -> Job | None:
        with self._lock:
            now = time.monotonic()
            self._jobs = [each for each in self._jobs if each[2].deadline is None or each[2].deadline > now]
            lone = any(job.alone for *_, job in self._jobs)
            if not lone or (self._emptying is not None and not _lives(self._emptying)):
                self._emptying = None
            for index, (*_, job) in enumerate(self._jobs):
                if not job.alone or empty:
                    del self._jobs[index]
                    return job
                self._emptying = self._emptying or pid
                if self._emptying == pid:
                    return None
        return None


def _lives(pid: int) -> bool:
    """Whether a worker does; its main process sees to it at once that a dead one's pid is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
