"""One choice of a request on its way through the rows, and what the choices of a request share."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.grammar import Matcher
from engine.labels import LabelScorer
from engine.request import Request
from engine.sampling import RowSampler
from engine.segments import Spans
from engine.text import AnswerText
from engine.timestamps import Times, times_of
from models.base import Prefill, Prompt, RowState
from wire import Delta, Finished, FinishReason, TokenLogprob, Usage

NUM_BEFORE = 4  # enough to tell that a text goes on; of a longer one, any token may be half a character


def text_before(prompt: Prompt) -> list[int]:
    """The tokens whose text the answer goes on; none where it begins anew."""
    return prompt.token_ids[-NUM_BEFORE:] if prompt.is_continued else []


@dataclass(eq=False)
class SharedPrefill:
    """A prompt prefilled once for all choices, and its labels scored; kept until the last of them has its row."""

    prefill: Prefill
    choices_to_come: int
    scorer: LabelScorer | None = None

    @property
    def is_ready(self) -> bool:
        return self.prefill.logits is not None and (self.scorer is None or self.scorer.done)


@dataclass(eq=False)
class Run:
    """A request in the engine. `prefills`: by prompt, while some choices need them still; `num_cached_tokens`: of each
    prompt, when it was computed."""

    request: Request
    prefills: dict[int, SharedPrefill] = field(default_factory=dict)
    num_cached_tokens: dict[int, int] = field(default_factory=dict)
    labels: tuple[tuple[str, float], ...] = ()
    language: str | None = None  # of the first prompt's audio that tells it


@dataclass(eq=False)
class Sequence:
    """One choice: all of its state."""

    run: Run
    choice: int
    text: AnswerText
    sampler: RowSampler
    matcher: Matcher | None = None
    prompt_index: int = 0
    prompt_tokens: int = 0  # sampled for the current prompt
    completion_tokens: int = 0
    last_token: int = -1
    cut: bool = False  # a prompt's answer filled the model's window
    spans: Spans | None = None  # where times are told
    times: Times | None = None  # of the current prompt
    time_s: float | None = None  # what the last token told, if it was a timestamp
    aside: RowState | None = None  # its row's contents while it was set aside
    arrival: int = -1  # the scheduler's

    @property
    def request(self) -> Request:
        return self.run.request

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def deadline(self) -> float | None:
        return self.request.deadline

    @property
    def prompt(self) -> Prompt:
        return self.request.prompts[self.prompt_index]

    @property
    def is_last_prompt(self) -> bool:
        return self.prompt_index == len(self.request.prompts) - 1

    @property
    def num_columns(self) -> int:
        """What its row holds, or will hold when it is placed: the last token is not in it yet."""
        return self.prompt.num_columns + max(0, self.prompt_tokens - 1)

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here, as far as the request's settings go. A grammar that is through has the last
        word: nothing else could follow."""
        if self.matcher is not None and self.matcher.finished:
            return True
        settings = self.request.sampling
        return not settings.ignore_eos and self.completion_tokens >= settings.min_tokens

    @property
    def may_be_empty(self) -> bool:
        """Whether no text at all can be the answer to the prompt."""
        return self.matcher is None and self.may_end

    def push(self, token: int, logprob: TokenLogprob | None) -> None:
        """The next token of the answer."""
        self.last_token = token
        self.prompt_tokens += 1
        self.completion_tokens += 1
        if self.matcher is not None:
            self.matcher.accept(token)
        self.time_s = None if self.times is None else self.times.push(token)
        if self.time_s is None:
            self.text.push(token, logprob)
        else:
            self.text.end_prompt()  # what is pending belongs to the segment before

    def next_prompt(self) -> None:
        self.prompt_index += 1
        self.prompt_tokens = 0
        self.times = times_of(self.prompt)
        if self.spans is not None:
            self.spans.next_window()
        self.text.begin(self.prompt.lead, self.request.opening(self.prompt), text_before(self.prompt))
        self.sampler.begin(self.prompt.token_ids)

    def deltas(self) -> list[Delta]:
        """What there is to tell that has not been told."""
        text, logprobs = self.text.take()
        segment = self._segment(bool(text))
        if not text and not logprobs:
            return []
        usage = self._usage() if self.request.tells_usage else None
        return [Delta(self.request.id, self.choice, text, logprobs, segment, usage)]

    def _segment(self, has_text: bool) -> int:
        """The number of the segment of what is told now; the last token may have ended it."""
        if self.spans is None:
            return 0
        number = self.spans.current
        if has_text:
            self.spans.add_text()
        if self.time_s is not None:
            self.spans.mark(self.time_s)
            self.time_s = None
        return number

    def finished(self, reason: FinishReason) -> Finished:
        segments = () if self.spans is None else self.spans.all()
        return Finished(
            self.request.id, self.choice, reason, self._usage(), self.run.labels, segments, self.run.language
        )

    def _usage(self) -> Usage:
        request = self.request
        return Usage(
            prompt_tokens=sum(prompt.num_tokens for prompt in request.prompts),
            completion_tokens=self.completion_tokens,
            cached_tokens=sum(self.run.num_cached_tokens.values()),
            audio_tokens=sum(prompt.num_audio_tokens for prompt in request.prompts),
            heard=request.heard,
        )
