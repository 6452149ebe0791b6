"""How many seconds of decoded audio the jobs of a worker may hold together: who comes while there is no room waits.

Used from one event loop. This file knows neither audio nor jobs, only keys and seconds.

    reserve ── waits its turn ──▶ holds ── settle: so much it really is ──▶ holds ── release: the job has ended
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass
class _Claim:
    seconds: float
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class AudioBudget:
    """Seconds of audio, lent to jobs in the order in which they ask."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._claims: dict[Hashable, _Claim] = {}  # in the order in which they came; those that wait are the last ones

    @property
    def held_s(self) -> float:
        """What all that were let in hold. Over the limit only where one alone is."""
        return sum(claim.seconds for claim in self._claims.values() if claim.admitted.is_set())

    async def reserve(self, key: Hashable, seconds: float) -> None:
        """Returns once `seconds` fit beside what the others hold, first come, first served; one that is larger than
        all there is, once nobody holds anything. Cancelling leaves no trace."""
        assert key not in self._claims, "who asks for more lets go first: nobody waits while it holds"
        claim = self._claims[key] = _Claim(seconds)
        self._admit()
        try:
            await claim.admitted.wait()
        except asyncio.CancelledError:  # it may have been let in already, and not know it yet
            self.release(key)
            raise

    def settle(self, key: Hashable, seconds: float) -> None:
        """What was reserved for `key` is really `seconds`. One that was released meanwhile stays so."""
        if key in self._claims:
            self._claims[key].seconds = seconds
            self._admit()

    def release(self, key: Hashable) -> None:
        """`key` holds nothing any more; one that never did is no error. Who still waits in `reserve` is to be cancelled
        by its caller."""
        self._claims.pop(key, None)
        self._admit()

    def _admit(self) -> None:
        for claim in self._claims.values():
            if claim.admitted.is_set():
                continue
            if self.held_s + min(claim.seconds, self._max_seconds) > self._max_seconds:
                return
            claim.admitted.set()
