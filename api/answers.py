"""Our words to OpenAI's: a job's events to a `chat.completion` or to its chunks. Pure.

It knows neither the request nor the wire format of a stream; `sse.py` makes bytes of what is built here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from api.pieces import Arguments, CallBegun, Content, Piece, Thought
from api.reader import Reader, Said
from api.reading import PLAIN, Reading
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

    reader: Reader
    said: Said = field(default_factory=Said)
    tokens: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None


@dataclass
class Completion:
    """Collects a job's events into one `chat.completion`. `logprobs`: whether they were asked for."""

    kind: ClassVar = "chat.completion"

    reply: Reply
    n: int
    logprobs: bool = False
    reading: Reading = PLAIN
    choices: dict[int, _Choice] = field(default_factory=dict)

    def add(self, event: Delta | Finished) -> None:
        if event.choice not in self.choices:
            self.choices[event.choice] = _Choice(self.reading.start())
        choice = self.choices[event.choice]
        if isinstance(event, Delta):
            choice.said.add(choice.reader.push(event.text))
            choice.tokens.extend(event.logprobs)
        else:
            choice.said.add(choice.reader.end())
            choice.end = event

    def body(self) -> Json:
        ends = {i: end for i, choice in self.choices.items() if (end := choice.end)}
        choices = [self._choice(i, ends[i]) for i in range(self.n)]
        usage = _usage({i: end.usage for i, end in ends.items()})
        return {**self.reply.frame(self.kind), "choices": choices, "usage": usage}

    def _choice(self, index: int, end: Finished) -> Json:
        choice = self.choices[index]
        reason = self.reading.finish_reason(end.reason, bool(choice.said.calls))
        return {"index": index, **self._said(choice.said, choice.tokens), "finish_reason": reason, **labels_of(end)}

    def _said(self, said: Said, tokens: Sequence[TokenLogprob]) -> Json:
        """The fields of a choice that hold its text and its tokens."""
        return {"message": _message(said), "logprobs": logprobs_of(tokens) if self.logprobs else None}


def _message(said: Said) -> Json:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in said.calls
    ]
    return {
        "role": "assistant",
        "content": said.content if said.content or not calls else None,
        "refusal": None,
        **({"reasoning_content": said.thoughts} if said.thoughts else {}),
        **({"tool_calls": calls} if calls else {}),
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
    reading: Reading = PLAIN
    readers: dict[int, Reader] = field(default_factory=dict)  # of the choices that have begun
    called: set[int] = field(default_factory=set)  # those that have called tools
    usages: dict[int, Usage] = field(default_factory=dict)

    def of(self, event: Delta | Finished) -> Iterator[Json]:
        self._count(event)
        if event.choice not in self.readers:
            self.readers[event.choice] = self.reading.start()
            yield self._chunk(event.choice, {"role": "assistant", "content": ""})
        reader = self.readers[event.choice]
        if isinstance(event, Delta):
            yield from self._deltas(event, reader.push(event.text))
        else:
            yield from (self._chunk(event.choice, self._delta(event.choice, piece)) for piece in reader.end())
            reason = self.reading.finish_reason(event.reason, event.choice in self.called)
            yield self._chunk(event.choice, {}, finish_reason=reason, **labels_of(event))

    def _deltas(self, event: Delta, pieces: Sequence[Piece]) -> Iterator[Json]:
        """The log-probabilities go with the first; with one that says nothing, where the text is held back."""
        tokens = logprobs_of(event.logprobs) if self.logprobs and event.logprobs else None
        deltas = [self._delta(event.choice, piece) for piece in pieces] or ([{}] if tokens else [])
        for i, delta in enumerate(deltas):
            yield self._chunk(event.choice, delta, logprobs=None if i else tokens)

    def _delta(self, choice: int, piece: Piece) -> Json:
        match piece:
            case Content(text):
                return {"content": text}
            case Thought(text):
                return {"reasoning_content": text}
            case CallBegun(index, id_, name):
                self.called.add(choice)
                function = {"name": name, "arguments": ""}
                return {"tool_calls": [{"index": index, "id": id_, "type": "function", "function": function}]}
            case Arguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

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
