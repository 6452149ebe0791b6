"""The other side of the pending table: the way to the workers, and what is known of each."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from api.blame import Name
from wire import Job, JobId, Ready

HEARTBEAT_S = 2.0  # two of them
MAX_LEFT = 256


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
    ready, and one that makes no progress for `step_timeout_s` is killed. A worker runs `rows` jobs side by side, of
    `api_servers` processes."""

    max_waiting: int
    heartbeat_max_age_s: float
    step_timeout_s: float
    rows: int = 16
    api_servers: int = 1


@dataclass(frozen=True)
class Leaver:
    """A request that was given up while a worker had it."""

    name: Name
    left_at: float
    was_alone: bool


@dataclass
class Worker:
    """One that lives, as far as is known."""

    ready: Ready
    heard_at: float  # time.monotonic()
    step_s: float = 0.0
    left: deque[Leaver] = field(default_factory=lambda: deque(maxlen=MAX_LEFT))
    has_left: float = -math.inf  # when the last one left, also if it has no name

    def stuck_s(self, now: float) -> float:
        """How long nothing can have moved in it."""
        return max(self.step_s, now - self.heard_at)

    def may_have(self, left_at: float) -> bool:
        """Whether it died before it had dropped what was given up then: within a step, or a heartbeat."""
        return left_at >= self.heard_at - self.step_s - HEARTBEAT_S
