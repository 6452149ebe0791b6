"""The queue of jobs in the manager process: API processes put them in, workers take them.

Taking a job and telling its API process so is one act, done here. A worker that dies has therefore either left a job in
the queue, or is known to have taken it; nothing is lost between the two.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from wire import Event, Job, JobId, Started


class Outbox(Protocol):
    """The way to one API process."""

    def put(self, message: object) -> None: ...


class JobQueue:
    """First come, first served. Called by the manager's threads, one for each process that it talks with.

    `outboxes`: one for each API process; `envelope` makes a message for them.
    """

    def __init__(self, outboxes: Sequence[Outbox], envelope: Callable[[list[Event]], object]) -> None:
        self._outboxes = outboxes
        self._envelope = envelope
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()

    def put(self, job: Job, first: bool = False) -> None:
        """Queue a job; `first`: before all others, as one that had its turn."""
        with self._lock:
            if first:
                self._jobs.appendleft(job)
            else:
                self._jobs.append(job)

    def take(self, pid: int) -> Job | None:
        """The next job for the worker `pid`, once its API process has been told; `None` where there is none. Drops jobs
        whose time is over: nobody waits for them."""
        job = self._next()
        if job is not None:
            self._outboxes[job.id.api_server].put(self._envelope([Started(job.id, pid)]))
        return job

    def discard(self, job_id: JobId) -> None:
        """Forget a job that nobody waits for. One that has been taken is no error."""
        with self._lock:
            self._jobs = deque(job for job in self._jobs if job.id != job_id)

    def _next(self) -> Job | None:
        with self._lock:
            while self._jobs:
                job = self._jobs.popleft()
                if job.deadline is None or job.deadline > time.monotonic():
                    return job
        return None
