"""What no schema says of an answer: how its numbers and its choices fit together, and what may follow what in a stream.

Each function yields what is wrong, in words. `asked` is the request's body, `None` where it is not known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Asked = Json | None


def of_usage(usage: Json) -> Iterator[str]:
    told = [usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    told = [usage.get(name) for name in ("input_tokens", "output_tokens", "total_tokens")] if None in told else told
    if None not in told and told[0] + told[1] != told[2]:
        yield f"usage does not add up: {told}"


def _fits(reason: str, has_calls: bool, asked: Asked) -> bool:
    """An answer with calls may have been cut in the last, and one that calls the function it must ends by `stop`."""
    if not has_calls:
        return reason != "tool_calls"
    choice = (asked or {}).get("tool_choice")
    is_named = isinstance(choice, dict) and choice.get("type") == "function"
    return reason in (("stop", "length") if is_named else ("tool_calls", "length"))


def of_completion(body: Json, asked: Asked) -> Iterator[str]:
    """A chat completion or a text completion in one piece."""
    choices = body["choices"]
    n = (asked or {}).get("n") or (1 if asked is not None else len(choices))
    if [choice["index"] for choice in choices] != list(range(n)):
        yield f"the choices are not numbered from 0 to {n - 1}"
    for message, reason in [(choice["message"], choice["finish_reason"]) for choice in choices if "message" in choice]:
        calls = message.get("tool_calls")
        if message["role"] != "assistant":
            yield "the role is not assistant"
        if calls is not None and not calls:
            yield "tool_calls is empty"
        if message["content"] is None and not calls:
            yield "content is null without tool_calls"
        if not _fits(reason, bool(calls), asked):
            yield f"finish_reason {reason!r} with{'' if calls else 'out'} tool_calls"
    yield from of_usage(body["usage"])


@dataclass
class ChunkRules:
    """Of a stream of chunks, of chats (`has_roles`) or texts. `see` each, then `end`."""

    asked: Asked
    has_roles: bool
    frame: Json | None = None
    begun: set[int] = field(default_factory=set)
    finished: dict[int, str] = field(default_factory=dict)
    calls: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))  # of each choice
    usages: int = 0

    @property
    def with_usage(self) -> bool | None:
        if self.asked is None:
            return None
        return bool((self.asked.get("stream_options") or {}).get("include_usage"))

    @property
    def tells_usage(self) -> bool:
        """vLLM's: each chunk tells what has been used so far."""
        return bool(((self.asked or {}).get("stream_options") or {}).get("continuous_usage_stats"))

    def see(self, chunk: Json) -> Iterator[str]:
        frame = {key: chunk[key] for key in ("id", "object", "created", "model")}
        if self.frame not in (None, frame):
            yield f"{frame} after {self.frame}"
        self.frame = frame
        if self.usages:
            yield "a chunk after the usage"
        yield from self._usage(chunk)
        for choice in chunk["choices"]:
            yield from self._choice(choice)

    def _usage(self, chunk: Json) -> Iterator[str]:
        usage = chunk.get("usage")
        if usage is None:
            if not chunk["choices"]:
                yield "no choices, and no usage"
            if self.with_usage is not None and self.with_usage != ("usage" in chunk):
                yield "`usage`: null must be there with include_usage, and not without"
            return
        yield from of_usage(usage)
        if chunk["choices"] and self.tells_usage:
            return
        self.usages += 1
        if chunk["choices"]:
            yield "the usage comes with choices"
        if self.with_usage is False:
            yield "usage that was not asked for"

    def _choice(self, choice: Json) -> Iterator[str]:
        index = choice["index"]
        if index in self.finished:
            yield f"choice {index} goes on after its end"
        if self.has_roles:
            role = choice["delta"].get("role")
            if role != (None if index in self.begun else "assistant"):
                yield f"choice {index}: role {role!r} in {'a later' if index in self.begun else 'its first'} delta"
            for call in choice["delta"].get("tool_calls", ()):
                yield from self._call(index, call)
        self.begun.add(index)
        if reason := choice["finish_reason"]:
            self.finished[index] = reason
            if not _fits(reason, bool(self.calls[index]), self.asked):
                yield f"choice {index}: finish_reason {reason!r}, and {len(self.calls[index])} tool calls"

    def _call(self, choice: int, call: Json) -> Iterator[str]:
        known, function = self.calls[choice], call.get("function", {})
        if call["index"] in known:
            if {"id", "type"} & set(call) or "name" in function:
                yield "a later delta of a tool call has an id, a type or a name"
        elif (
            not call.get("id")
            or call.get("type") != "function"
            or not function.get("name")
            or "arguments" not in function
        ):
            yield "the first delta of a tool call needs an id, the type function, a name and arguments"
        known.add(call["index"])

    def end(self) -> Iterator[str]:
        """After a stream without an error."""
        n = (self.asked or {}).get("n") or (1 if self.asked is not None else len(self.begun))
        if not sorted(self.finished) == sorted(self.begun) == list(range(n)):
            yield f"choices {sorted(self.begun)} began and {sorted(self.finished)} finished, of {n}"
        if self.with_usage and not self.usages:
            yield "no usage, which was asked for"


@dataclass
class ResponseRules:
    """Of the events of a response."""

    asked: Asked
    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    items: set[str] = field(default_factory=set)

    def see(self, event: Json) -> Iterator[str]:
        if event["sequence_number"] != len(self.kinds):
            yield f"sequence_number {event['sequence_number']} at the event {len(self.kinds)}"
        kind = event["type"].removeprefix("response.")
        if self.kinds and self.kinds[-1] in ENDS:
            yield f"{kind} after {self.kinds[-1]}"
        self.kinds.append(kind)
        self.items |= {event["item_id"]} if "item_id" in event else set()
        if kind == "output_text.delta":
            self.texts.append(event["delta"])
        if kind == "output_text.done":
            if event["text"] != "".join(self.texts):
                yield "the text is not that of its deltas"
            self.texts.clear()
        if kind in ("completed", "incomplete") and event["response"]["status"] != kind:
            yield f"{kind} with the status {event['response']['status']}"

    def end(self) -> Iterator[str]:
        if self.kinds[:2] != ["created", "in_progress"]:
            yield f"begins with {self.kinds[:2]}"
        if self.kinds[-1:] and self.kinds[-1] not in ENDS:
            yield f"ends with {self.kinds[-1]}"
        for part in ("output_item", "content_part"):
            if self.kinds.count(f"{part}.added") != self.kinds.count(f"{part}.done"):
                yield f"a {part} is added and not done"


ENDS = ("completed", "incomplete", "failed", "error")


@dataclass
class TranscriptRules:
    """Of the events of a transcription."""

    asked: Asked
    texts: list[str] = field(default_factory=list)
    done: bool = False

    def see(self, event: Json) -> Iterator[str]:
        if self.done:
            yield "an event after transcript.text.done"
        if event["type"] == "transcript.text.delta":
            self.texts.append(event["delta"])
        else:
            self.done = True
            if event["text"] != "".join(self.texts):
                yield "the text is not that of its deltas"
            yield from of_usage(event["usage"])

    def end(self) -> Iterator[str]:
        if not self.done:
            yield "no transcript.text.done"
