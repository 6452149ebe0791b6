"""What the engine of a `TextModel` is asked: the request of a job, checked against what a loop that is not ours can do.

Knows neither batches nor answers; `batching.py` does.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from engine.grammar import Grammar
from engine.segments import window_segments
from engine.tokens import Told, no_tokens
from errors import BadRequest
from models.base import Conversation, Question, TextModel, no_plain_text, refuse_templating
from wire import Heard, Job, JobId, Sampling, Segment


@dataclass(frozen=True, eq=False)
class TextRequest:
    """What is asked: `conversations` one after another. `groups`: whom each of them may share a batch with."""

    job: Job
    conversations: Sequence[Conversation]
    groups: Sequence[Hashable]
    heard: Heard

    @property
    def id(self) -> JobId:
        return self.job.id

    @property
    def segments(self) -> tuple[Segment, ...]:
        """One for each window of the audio, where they are told at all."""
        return window_segments(self.heard.windows, len(self.conversations)) if self.job.task else ()


class TextRequests:
    """Makes requests for one model; several threads may call it at once."""

    def __init__(self, model: TextModel) -> None:
        self._model = model

    def compile(self, job: Job) -> Grammar | None:
        """Refuses structures: they are enforced token by token. Raises `BadRequest`."""
        if job.structure is not None:
            raise _unsupported(job.structure.place)
        return None

    def tokens(self, job: Job, conversation: Conversation, heard: Heard) -> Told:
        """Raises `BadRequest`."""
        raise no_tokens()

    def prepare(self, job: Job, conversation: Conversation, heard: Heard, grammar: Grammar | None) -> TextRequest:
        """The request of a job. Raises `BadRequest` for what the model, or a loop that is not ours, cannot do."""
        if job.plain:
            raise no_plain_text()
        refuse_templating(job.templating)
        _check_sampling(job.sampling)
        task, model = job.task, self._model
        conversations = model.transcribe(conversation, task) if task else model.split(conversation)
        if not conversations:
            raise ValueError("a model's `split` gave no conversation")
        groups = [model.group(Question(each, job.sampling)) for each in conversations]
        return TextRequest(job, conversations, groups, heard)


def _check_sampling(sampling: Sampling) -> None:
    """Refuse what needs the model's own probabilities, rather than to ignore it."""
    wanted = {
        "logprobs": sampling.top_logprobs is not None,
        "logit_bias": bool(sampling.logit_bias),
        "min_tokens": bool(sampling.min_tokens),
        "ignore_eos": sampling.ignore_eos,
    }
    for name, is_wanted in wanted.items():
        if is_wanted:
            raise _unsupported(name)


def _unsupported(place: str) -> BadRequest:
    return BadRequest(
        f"`{place}`: this model writes its answers by a loop of its own, which gives text and no probabilities, so the "
        "server cannot do this.",
        place,
    )
