"""OpenAI's older completions: a text that is continued, to a `Job`; the job's events to a `text_completion` or to a
stream of them. Pure.

No chat template stands around the text, so the model says whether it can continue one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from api.answers import LOWEST_LOGPROB, Chunks, Completion, Json, labels_of
from api.chat import check_stream_options, tells_usage
from api.form import Question, Unsupported
from api.intake import Intake
from api.reader import Said
from api.sampling import SamplingFields, build_sampling, check_n, check_sampling
from api.schema import NotSupported, StreamOptions, StructureFields
from api.structure import build_structure, check_structure
from config import Settings
from errors import BadRequest
from wire import Delta, Finished, Job, JobId, Message, TextPart, TokenLogprob

USUAL_MAX_TOKENS = 16  # OpenAI's and vLLM's, where a request says nothing

Text = Annotated[str, Field(min_length=1)]
OneText = Annotated[list[Text], Field(min_length=1, max_length=1)]


class CompletionRequest(Question, SamplingFields, StructureFields, NotSupported):
    """The fields that are used, and those that are refused. All others are ignored."""

    prompt: Annotated[
        Annotated[Text, Tag("<string>")] | Annotated[OneText, Tag("<list>")],
        Discriminator(
            lambda value: {str: "<string>", list: "<list>"}.get(type(value)),
            custom_error_type="prompt_type",
            custom_error_message="Expected a string, or a list of one string",
        ),
    ]
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0)
    best_of: int | None = Field(None, ge=1, le=1)
    suffix: Unsupported = None

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def token_limit(self) -> int:
        return self.max_tokens or USUAL_MAX_TOKENS


def check_limits(asked: CompletionRequest, settings: Settings) -> None:
    """Refuse what is over a limit. Raises `BadRequest`."""
    if len(asked.text) > settings.max_text_chars:
        raise BadRequest(f"`prompt` is longer than the limit of {settings.max_text_chars} characters.", "prompt")
    check_sampling(asked, settings)
    check_n(asked.n, settings)
    if (asked.logprobs or 0) > settings.max_top_logprobs:
        raise BadRequest(f"`logprobs` is over the limit of {settings.max_top_logprobs}.", "logprobs")
    check_structure(asked, settings)
    check_stream_options(asked.stream_options, asked.stream)


def build_job(asked: CompletionRequest, job_id: JobId, _: Intake, __: int) -> Job:
    """The job of a checked request."""
    return Job(
        job_id,
        (Message("user", (TextPart(asked.text),)),),
        build_sampling(asked, asked.n or 1, asked.logprobs),
        structure=build_structure(asked),
        priority=asked.priority or 0,
        plain=True,
        tells_usage=tells_usage(asked.stream_options),
    )


class TextCompletion(Completion):
    """Collects a job's events into one `text_completion`."""

    kind: ClassVar = "text_completion"

    def _said(self, said: Said, tokens: Sequence[TokenLogprob]) -> Json:
        return {"text": said.content, "logprobs": _logprobs(tokens, 0) if self.logprobs else None}


@dataclass
class TextChunks(Chunks):
    """Turns a job's events into `text_completion`s, each with a piece of one choice's text."""

    offsets: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))  # characters told, of each choice

    def of(self, event: Delta | Finished) -> Iterator[Json]:
        self._count(event)
        if isinstance(event, Delta):
            told = _logprobs(event.logprobs, self.offsets[event.choice]) if self.logprobs and event.logprobs else None
            self.offsets[event.choice] += len(event.text)
            yield self._piece(event.choice, event.text, logprobs=told)
        else:
            yield self._piece(event.choice, "", finish_reason=event.reason, **labels_of(event))

    def _piece(self, choice: int, text: str, **fields: object) -> Json:
        choices = [{"index": choice, "text": text, "logprobs": None, "finish_reason": None, **fields}]
        return {**self._frame(), "choices": choices, **self._usage_so_far()}

    def _frame(self) -> Json:
        return self.reply.frame("text_completion")


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> Json:
    """The older form: lists side by side. `offset`: of the first token in the text, in characters."""
    texts = [_text(each.token) for each in tokens]
    offsets = [offset + sum(map(len, texts[:i])) for i in range(len(texts))]
    tops: list[dict[str, Any]] = [
        {_text(token): max(LOWEST_LOGPROB, logprob) for token, logprob in reversed(each.top)} for each in tokens
    ]
    return {
        "tokens": texts,
        "token_logprobs": [max(LOWEST_LOGPROB, each.logprob) for each in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _text(token: bytes) -> str:
    return token.decode(errors="replace")
