"""Our words to those of OpenAI's Responses API: a job's events to a `response`, or to the events of its stream. Pure.

    created ─ in_progress ─ each item in turn: added ─ its deltas ─ done ─ completed

The items are thoughts, messages and calls, in the order in which the model wrote them; where it wrote nothing, an empty
message. An answer that was cut at its limit is `incomplete`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

from api.answers import Json, Reply, audio_usage
from api.pieces import Arguments, CallBegun, Content, Piece, Thought
from api.reading import PLAIN, Reading
from api.response_items import CallItem, Item, MessageItem, ReasoningItem, Told
from errors import EardrumError
from wire import Delta, Finished, TokenLogprob, Usage


@dataclass(frozen=True)
class Frame:
    """What is the same in all events of an answer. `asked`: what of the request the response tells again."""

    reply: Reply
    asked: Json
    logprobs: bool = False
    reading: Reading = PLAIN

    @property
    def key(self) -> str:
        """What the ids of its items are made of."""
        return self.reply.id.removeprefix("resp_")

    def response(self, status: str, output: list[Json], **fields: object) -> Json:
        return {
            "id": self.reply.id,
            "object": "response",
            "created_at": self.reply.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.reply.model,
            "output": output,
            "usage": None,
            **_FIXED,
            **self.asked,
            **fields,
        }


_FIXED: Json = {  # what other servers have and this one does not, and what is so where nothing is asked
    "background": False,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
}


class ResponseEvents:
    """Turns a job's events into those of a stream, numbered from 0."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._reader = frame.reading.start()
        self._items: list[Item] = []
        self._tokens: list[TokenLogprob] = []  # that belong to the next text
        self._end: Finished | None = None
        self._numbers = count()

    def first(self) -> Iterator[Json]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._frame.response("in_progress", []))

    def of(self, event: Delta | Finished) -> Iterator[Json]:
        if isinstance(event, Delta):
            self._tokens += event.logprobs
            pieces = self._reader.push(event.text)
        else:
            self._end = event
            pieces = self._reader.end()
        for piece in pieces:
            yield from self._numbered(self._told(piece))

    def last(self, now: int) -> Iterator[Json]:
        """Once the job has ended. `now` in Unix seconds."""
        yield from self._numbered(self._last_item_ends())
        body = self._body(now)
        yield self._event(f"response.{body['status']}", response=body)

    def error(self, error: EardrumError) -> Json:
        """The last event of a stream that failed: OpenAI's fields, and beside them the envelope, at which clients
        raise."""
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", **fields, **error.body())

    def _told(self, piece: Piece) -> Iterator[Told]:
        tokens, self._tokens = self._tokens, []
        match piece:
            case Content(text):
                if text or tokens:
                    yield from self._in(MessageItem)
                    yield from self._items[-1].more(text, tokens)
            case Thought(text):
                yield from self._in(ReasoningItem)
                yield from self._items[-1].more(text, ())
            case CallBegun(_, call_id, name):
                yield from self._begin(CallItem(self._frame.key, len(self._items), call_id, name))
            case Arguments(_, text):
                yield from self._items[-1].more(text, ())

    def _in(self, kind: type[MessageItem | ReasoningItem]) -> Iterator[Told]:
        """Begin an item of this kind, unless the last one is."""
        if not self._items or not isinstance(self._items[-1], kind):
            yield from self._begin(kind(self._frame.key, len(self._items), self._frame.logprobs))

    def _begin(self, item: Item) -> Iterator[Told]:
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _last_item_ends(self) -> Iterator[Told]:
        if not self._items:
            yield from self._in(MessageItem)
        yield from self._items[-1].end(self._status, self._end)

    @property
    def _status(self) -> str:
        return "incomplete" if self._end is not None and self._end.reason == "length" else "completed"

    def _body(self, now: int) -> Json:
        assert self._end is not None, "a job ends before its response is complete"
        cut = self._status == "incomplete"
        return self._frame.response(
            self._status,
            [item.body() for item in self._items],
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage=_usage(self._end.usage),
            completed_at=None if cut else now,
        )

    def _numbered(self, told: Iterable[Told]) -> Iterator[Json]:
        return (self._event(kind, **fields) for kind, fields in told)

    def _event(self, kind: str, **fields: object) -> Json:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}


class ResponseBody:
    """Collects a job's events into one `response`."""

    def __init__(self, frame: Frame) -> None:
        self._told = ResponseEvents(frame)

    def add(self, event: Delta | Finished) -> None:
        for _ in self._told.of(event):
            pass

    def body(self, now: int) -> Json:
        """The whole response, which is what the last event of a stream tells. `now` in Unix seconds."""
        *_, last = self._told.last(now)
        body: Json = last["response"]
        return body


def _usage(usage: Usage) -> Json:
    """In the Responses API's words, and beside them the audio, as in a chat completion."""
    cached, audio = usage.cached_tokens, usage.audio_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0, "audio_tokens": audio},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "audio": audio_usage(usage.heard),
    }
