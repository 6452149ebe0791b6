"""How much one key may ask for in a minute: requests, and seconds of audio. A window that moves on, told in headers.

For this API process alone, and for what asks the model alone. Without keys all clients are one.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

from errors import RateLimited

WINDOW_S = 60.0
LIMITED = REQUESTS, AUDIO = ("requests", "audio-seconds")  # in headers, as OpenAI and Groq write them


class KeyLimit:
    """At most `per_minute` of something, of each owner, in any minute; `None`: any amount. `unit`: one of
    `LIMITED`. Used from one event loop.

    What is known only afterwards is checked first and counted then, so the last before the limit may go over it.
    """

    def __init__(self, per_minute: float | None, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._unit = unit
        self._clock = clock
        self._taken: defaultdict[str, deque[tuple[float, float]]] = defaultdict(deque)  # (when, how much), oldest first

    def count(self, owner: str, amount: float) -> None:
        """So much was taken, now."""
        if self._per_minute is not None and amount > 0:
            self._taken[owner].append((self._clock(), amount))

    def check(self, owner: str, headers: dict[str, str], amount: float = 0.0) -> None:
        """Whether there is room for more, and what is left with `amount` gone, in `headers`. Raises `RateLimited`."""
        if self._per_minute is None:
            return
        now, taken = self._clock(), self._taken[owner]
        while taken and taken[0][0] <= now - WINDOW_S:
            taken.popleft()
        total = sum(each for _, each in taken)
        is_refused = total >= self._per_minute
        gone = 0.0 if is_refused else amount
        self._tell(headers, total + gone, self._full_s(owner, now, gone))
        if is_refused:
            wait_s = max(1, math.ceil(self._room_s(owner, total) - now))
            unit = self._unit.replace("-", " ")
            message = f"Your limit of {self._per_minute:g} {unit} in a minute is reached. Try again in {wait_s} s."
            raise RateLimited(message, retry_after_s=wait_s)

    def take(self, owner: str, headers: dict[str, str]) -> None:
        """Check, and count one. What is refused does not count. Raises `RateLimited`."""
        self.check(owner, headers, 1)
        self.count(owner, 1)

    def _tell(self, headers: dict[str, str], total: float, full_s: float) -> None:
        assert self._per_minute is not None, "a limit is told"
        headers[f"x-ratelimit-limit-{self._unit}"] = f"{self._per_minute:g}"
        headers[f"x-ratelimit-remaining-{self._unit}"] = f"{max(0.0, self._per_minute - total):.10g}"
        headers[f"x-ratelimit-reset-{self._unit}"] = f"{full_s:.3f}s"

    def _full_s(self, owner: str, now: float, amount: float) -> float:
        """Until all that was taken is forgotten."""
        last = now if amount else max((when for when, _ in self._taken[owner]), default=now - WINDOW_S)
        return max(0.0, last + WINDOW_S - now)

    def _room_s(self, owner: str, total: float) -> float:
        """When there is room again, by the clock."""
        assert self._per_minute is not None, "a limit is reached"
        for when, amount in self._taken[owner]:
            total -= amount
            if total < self._per_minute:
                return when + WINDOW_S
        raise AssertionError("with nothing taken there is room")
