"""Our words to OpenAI's: a job's events to a `chat.completion` or to its chunks. Pure.

It knows neither the request nor the wire format of a stream; `sse.py` makes bytes of what is built here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from wire import Delta, Finished, Heard, TokenLogprob, Usage

Json = dict[str, Any]

LOWEST_LOGPROB = -9999.0  # what OpenAI writes for a token that cannot be; JSON has no -Infinity


@dataclass(frozen=True)
class Reply:
    """What is the same in all chunks of an answer."""

    id: str
    created: int  # Unix seconds
    model: str

    def frame(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass
class _Choice:
    """What has come of one choice."""

    texts: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None


@dataclass
class Completion:
    """Collects a job's events into one `chat.completion`. `logprobs`: whether they were asked for."""

    kind: ClassVar = "chat.completion"

    reply: Reply
    n: int
    logprobs: bool = False
    choices: defaultdict[int, _Choice] = field(default_factory=lambda: defaultdict(_Choice))

    def add(self, event: Delta | Finished) -> None:
        choice = self.choices[event.choice]
        if isinstance(event, Delta):
            choice.texts.append(event.text)
            choice.tokens.extend(event.logprobs)
        else:
            choice.end = event

    def body(self) -> Json:
        ends = {i: end for i, choice in self.choices.items() if (end := choice.end)}
        choices = [self._choice(i, ends[i]) for i in range(self.n)]
        usage = _usage({i: end.usage for i, end in ends.items()})
        return {**self.reply.frame(self.kind), "choices": choices, "usage": usage}

    def _choice(self, index: int, end: Finished) -> Json:
        said = self._said("".join(self.choices[index].texts), self.choices[index].tokens)
        return {"index": index, **said, "finish_reason": end.reason, **labels_of(end)}

    def _said(self, text: str, tokens: Sequence[TokenLogprob]) -> Json:
        """The fields of a choice that hold its text and its tokens."""
        return {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs_of(tokens) if self.logprobs else None,
        }


@dataclass
class Chunks:
    """Turns a job's events into `chat.completion.chunk`s: one id and time for all, the role once for each choice.

    `logprobs`: whether they were asked for. They stand in the chunk of the text that they belong to. `tells_usage`:
    each chunk tells what has been used so far, where the usage is told at all.
    """

    reply: Reply
    include_usage: bool
    logprobs: bool = False
    tells_usage: bool = False
    begun: set[int] = field(default_factory=set)
    usages: dict[int, Usage] = field(default_factory=dict)

    def of(self, event: Delta | Finished) -> Iterator[Json]:
        self._count(event)
        if event.choice not in self.begun:
            self.begun.add(event.choice)
            yield self._chunk(event.choice, {"role": "assistant", "content": ""})
        if isinstance(event, Delta):
            tokens = logprobs_of(event.logprobs) if self.logprobs and event.logprobs else None
            yield self._chunk(event.choice, {"content": event.text}, logprobs=tokens)
        else:
            yield self._chunk(event.choice, {}, finish_reason=event.reason, **labels_of(event))

    def last(self) -> Iterator[Json]:
        """The chunk with the usage, if it was asked for."""
        if self.include_usage:
            yield {**self._frame(), "choices": [], "usage": _usage(self.usages)}

    def _chunk(self, choice: int, delta: Json, **fields: object) -> Json:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None, **fields}]
        return {**self._frame(), "choices": choices, **self._usage_so_far()}

    def _count(self, event: Delta | Finished) -> None:
        if event.usage is not None:
            self.usages[event.choice] = event.usage

    def _usage_so_far(self) -> Json:
        if not self.include_usage:
            return {}
        return {"usage": _usage(self.usages) if self.tells_usage else None}

    def _frame(self) -> Json:
        return self.reply.frame("chat.completion.chunk")


def _usage(usages: Mapping[int, Usage]) -> Json:
    """OpenAI's usage of all choices together, and beside it the audio.

    The choices share one prompt, so what it cost is told by the first of them.
    """
    first, completion = usages[min(usages)], sum(usage.completion_tokens for usage in usages.values())
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"audio_tokens": first.audio_tokens, "cached_tokens": first.cached_tokens},
        "audio": audio_usage(first.heard),
    }


def audio_usage(heard: Heard) -> Json:
    """In milliseconds' precision; what was used and what was dropped add up to what was received."""
    received, used = round(heard.seconds_received, 3), round(heard.seconds_used, 3)
    return {
        "seconds_received": received,
        "seconds_used": used,
        "seconds_dropped": round(received - used, 3),
        "parts": heard.parts,
    }


def logprobs_of(tokens: Iterable[TokenLogprob]) -> Json:
    content = [
        {**_token(each.token, each.logprob), "top_logprobs": [_token(*alternative) for alternative in each.top]}
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _token(token: bytes, logprob: float) -> Json:
    """Half a character is a replacement character as text; `bytes` are exact."""
    return {
        "token": token.decode(errors="replace"),
        "logprob": max(LOWEST_LOGPROB, logprob),
        "bytes": list(token),
    }


def labels_of(end: Finished) -> Json:
    """The probability of each label that was allowed, where the worker measured them."""
    return {"label_probabilities": dict(end.labels)} if end.labels else {}
