"""How fast requests are served, measured while others wait: what `Retry-After` is computed from."""

from __future__ import annotations

import math
import time
from collections import deque

MEASURED_ENDS = 64
LONGEST_S = 60  # OpenAI's SDKs heed no more


class ServiceRate:
    """The ends of the last requests, as long as somebody was waiting: only a busy server shows how fast it is."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=MEASURED_ENDS)  # time.monotonic()

    def ended(self, num_waiting: int) -> None:
        """A request was served, and so many wait."""
        if not num_waiting:
            self._ends.clear()
        self._ends.append(time.monotonic())

    def wait_s(self, num_waiting: int) -> int:
        """Whole seconds until those who wait are served; 1 where nothing has been measured."""
        if len(self._ends) < 2:
            return 1
        per_request_s = (time.monotonic() - self._ends[0]) / (len(self._ends) - 1)
        return max(1, min(LONGEST_S, math.ceil(num_waiting * per_request_s)))
