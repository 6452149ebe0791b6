"""Which requests workers died of: whose worker died how often, and who is refused for it.

A request is known by all that is in it, its audio included, so it is known again when it comes again, and its copies
are known with it. Kept in this process only, and for a while: what a request does to a worker may change with the next
one.

    there at two deaths ──▶ suspicious: alone in a worker from now on ── a worker survives it ──▶ forgiven
                                             │ its worker dies
    twice the only one there ────────────────┴──▶ refused
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wire import AudioPart, Job, JobId, TextPart

SUSPICIOUS_DEATHS = 2.0  # one may be a coincidence
RUNNING, WAITING = 1.0, 0.5  # what a death counts for who was likely in one of the worker's rows, or not yet
KEPT_S = 600.0
MAX_KEPT = 1024
_NOBODY = JobId(0, "")

Name = tuple[object, str]  # of a request: a rough look, and a fingerprint


@dataclass(frozen=True)
class Case:
    """What is known of one request. `deaths`: of workers that had it; `lone_deaths`: of workers that had only it."""

    deaths: float = 0.0
    lone_deaths: int = 0
    is_refused: bool = False

    @property
    def is_suspicious(self) -> bool:
        return self.deaths >= SUSPICIOUS_DEATHS


INNOCENT = Case()


class Blame:
    """The cases of one API process."""

    def __init__(self) -> None:
        self._cases: dict[Name, tuple[Case, float]] = {}  # until when, in time.monotonic()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="blame")

    async def known(self, job: Job) -> Name | None:
        """The name of a request that may be known. Reads its audio only where a known one looks alike."""
        look = _look(job)
        return await self.name(job) if any(other == look for other, _ in self._cases) else None

    async def name(self, job: Job) -> Name | None:
        """None where its audio is gone, and so is who asked. In a thread, as that may be much."""
        with suppress(OSError):
            return await asyncio.get_running_loop().run_in_executor(self._reader, name_of, job)
        return None

    def case(self, name: Name | None) -> Case:
        now = time.monotonic()
        case, until = self._cases.get(name, (INNOCENT, now)) if name else (INNOCENT, now)
        return case if until > now else INNOCENT

    def note_death(self, weights: Mapping[Name, float], alone: bool, refuse: Set[Name]) -> None:
        """A worker died that had these. `alone`: only one was there; `refuse`: those that it was to survive alone."""
        for name, weight in weights.items():
            old = self.case(name)
            lone_deaths = old.lone_deaths + alone
            is_refused = old.is_refused or name in refuse or lone_deaths >= SUSPICIOUS_DEATHS
            case = Case(old.deaths + weight, lone_deaths, is_refused)
            self._cases.pop(name, None)
            self._cases[name] = case, time.monotonic() + KEPT_S
        while len(self._cases) > MAX_KEPT:
            del self._cases[next(iter(self._cases))]

    def forgive(self, name: Name) -> None:
        """A worker has survived it."""
        self._cases.pop(name, None)


def name_of(job: Job) -> Name:
    """The same for two requests if all is the same that the model is asked, whenever and by whomever. Reads the job's
    audio. Raises `OSError` where that is gone."""
    messages = tuple(replace(message, parts=tuple(map(_named, message.parts))) for message in job.messages)
    asked = replace(job, id=_NOBODY, deadline=None, alone=False, messages=messages)
    return _look(job), hashlib.sha256(repr(asked).encode()).hexdigest()


def _look(job: Job) -> object:
    return job.spool_bytes, job.sampling


def _named(part: TextPart | AudioPart) -> TextPart | AudioPart:
    """An audio by what is in its file, as the file's name is new each time."""
    if isinstance(part, AudioPart) and part.path is not None:
        return replace(part, path=hashlib.sha256(Path(part.path).read_bytes()).hexdigest())
    return part
