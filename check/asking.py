"""Requests of the checks through the server's own engine, and what comes back of them.

    Probe ── fitted, prepared ──▶ engine: expire, admit, decode ──▶ Reply

It stands where `worker.prepare` and `worker.body` stand in the server, but audio is decoded already, and one thread
does all. Knows no check.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from errors import BadRequest, EardrumError, rebuild
from models.base import Clip, Conversation, Turn, clips_of
from wire import (
    AudioPart,
    Delta,
    Failed,
    Finished,
    FinishReason,
    Heard,
    Job,
    JobId,
    LongAudio,
    Message,
    Sampling,
    TextPart,
    Usage,
)
from worker.clips import fitted
from worker.serving import Request, Served

ANSWER_LIMIT_S = 600.0


@dataclass(frozen=True, eq=False)
class Probe:
    """One request. Its clips are whole, of one window each; they are fitted to the model's as in the server."""

    conversation: Conversation
    sampling: Sampling
    long_audio: LongAudio | None = None


@dataclass(frozen=True)
class Choice:
    pieces: tuple[str, ...]
    reason: FinishReason
    usage: Usage

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Reply:
    """A complete answer. What it is asked for is its first choice's."""

    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def pieces(self) -> tuple[str, ...]:
        return self.choices[0].pieces

    @property
    def reason(self) -> FinishReason:
        return self.choices[0].reason

    @property
    def usage(self) -> Usage:
        return self.choices[0].usage


class Run:
    """Some requests in an engine: steps it, and collects what it tells."""

    _keys = itertools.count()

    def __init__(self, served: Served) -> None:
        self._served = served
        self._engine = served.engine
        self._pieces: dict[tuple[JobId, int], list[str]] = defaultdict(list)
        self._ends: dict[JobId, dict[int, Finished]] = defaultdict(dict)
        self._failures: dict[JobId, EardrumError] = {}

    def submit(self, probe: Probe) -> JobId:
        """Raises `BadRequest` for a request that is refused."""
        job_id = JobId(0, f"check-{next(self._keys)}")
        self._engine.submit(prepared(self._served, probe, job_id))
        return job_id

    def cancel(self, job_id: JobId) -> None:
        self._engine.cancel(job_id)

    def step(self) -> None:
        for event in (*self._engine.expire(time.monotonic()), *self._engine.admit(), *self._engine.decode()):
            match event:
                case Delta():
                    self._pieces[event.job_id, event.choice].append(event.text)
                case Finished():
                    assert event.choice not in self._ends[event.job_id], "a choice ends once"
                    self._ends[event.job_id][event.choice] = event
                case Failed():
                    self._failures[event.job_id] = rebuild(event.kind, event.message, event.param)

    def finish(self) -> None:
        """Until all are answered: those whose time is over fail."""
        while not self._engine.idle:
            self.step()

    def pieces(self, job_id: JobId) -> list[str]:
        """What the first choice has said so far."""
        return self._pieces[job_id, 0]

    def has_ended(self, job_id: JobId) -> bool:
        return job_id in self._ends or job_id in self._failures

    def reply(self, job_id: JobId) -> Reply:
        """The answer of a request that has ended. Raises the `EardrumError` that it has failed with."""
        if job_id in self._failures:
            raise self._failures[job_id]
        ends = self._ends[job_id]
        choices = (
            Choice(tuple(self._pieces[job_id, choice]), end.reason, end.usage) for choice, end in sorted(ends.items())
        )
        return Reply(tuple(choices))


def prepared(served: Served, probe: Probe, job_id: JobId) -> Request:
    """What the engine is given. Raises `BadRequest` for what the model or the server refuses."""
    capabilities = served.capabilities
    job = _job(probe, job_id)
    waveforms = [clip.windows[0] for clip in clips_of(probe.conversation)]
    if capabilities.max_clips is not None and len(waveforms) > capabilities.max_clips:
        raise BadRequest(
            f"The messages hold {len(waveforms)} audio parts, and this model hears at most {capabilities.max_clips}."
        )
    policy = probe.long_audio or capabilities.long_audio
    clips = [
        fitted(waveform, part.place, policy, capabilities)
        for waveform, part in zip(waveforms, job.audio_parts, strict=True)
    ]
    rate = capabilities.sampling_rate
    used = sum(len(window) for clip in clips for window in clip.windows)
    heard = Heard(len(clips), sum(map(len, waveforms)) / rate, used / rate)
    return served.engine.requests.prepare(job, _with_clips(probe.conversation, iter(clips)), heard, None)


def _with_clips(conversation: Conversation, clips: Iterator[Clip]) -> Conversation:
    return tuple(
        Turn(turn.role, tuple(next(clips) if isinstance(part, Clip) else part for part in turn.parts))
        for turn in conversation
    )


def _job(probe: Probe, job_id: JobId) -> Job:
    """As it would come from the door, but that its audio lies nowhere."""
    messages = (
        Message(turn.role, tuple(_part(part, f"messages[{i}].content[{j}]") for j, part in enumerate(turn.parts)))
        for i, turn in enumerate(probe.conversation)
    )
    return Job(job_id, tuple(messages), probe.sampling, deadline=time.monotonic() + ANSWER_LIMIT_S)


def _part(part: str | Clip, place: str) -> TextPart | AudioPart:
    return TextPart(part) if isinstance(part, str) else AudioPart(place, path="")
