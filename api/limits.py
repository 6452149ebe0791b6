"""How many requests one key may send: a window of a minute that moves on. Told in OpenAI's headers.

For this API process alone, and for what asks the model alone. Without keys all clients are one.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

from errors import RateLimited

WINDOW_S = 60.0


class RequestLimit:
    """At most `per_minute` requests of each owner in any minute; `None`: any number. Used from one event loop."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._taken: defaultdict[str, deque[float]] = defaultdict(deque)  # when, by the clock, oldest first

    def take(self, owner: str, headers: dict[str, str]) -> None:
        """Count a request, and put into `headers` what is left. One that is refused does not count. Raises
        `RateLimited`."""
        if self._per_minute is None:
            return
        now, taken = self._clock(), self._taken[owner]
        while taken and taken[0] <= now - WINDOW_S:
            taken.popleft()
        allowed = len(taken) < self._per_minute
        if allowed:
            taken.append(now)
        headers["x-ratelimit-limit-requests"] = str(self._per_minute)
        headers["x-ratelimit-remaining-requests"] = str(self._per_minute - len(taken))
        headers["x-ratelimit-reset-requests"] = f"{max(0.0, taken[-1] + WINDOW_S - now):.3f}s"  # to the full number
        if not allowed:
            wait_s = max(1, math.ceil(taken[0] + WINDOW_S - now))
            message = f"Your limit of {self._per_minute} requests in a minute is reached. Try again in {wait_s} s."
            raise RateLimited(message, retry_after_s=wait_s)
