"""Our words to those of OpenAI's Responses API: a job's events to a `response`, or to the events of its stream. Pure.

    created ─ in_progress ─ item added ─ part added ─ text deltas ─ text done ─ part done ─ item done ─ completed

A response has one item, a message, with one part, a text. An answer that was cut at its limit is `incomplete`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from api.answers import Json, Reply, audio_usage, labels_of, logprobs_of
from errors import EardrumError
from wire import Delta, Finished, TokenLogprob, Usage


@dataclass(frozen=True)
class Frame:
    """What is the same in all events of an answer. `asked`: what of the request the response tells again."""

    reply: Reply
    asked: Json
    logprobs: bool = False

    @property
    def item_id(self) -> str:
        return self.reply.id.replace("resp_", "msg_", 1)

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


_FIXED: Json = {  # what other servers have, and this one does not
    "background": False,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
}


@dataclass
class ResponseBody:
    """Collects a job's events into one `response`."""

    frame: Frame
    texts: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None

    def add(self, event: Delta | Finished) -> None:
        if isinstance(event, Delta):
            self.texts.append(event.text)
            self.tokens.extend(event.logprobs)
        else:
            self.end = event

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def logprobs(self) -> list[Json]:
        """Of all tokens so far; empty where they were not asked for."""
        return _logprobs(self.tokens) if self.frame.logprobs else []

    def part(self) -> Json:
        labels = labels_of(self.end) if self.end else {}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs, **labels}

    def item(self) -> Json:
        """The message, with all that was said, once it has ended."""
        return _item(self.frame, self._status, [self.part()])

    def body(self, now: int) -> Json:
        """The whole response. `now` in Unix seconds."""
        assert self.end is not None, "a job ends before its response is complete"
        cut = self._status == "incomplete"
        details = {"reason": "max_output_tokens"} if cut else None
        fields = {"incomplete_details": details, "usage": _usage(self.end.usage), "completed_at": None if cut else now}
        return self.frame.response(self._status, [self.item()], **fields)

    @property
    def _status(self) -> str:
        return "incomplete" if self.end is not None and self.end.reason == "length" else "completed"


class ResponseEvents:
    """Turns a job's events into those of a stream, numbered from 0."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._said = ResponseBody(frame)
        self._numbers = count()

    def first(self) -> Iterator[Json]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._frame.response("in_progress", []))
        yield self._event("response.output_item.added", output_index=0, item=_item(self._frame, "in_progress", []))
        yield self._of_part("response.content_part.added", part=self._said.part())

    def of(self, event: Delta | Finished) -> Iterator[Json]:
        self._said.add(event)
        if isinstance(event, Delta) and (event.text or event.logprobs):
            logprobs = _logprobs(event.logprobs) if self._frame.logprobs else []
            yield self._of_part("response.output_text.delta", delta=event.text, logprobs=logprobs)

    def last(self, now: int) -> Iterator[Json]:
        """Once the job has ended. `now` in Unix seconds."""
        said = self._said
        yield self._of_part("response.output_text.done", text=said.text, logprobs=said.logprobs)
        yield self._of_part("response.content_part.done", part=said.part())
        yield self._event("response.output_item.done", output_index=0, item=said.item())
        body = said.body(now)
        yield self._event(f"response.{body['status']}", response=body)

    def error(self, error: EardrumError) -> Json:
        """The last event of a stream that failed: OpenAI's fields, and beside them the envelope, at which clients
        raise."""
        fields = {"code": error.code, "message": error.message, "param": error.param}
        return self._event("error", **fields, **error.body())

    def _of_part(self, kind: str, **fields: object) -> Json:
        return self._event(kind, item_id=self._frame.item_id, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: object) -> Json:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}


def _item(frame: Frame, status: str, content: list[Json]) -> Json:
    return {"id": frame.item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def _logprobs(tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[Json]:
    content: list[Json] = logprobs_of(tokens)["content"]
    return content


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
