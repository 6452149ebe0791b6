"""A cascade: one model hears, and a text model answers. It makes an audio chat model of any LLM.

    clips ──▶ ears ── transcripts ──▶ threads: the LLM's prompt ──▶ llm ──▶ events
                                                                     ▲
    a job without audio ─────────────────────────────────────────────┘

Each clip is asked alone, greedily, and its transcript stands in its place in the message. All else is the LLM's: how
the answer is sampled, its structure, and the tokens in its usage, none of which stand for audio. A transcription is the
ears' affair alone. Stands above two engines and knows neither's insides. They take their steps in turn: while one
computes, the other waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from config import Settings
from engine.engine import EngineEvent
from engine.grammar import Grammar
from engine.tokens import Told
from errors import BadRequest, DeadlineExceeded, EardrumError, InternalError
from models.base import Clip, Conversation, Turn, clips_of
from wire import NOTHING_HEARD, Batching, Delta, Failed, Finished, FinishReason, Heard, Job, JobId, Sampling

if TYPE_CHECKING:
    from worker.serving import AnyEngine, Request, Requests

log = logging.getLogger("eardrum.worker")

PREFIX = "cascade:"

NO_SPEECH = "[no speech]"  # an empty transcript: the LLM is to know that there was audio, and that nobody spoke
CUT_OFF = " [cut off]"  # behind a transcript that filled the ears' window: more was said, and the LLM is to know
INSTRUCTION = (
    "Transcribe the speech in this audio."  # a model that chats would answer the clip; recognisers heed no text
)
AS_HEARD = Sampling(temperature=0.0)

PREPARE_THREADS = 2
WAIT_S = 0.01  # for a prompt, where there is nothing else to do; a job that comes meanwhile waits for it, too

_WEAKEST_FIRST: tuple[Batching, ...] = ("serial", "dynamic", "continuous")


def is_cascade(name: str) -> bool:
    """Whether a model's name is one of two models."""
    return name.startswith(PREFIX)


def split_settings(settings: Settings) -> tuple[Settings, Settings]:
    """The settings of the ears and of the LLM. Both run on the same device, in the same type, and share its memory;
    what else is said of a checkpoint is said of the LLM. Audio is kept for the ears, prompts for the LLM. Raises
    `ValueError` for a name that is not `cascade:ASR,LLM`."""
    names = [name.strip() for name in settings.model.removeprefix(PREFIX).split(",")]
    if len(names) != 2 or not all(names) or any(map(is_cascade, names)):
        raise ValueError(
            f"--model {settings.model}: a cascade is written {PREFIX}ASR,LLM, two models that each could be served "
            f"alone, such as {PREFIX}whisper-tiny.en,path/to/llm. Neither name may hold a comma."
        )
    shared: dict[str, Any] = {"workers_per_device": 2 * settings.workers_per_device}
    of_llm_only = dict.fromkeys(("revision", "attn_implementation", "quantization", "adapter", "kv_tokens"))
    of_llm_only |= {"tool_call_parser": "none", "reasoning_parser": "none"}
    ears = {**shared, **of_llm_only, "model": names[0], "trust_remote_code": False, "prefix_cache_mb": 0}
    llm = {**shared, "model": names[1], "encoder_cache_mb": 0}
    return settings.model_copy(update=ears), settings.model_copy(update=llm)


@dataclass(frozen=True, slots=True)
class ClipId(JobId):
    """Names one clip of a job, inside the cascade. It equals no id of a job."""

    index: int

    def __str__(self) -> str:
        return f"{self.job_id}, clip {self.index}"

    @property
    def job_id(self) -> JobId:
        return JobId(self.api_server, self.key)


# ------------------------------------------------------------------------------------------------------------- requests


@dataclass(frozen=True, eq=False)
class CascadeRequest:
    """What the ears are asked first, and what makes the LLM's request then. In `conversation`, clips are but places:
    the audio is in the ears' requests."""

    job: Job
    conversation: Conversation
    heard: Heard
    grammar: Grammar | None
    clips: Sequence[Request]

    @property
    def id(self) -> JobId:
        return self.job.id


@dataclass(frozen=True, eq=False)
class ForEars:
    """A transcription: what the ears say is the answer."""

    request: Request

    @property
    def id(self) -> JobId:
        return self.request.id


class CascadeRequests:
    """Makes requests of both models; several threads may call it at once."""

    def __init__(self, ears: Requests, llm: Requests) -> None:
        self._ears, self._llm = ears, llm

    def compile(self, job: Job) -> Grammar | None:
        """The LLM's. Raises `BadRequest`."""
        return self._llm.compile(job)

    def prepare(self, job: Job, conversation: Conversation, heard: Heard, grammar: Grammar | None) -> Request:
        """The request of a job; the LLM's own where there is nothing to hear, and the ears' own where hearing is all.
        Raises `BadRequest` for what the ears cannot take."""
        if job.task is not None:
            return ForEars(self._ears.prepare(job, conversation, heard, grammar))
        requests = [self._clip_request(job, index, clip) for index, clip in enumerate(clips_of(conversation))]
        if not requests:
            return self._llm.prepare(job, conversation, heard, grammar)
        return CascadeRequest(job, _without_audio(conversation), heard, grammar, requests)

    def tokens(self, job: Job, conversation: Conversation, heard: Heard) -> Told:
        """The LLM's. Raises `BadRequest` where it would have to be heard first what the prompt is."""
        if clips_of(conversation):
            raise BadRequest("The tokens of audio are known only when it was heard. Send text.", "messages")
        return self._llm.tokens(job, conversation, heard)

    def _clip_request(self, job: Job, index: int, clip: Clip) -> Request:
        clip_id = ClipId(job.id.api_server, job.id.key, index)
        clip_job = Job(clip_id, (), AS_HEARD, priority=job.priority)
        try:
            return self._ears.prepare(clip_job, (Turn("user", (clip, INSTRUCTION)),), NOTHING_HEARD, None)
        except BadRequest as error:  # its param is of a conversation that the client has never seen
            place = job.audio_parts[index].place
            raise type(error)(f"`{place}`: {error.message}", place) from error


def _without_audio(conversation: Conversation) -> Conversation:
    """An hour of audio is 200 MB, and is not to wait for the LLM."""
    return tuple(
        replace(turn, parts=tuple(Clip(()) if isinstance(part, Clip) else part for part in turn.parts))
        for turn in conversation
    )


def with_transcripts(conversation: Conversation, transcripts: Sequence[str]) -> Conversation:
    """The conversation with a transcript in the place of each clip, in order. A turn with clips becomes one text."""
    following = iter(transcripts)
    return tuple(
        replace(turn, parts=(_as_text(turn.parts, following),)) if clips_of((turn,)) else turn for turn in conversation
    )


def _as_text(parts: Sequence[str | Clip], transcripts: Iterator[str]) -> str:
    """Templates join a turn's parts without a blank, so between a transcript and its neighbours a line ends."""
    text, behind_clip = "", False
    for part in parts:
        is_clip = isinstance(part, Clip)
        piece = next(transcripts).strip() or NO_SPEECH if isinstance(part, Clip) else part
        if not piece:
            continue
        if (is_clip or behind_clip) and text and not text[-1].isspace() and not piece[0].isspace():
            text += "\n"
        text += piece
        behind_clip = is_clip
    return text


# --------------------------------------------------------------------------------------------------------------- engine


@dataclass(eq=False)
class _Pending:
    """A request that the LLM does not have yet: first heard, clip by clip, then prepared."""

    request: CascadeRequest
    texts: list[list[str]]  # what the ears have told of each clip
    open_clips: int
    prepared: Future[Request] | None = None

    @property
    def conversation(self) -> Conversation:
        """What the LLM is asked."""
        return with_transcripts(self.request.conversation, ["".join(texts) for texts in self.texts])


class CascadeEngine:
    """Two engines as one. What it tells is the LLM's, but for transcriptions; of clips only failures are told, as their
    job's."""

    def __init__(self, ears: AnyEngine, llm: AnyEngine) -> None:
        self._ears, self._llm = ears, llm
        self.requests = CascadeRequests(ears.requests, llm.requests)
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="cascade")
        self._pending: dict[JobId, _Pending] = {}

    def reset(self) -> None:
        """Forget all requests."""
        for pending in self._pending.values():
            _drop(pending.prepared)
        self._pending.clear()
        self._ears.reset()
        self._llm.reset()

    @property
    def batching(self) -> tuple[Batching, str]:
        """How requests share the models: as well as they share the one that is worse at it; and why."""
        (hearing, why_hearing), (answering, why_answering) = self._ears.batching, self._llm.batching
        weakest = min(hearing, answering, key=_WEAKEST_FIRST.index)
        return weakest, f"hearing is {hearing}: {why_hearing}; answering is {answering}: {why_answering}"

    @property
    def idle(self) -> bool:
        return not self._pending and self._ears.idle and self._llm.idle

    def submit(self, request: Request) -> None:
        if isinstance(request, ForEars):
            self._ears.submit(request.request)
            return
        if not isinstance(request, CascadeRequest):
            self._llm.submit(request)
            return
        self._pending[request.id] = _Pending(request, [[] for _ in request.clips], len(request.clips))
        for clip in request.clips:
            self._ears.submit(clip)

    def cancel(self, job_id: JobId) -> None:
        """Drop a request, wherever it is. An unknown one is no error."""
        pending = self._pending.pop(job_id, None)
        if pending is not None:
            _drop(pending.prepared)
            for clip in pending.request.clips:
                self._ears.cancel(clip.id)
        self._ears.cancel(job_id)
        self._llm.cancel(job_id)

    def expire(self, now: float) -> list[EngineEvent]:
        """Drop the requests whose deadline is before `now`, in seconds of the machine's monotonic clock. Clips have
        none of their own: they go with their job."""
        jobs = [pending.request.job for pending in self._pending.values()]
        overdue = [job.id for job in jobs if job.deadline is not None and job.deadline <= now]
        late = DeadlineExceeded("The request's time is over.")
        failed = [self._fail(job_id, late) for job_id in overdue]
        return [*failed, *self._listen(self._ears.expire(now)), *self._llm.expire(now)]

    def admit(self) -> list[EngineEvent]:
        """Rows for clips, and for the prompts that have become ready."""
        return [*self._listen(self._ears.admit()), *self._hand_over(), *self._llm.admit()]

    def decode(self) -> list[EngineEvent]:
        """A step of the ears, and one of the LLM."""
        if self._ears.idle and self._llm.idle:
            self._wait()
            return []
        return [*self._listen(self._ears.decode()), *self._llm.decode()]

    def _wait(self) -> None:
        """Until a prompt is ready, for a moment at most."""
        prepared = [pending.prepared for pending in self._pending.values() if pending.prepared is not None]
        wait(prepared, WAIT_S, FIRST_COMPLETED)

    def _listen(self, events: Iterable[EngineEvent]) -> list[EngineEvent]:
        """Take what the ears tell of clips; the failures in it, and whatever they tell of transcriptions."""
        told: list[EngineEvent] = []
        for event in events:
            clip_id = event.job_id
            if not isinstance(clip_id, ClipId):
                told.append(event)
                continue
            pending = self._pending.get(clip_id.job_id)
            if pending is None:  # another clip of the same job has failed in this step
                continue
            match event:
                case Delta():
                    pending.texts[clip_id.index].append(event.text)
                case Finished():
                    self._close_clip(pending, clip_id, event.reason)
                case Failed():
                    self.cancel(clip_id.job_id)
                    told.append(replace(event, job_id=clip_id.job_id))
        return told

    def _close_clip(self, pending: _Pending, clip_id: ClipId, reason: FinishReason) -> None:
        """A clip is heard; after the last one, the LLM's prompt is made. A long text takes its time, so in a thread."""
        if reason == "length":
            log.warning("%s: its transcript was cut off, as it fills the window of the model that hears", clip_id)
            pending.texts[clip_id.index].append(CUT_OFF)
        pending.open_clips -= 1
        if not pending.open_clips:
            request = pending.request
            pending.prepared = self._threads.submit(
                self._llm.requests.prepare, request.job, pending.conversation, request.heard, request.grammar
            )

    def _hand_over(self) -> list[EngineEvent]:
        """Give the LLM the requests that are ready; what could not be prepared fails alone."""
        pending = list(self._pending.values())
        return [event for each in pending if each.prepared and each.prepared.done() for event in self._submit(each)]

    def _submit(self, pending: _Pending) -> list[EngineEvent]:
        job_id, prepared = pending.request.id, pending.prepared
        assert prepared is not None, "it is done"
        try:
            self._llm.submit(prepared.result())
        except EardrumError as error:
            return [self._fail(job_id, error)]
        except Exception:
            log.exception("preparing %s behind its transcripts failed", job_id)
            return [self._fail(job_id, InternalError("The server failed to prepare this request."))]
        del self._pending[job_id]
        return []

    def _fail(self, job_id: JobId, error: EardrumError) -> Failed:
        self.cancel(job_id)
        return Failed(job_id, *error.fields())


def _drop(prepared: Future[Request] | None) -> None:
    """One that runs already ends by itself, and nobody asks for it."""
    if prepared is not None:
        prepared.cancel()
