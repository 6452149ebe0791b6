"""Requests that were in workers when these died: how often, and which are refused for it.

A request is known by all that is in it, its audio included. Kept in this process only, and for a while: what a request
does to a worker may change with the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from wire import AudioPart, Job, JobId, Message, TextPart

KEPT_S = 600.0
MAX_KEPT = 256
_NOBODY = JobId(0, "")

Name = tuple[object, str]  # of a request: a rough look, and a fingerprint


@dataclass(frozen=True)
class Case:
    """What is known of one request. `deaths`: of workers that had it."""

    deaths: int = 0
    refused: bool = False


_INNOCENT = Case()


class Blame:
    """The cases of one API process."""

    def __init__(self) -> None:
        self._cases: dict[Name, tuple[Case, float]] = {}  # until when, in time.monotonic()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="blame")

    async def names(self, jobs: Iterable[Job]) -> dict[JobId, Name]:
        """Of those whose audio can still be read; in a thread, as that may be much."""
        names: dict[JobId, Name] = {}
        for job in jobs:
            with suppress(OSError):
                names[job.id] = await asyncio.get_running_loop().run_in_executor(self._reader, name_of, job)
        return names

    def note(self, name: Name, case: Case) -> None:
        self._cases.pop(name, None)
        self._cases[name] = case, time.monotonic() + KEPT_S
        while len(self._cases) > MAX_KEPT:
            del self._cases[next(iter(self._cases))]

    def of(self, job: Job) -> Case:
        """Reads the job's audio only where one that is known looks alike."""
        now = time.monotonic()
        self._cases = {name: (case, until) for name, (case, until) in self._cases.items() if until > now}
        look = _look(job)
        if all(other != look for other, _ in self._cases):
            return _INNOCENT
        case, _ = self._cases.get(name_of(job), (_INNOCENT, now))
        return case

    def forgive(self, job: Job) -> None:
        """A worker has survived it."""
        self._cases.pop(name_of(job), None)


def name_of(job: Job) -> Name:
    """The same for two requests if all is the same that the model is asked, whenever and by whomever. Reads the job's
    audio. Raises `OSError` where that is gone."""
    messages = tuple(Message(message.role, tuple(map(_named, message.parts))) for message in job.messages)
    asked = replace(job, id=_NOBODY, deadline=None, alone=False, messages=messages)
    return _look(job), hashlib.sha256(repr(asked).encode()).hexdigest()


def _look(job: Job) -> object:
    return job.spool_bytes, job.sampling


def _named(part: TextPart | AudioPart) -> TextPart | AudioPart:
    """An audio by what is in its file, as the file's name is new each time."""
    if isinstance(part, AudioPart) and part.path is not None:
        return replace(part, path=hashlib.sha256(Path(part.path).read_bytes()).hexdigest())
    return part
