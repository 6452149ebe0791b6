"""The items of a response, as the Responses API has them: messages, thoughts and calls of functions. Pure.

Each tells the events of its own life: how it begins, what comes more, how it ends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from api.answers import Json, labels_of, logprobs_of
from wire import Finished, TokenLogprob

Told = tuple[str, Json]  # an event's type, and its fields but for its number


class Item(ABC):
    """`index`: its place in the output; `logprobs`: whether they were asked for."""

    prefix: ClassVar[str]  # of its id

    def __init__(self, key: str, index: int, logprobs: bool = False) -> None:
        self.index = index
        self.id = f"{self.prefix}{key}" if index == 0 else f"{self.prefix}{key}_{index}"
        self.pieces: list[str] = []
        self.tokens: list[TokenLogprob] = []
        self.status = "in_progress"
        self.labels: Json = {}
        self._logprobs = logprobs

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @abstractmethod
    def body(self) -> Json: ...

    def begin(self) -> Iterator[Told]:
        yield "response.output_item.added", {"output_index": self.index, "item": self.body()}

    @abstractmethod
    def more(self, text: str, tokens: Iterable[TokenLogprob]) -> Iterator[Told]: ...

    def end(self, status: str, end: Finished | None = None) -> Iterator[Told]:
        """`end`: of the answer, where the item is its last."""
        self.status, self.labels = status, labels_of(end) if end else {}
        yield from self._ends()
        yield "response.output_item.done", {"output_index": self.index, "item": self.body()}

    @abstractmethod
    def _ends(self) -> Iterator[Told]: ...

    def _of_item(self, kind: str, **fields: object) -> Told:
        return kind, {"item_id": self.id, "output_index": self.index, **fields}


class _TextItem(Item):
    """With one part, a text."""

    events: ClassVar[str]  # of the text, by the beginning of their name

    @abstractmethod
    def part(self) -> Json: ...

    def _content(self) -> list[Json]:
        return [] if self.status == "in_progress" else [self.part()]

    def begin(self) -> Iterator[Told]:
        yield from super().begin()
        yield self._of_item("response.content_part.added", content_index=0, part=self.part())

    def more(self, text: str, tokens: Iterable[TokenLogprob]) -> Iterator[Told]:
        tokens = list(tokens)
        self.pieces.append(text)
        self.tokens += tokens
        if text or tokens:
            yield self._of_item(f"{self.events}.delta", content_index=0, delta=text, **self._told(tokens))

    def _ends(self) -> Iterator[Told]:
        yield self._of_item(f"{self.events}.done", content_index=0, text=self.text, **self._told(self.tokens))
        yield self._of_item("response.content_part.done", content_index=0, part=self.part())

    def _told(self, tokens: list[TokenLogprob]) -> Json:
        """What the events of a text have beside it."""
        return {}


class MessageItem(_TextItem):
    prefix = "msg_"
    events = "response.output_text"

    def part(self) -> Json:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            **self._told(self.tokens),
            **self.labels,
        }

    def body(self) -> Json:
        content = self._content()
        return {"id": self.id, "type": "message", "role": "assistant", "status": self.status, "content": content}

    def _told(self, tokens: list[TokenLogprob]) -> Json:
        return {"logprobs": logprobs_of(tokens)["content"] if self._logprobs else []}


class ReasoningItem(_TextItem):
    prefix = "rs_"
    events = "response.reasoning_text"

    def part(self) -> Json:
        return {"type": "reasoning_text", "text": self.text}

    def body(self) -> Json:
        content = self._content()
        return {"id": self.id, "type": "reasoning", "summary": [], "status": self.status, "content": content}


class CallItem(Item):
    prefix = "fc_"

    def __init__(self, key: str, index: int, call_id: str, name: str) -> None:
        super().__init__(key, index)
        self._call = {"call_id": call_id, "name": name}

    def body(self) -> Json:
        call = {**self._call, "arguments": self.text}
        return {"id": self.id, "type": "function_call", "status": self.status, **call}

    def more(self, text: str, tokens: Iterable[TokenLogprob]) -> Iterator[Told]:
        self.pieces.append(text)
        yield self._of_item("response.function_call_arguments.delta", delta=text)

    def _ends(self) -> Iterator[Told]:
        yield self._of_item("response.function_call_arguments.done", name=self._call["name"], arguments=self.text)
