"""Requests that kill their workers: refused when they come again.

A request is known by all that is in it, its audio included. Kept in this process only, and for a while: what a request
does to a worker may change with the next one.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from wire import AudioPart, Job, JobId, Message, TextPart

REFUSED_S = 600.0
MAX_KEPT = 256
_NOBODY = JobId(0, "")


class Condemned:
    """The requests that are refused now."""

    def __init__(self) -> None:
        self._until: dict[tuple[object, str], float] = {}  # by rough look and fingerprint; time.monotonic()

    def add(self, job: Job) -> None:
        """Refuse this request from now on. Its spool files must still be there."""
        self._until[_look(job), fingerprint(job)] = time.monotonic() + REFUSED_S
        while len(self._until) > MAX_KEPT:
            del self._until[next(iter(self._until))]

    def __contains__(self, job: Job) -> bool:
        """Whether it is refused. Reads its audio only where a refused one looks alike."""
        now = time.monotonic()
        self._until = {each: until for each, until in self._until.items() if until > now}
        look = _look(job)
        if all(other != look for other, _ in self._until):
            return False
        return (look, fingerprint(job)) in self._until


def _look(job: Job) -> object:
    return job.spool_bytes, job.sampling


def fingerprint(job: Job) -> str:
    """The same for two requests if all is the same that the model is asked, whenever and by whomever."""
    messages = tuple(Message(message.role, tuple(map(_named, message.parts))) for message in job.messages)
    asked = replace(job, id=_NOBODY, deadline=None, messages=messages)
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _named(part: TextPart | AudioPart) -> TextPart | AudioPart:
    """An audio by what is in its file, as the file's name is new each time."""
    if isinstance(part, AudioPart) and part.path is not None:
        return replace(part, path=hashlib.sha256(Path(part.path).read_bytes()).hexdigest())
    return part
