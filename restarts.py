"""When a worker that died is started anew: at once, then later and later, and no more where it never lasts. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 8.0
SHORTEST_LIFE_S = 10.0


@dataclass
class Lives:
    """The lives of one worker. Times are of one clock, in seconds.

    A life was too short where the worker never got ready, or then lived for less time than it had taken to load, or for
    less than `SHORTEST_LIFE_S`. `short` counts those since the last one that was long enough.
    """

    max_restarts: int
    started_at: float = 0.0
    ready_at: float | None = None
    short: int = 0

    def start(self, now: float) -> None:
        self.started_at, self.ready_at = now, None

    def ready(self, now: float) -> None:
        self.ready_at = now

    def die(self, now: float) -> float | None:
        """Seconds until it is to be started anew; `None`: it is not worth it."""
        self.short = self.short + 1 if self._was_short(now) else 0
        if self.short > self.max_restarts:
            return None
        return 0.0 if self.short < 2 else min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self.short - 2))

    def _was_short(self, now: float) -> bool:
        if self.ready_at is None:
            return True
        return now - self.ready_at < max(SHORTEST_LIFE_S, self.ready_at - self.started_at)
