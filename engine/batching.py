"""The engine of a `TextModel`: batch after batch, each to its end. A step: expire, admit, a piece of each answer.

    submit ──▶ waiting ── admit: those of one group, at most `max_batch_size` ──▶ batch ── decode ──▶ events
                  ▲                                                                │
                  └─── alone, where its batch failed before it said anything ◀─────┘

Called from one thread. Looks to the worker as `engine.Engine` does, but knows text only: no tokens, no rows.
"""

from __future__ import annotations

import logging
from bisect import insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from engine.limit import within
from engine.questions import TextRequest, TextRequests
from engine.text import StopScanner
from errors import DeadlineExceeded, EardrumError, InternalError
from models.base import Question, TextModel
from wire import Batching, Delta, Failed, Finished, FinishReason, JobId, Usage

log = logging.getLogger("eardrum.engine")

BatchEvent = Delta | Finished | Failed

LEAD = " "  # joins the answers to a clip's windows
SEEDS = 2**63  # so many there are; those of a client's may be negative, which not every generator takes


@dataclass(eq=False)
class _Answer:
    """One choice of a request: all of its state."""

    request: TextRequest
    choice: int
    arrival: int
    scanner: StopScanner
    index: int = 0  # of the conversation that is being answered
    num_tokens: int = 0
    last: str = ""  # character of the text so far
    spoken: bool = False  # some text of the current conversation's is out
    alone: bool = False  # its batch failed, and it must show whether that was its own fault
    done: bool = False

    @property
    def question(self) -> Question:
        sampling = self.request.job.sampling
        seed = None if sampling.seed is None else (sampling.seed + self.choice) % SEEDS
        sampling = replace(sampling, seed=seed, n=1, max_tokens=self.num_tokens_left)
        return Question(self.request.conversations[self.index], sampling)

    @property
    def num_tokens_left(self) -> int | None:
        """Of those that all of its text may have; `None` for any number."""
        limit = self.request.job.sampling.max_tokens
        return None if limit is None else limit - self.num_tokens

    @property
    def group(self) -> Hashable:
        return self.request.groups[self.index]

    @property
    def segment(self) -> int:
        """The number of that which its text belongs to."""
        return min(self.index, max(0, len(self.request.segments) - 1))

    @property
    def urgency(self) -> tuple[int, int]:
        return self.request.job.priority, self.arrival


class BatchEngine:
    """Answers the requests of all clients, a batch at a time."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self.requests = TextRequests(model)
        self._arrivals = 0
        self._waiting: list[_Answer] = []
        self._batch: list[_Answer] = []
        self._pieces: Iterator[Sequence[str | None]] = iter(())

    def reset(self) -> None:
        """Forget all requests."""
        self._waiting = []
        self._close()

    @property
    def batching(self) -> tuple[Batching, str]:
        """How requests share the model, and why."""
        if self._model.max_batch_size == 1:
            return "serial", self._model.capabilities.why or "the model answers one request at a time"
        return "dynamic", self._model.capabilities.why or (
            f"up to {self._model.max_batch_size} requests that wait together are answered in one call of the model"
        )

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._batch

    def submit(self, request: TextRequest) -> None:
        sampling = request.job.sampling
        for choice in range(sampling.n):
            self._queue(_Answer(request, choice, self._arrivals, StopScanner(sampling.stop)))
            self._arrivals += 1

    def _queue(self, answer: _Answer) -> None:
        insort(self._waiting, answer, key=lambda each: each.urgency)

    def cancel(self, job_id: JobId) -> None:
        """Drop a request, wherever it is. What the model writes for it in a running batch is not told; a batch that
        nobody waits for any more is ended. An unknown one is no error."""
        self._drop(lambda answer: answer.request.id == job_id)

    def _drop(self, unwanted: Callable[[_Answer], bool]) -> None:
        self._waiting = [answer for answer in self._waiting if not unwanted(answer)]
        for answer in self._batch:
            answer.done |= unwanted(answer)
        if self._batch and all(answer.done for answer in self._batch):
            self._close()

    def _close(self) -> None:
        """End the batch. What the model's generator raises at its end is nobody's affair any more."""
        pieces, self._pieces, self._batch = self._pieces, iter(()), []
        try:
            if hasattr(pieces, "close"):
                pieces.close()
        except Exception:
            log.exception("a batch could not be ended")

    def expire(self, now: float) -> list[BatchEvent]:
        """Drop the requests whose deadline is before `now`, in seconds of the machine's monotonic clock."""
        live = [*self._waiting, *(answer for answer in self._batch if not answer.done)]
        overdue = {
            answer.request.id: None
            for answer in live
            if answer.request.job.deadline is not None and answer.request.job.deadline <= now
        }
        return [self._fail(job_id, DeadlineExceeded("The request's time is over.")) for job_id in overdue]

    def _fail(self, job_id: JobId, error: EardrumError) -> Failed:
        self.cancel(job_id)
        return Failed(job_id, *error.fields())

    # ------------------------------------------------------------------------------------------------------- admission

    def admit(self) -> list[BatchEvent]:
        """Begin the next batch, where none is running."""
        if self._batch or not self._waiting:
            return []
        self._batch = self._next_batch()
        self._waiting = [answer for answer in self._waiting if answer not in self._batch]
        return self._guarded(self._begin)

    def _next_batch(self) -> list[_Answer]:
        """The most urgent answer, and those behind it that may share its batch."""
        first = self._waiting[0]
        if first.alone:
            return [first]
        mates = [answer for answer in self._waiting if not answer.alone and answer.group == first.group]
        return mates[: self._model.max_batch_size]

    def _begin(self) -> list[BatchEvent]:
        self._pieces = iter(self._model.generate([answer.question for answer in self._batch]))
        return []

    # ---------------------------------------------------------------------------------------------------------- decode

    def decode(self) -> list[BatchEvent]:
        """The next piece of each answer in the batch."""
        return self._guarded(self._step) if self._batch else []

    def _guarded(self, step: Callable[[], list[BatchEvent]]) -> list[BatchEvent]:
        """Run a part of a batch. Where the model raises, a request that was alone has failed; of several, those that
        have said nothing yet are tried again, each alone, so that one bad request fails alone."""
        try:
            with torch.inference_mode():
                return step()
        except Exception as error:
            batch = self._batch
            if len(batch) > 1 or not isinstance(error, EardrumError):
                log.exception("a batch of %d failed", len(batch))
            self._close()
            return self._sort_out(batch, error)

    def _sort_out(self, batch: Sequence[_Answer], error: Exception) -> list[BatchEvent]:
        """In company nobody is to blame for sure: it may have been another, also one that nobody waits for any more."""
        failed: dict[JobId, EardrumError] = {}
        for answer in batch:
            if answer.done:
                continue
            if len(batch) > 1 and not answer.spoken:
                answer.alone = True
                self._queue(answer)
            elif len(batch) == 1 and isinstance(error, EardrumError):
                failed[answer.request.id] = error
            else:
                failed[answer.request.id] = InternalError("The model failed on this request.")
        return [self._fail(job_id, reason) for job_id, reason in failed.items()]

    def _step(self) -> list[BatchEvent]:
        batch = self._batch
        pieces = next(self._pieces, None)
        if pieces is None:  # the generator has ended
            pieces = [None] * len(batch)
        if not isinstance(pieces, list | tuple) or len(pieces) != len(batch):
            raise TypeError(f"`generate` gave {pieces!r:.100}, not one text for each of {len(batch)} questions")
        events: list[BatchEvent] = []
        for answer, piece in zip(batch, pieces, strict=True):
            if not answer.done:
                events += self._record(answer, piece)
        if all(answer.done for answer in batch):
            self._close()
        return events

    # ---------------------------------------------------------------------------------------------------------- record

    def _record(self, answer: _Answer, piece: object) -> list[BatchEvent]:
        """The events of an answer's next piece. What fails here is its own text's fault."""
        try:
            if piece is None:
                return list(self._end(answer))
            if not isinstance(piece, str):
                raise TypeError(f"`generate` gave {piece!r:.100} for a text")
            return list(self._say(answer, piece))
        except Exception:
            log.exception("%s failed on its text", answer.request.id)
            return [self._fail(answer.request.id, InternalError("The server failed to write this answer."))]

    def _say(self, answer: _Answer, piece: str) -> Iterable[BatchEvent]:
        """More text; the events that it makes. At the limit the answer ends by it, be it complete or not: a model that
        heeds `max_tokens` says nothing more."""
        text = self._joined(answer, piece)
        if not text:
            return
        kept, num_tokens = within(text, answer.num_tokens_left, self._model.count_tokens)
        answer.num_tokens += num_tokens
        certain = answer.scanner.push(kept)
        if certain:
            yield self._delta(answer, certain)
        if answer.scanner.stopped:
            yield from self._finish(answer, "stop")
        elif kept != text or answer.num_tokens_left == 0:
            yield from self._finish(answer, "length")

    def _joined(self, answer: _Answer, piece: str) -> str:
        """The piece as it goes on from the text before: later windows' answers begin behind a blank."""
        if answer.index and not answer.spoken:
            piece = piece.lstrip()
            if piece and answer.last and not answer.last.isspace():
                piece = LEAD + piece
        answer.spoken |= bool(piece)
        answer.last = piece[-1:] or answer.last
        return piece

    def _end(self, answer: _Answer) -> Iterable[BatchEvent]:
        """The conversation is answered: go on with the next, or finish."""
        answer.done = True
        if answer.index + 1 == len(answer.request.conversations):
            yield from self._finish(answer, "stop")
            return
        self._queue(replace(answer, index=answer.index + 1, spoken=False, alone=False, done=False))

    def _finish(self, answer: _Answer, reason: FinishReason) -> Iterable[BatchEvent]:
        answer.done = True
        if rest := answer.scanner.flush():
            yield self._delta(answer, rest)
        request = answer.request
        yield Finished(request.id, answer.choice, reason, self._usage(answer), segments=request.segments)

    def _delta(self, answer: _Answer, text: str) -> Delta:
        request = answer.request
        usage = self._usage(answer) if request.job.tells_usage else None
        return Delta(request.id, answer.choice, text, segment=answer.segment, usage=usage)

    def _usage(self, answer: _Answer) -> Usage:
        return Usage(self._prompt_tokens(answer), answer.num_tokens, heard=answer.request.heard)

    def _prompt_tokens(self, answer: _Answer) -> int:
        conversations = answer.request.conversations
        texts = (part for conversation in conversations for turn in conversation for part in turn.parts)
        return sum(self._model.count_tokens(part) for part in texts if isinstance(part, str))
