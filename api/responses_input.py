"""The items of a conversation, as the Responses API has them, to the messages of the chat API. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from api.form import Form
from api.schema import TEXT_OR_PARTS, AudioUrlBlock, Block, ChatMessage, InputAudioBlock, RefusalBlock, TextBlock
from api.tool_history import ArgumentsText, Call, CalledFunction, ShortText


class ResponseText(Form):
    """What somebody said: the user or, in the history, the model."""

    type: Literal["input_text", "output_text"]
    text: str


Part = ResponseText | RefusalBlock | AudioUrlBlock | InputAudioBlock

_PARTS = ("input_text", "output_text", "refusal", "input_audio", "audio_url")


def _part_tag(part: Any) -> str | None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text"):
        return "<text>"
    return f"<{kind}>" if kind in _PARTS else None


Content = Annotated[
    Annotated[str, Tag("<string>")]
    | Annotated[
        list[
            Annotated[
                Annotated[ResponseText, Tag("<text>")]
                | Annotated[RefusalBlock, Tag("<refusal>")]
                | Annotated[InputAudioBlock, Tag("<input_audio>")]
                | Annotated[AudioUrlBlock, Tag("<audio_url>")],
                Discriminator(
                    _part_tag,
                    custom_error_type="unknown_part",
                    custom_error_message=f"Expected a content part with a `type` of {', '.join(_PARTS)}",
                ),
            ]
        ],
        Tag("<parts>"),
    ],
    TEXT_OR_PARTS,
]


class MessageItem(Form):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class CallItem(Form):
    type: Literal["function_call"]
    call_id: ShortText
    name: ShortText
    arguments: ArgumentsText

    def as_call(self) -> Call:
        return Call(id=self.call_id, function=CalledFunction.model_construct(name=self.name, arguments=self.arguments))


class ResultItem(Form):
    type: Literal["function_call_output"]
    call_id: ShortText
    output: Content


class ReasoningText(Form):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Form):
    """`summary` is ignored: it is not what the model thought."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None


_KINDS = ("message", "function_call", "function_call_output", "reasoning")
_STATELESS = "Nothing is stored here, so items come whole (Vercel's AI SDK sends them with its option `store: false`)"


def _item_tag(item: Any) -> str | None:
    kind = (item.get("type") or "message") if isinstance(item, dict) else None
    return f"<{kind}>" if kind in _KINDS else None


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[ResultItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_tag,
        custom_error_type="unknown_item",
        custom_error_message=f"Expected an item with a `type` of {', '.join(_KINDS)}. {_STATELESS}",
    ),
]


def as_messages(items: Sequence[Item]) -> Iterator[tuple[str, ChatMessage]]:
    """Each message with its place in the request; its parts stand in the same places. Thoughts, text and calls that
    follow each other are one message of the assistant."""
    place, said = "", _Assistant()
    for i, item in enumerate(items):
        if said.ends_before(item):
            yield place, said.message()
            said = _Assistant()
        place = place if said.is_begun and not isinstance(item, MessageItem) else f"input[{i}]"
        if isinstance(item, MessageItem) and item.role != "assistant":
            yield place, ChatMessage(role=item.role, content=_blocks(item.content))
        elif isinstance(item, ResultItem):
            yield place, ChatMessage(role="tool", tool_call_id=item.call_id, content=_blocks(item.output))
        else:
            said.add(item)
    if said.is_begun:
        yield place, said.message()


class _Assistant:
    """What becomes one message of the assistant: thoughts, then text, then calls."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._content: str | list[Block] | None = None
        self._calls: list[Call] = []

    @property
    def is_begun(self) -> bool:
        return bool(self._thoughts or self._content is not None or self._calls)

    def ends_before(self, item: MessageItem | CallItem | ResultItem | ReasoningItem) -> bool:
        if not self.is_begun or isinstance(item, CallItem):
            return False
        is_text = isinstance(item, MessageItem) and item.role == "assistant"
        return not is_text or self._content is not None or bool(self._calls)

    def add(self, item: MessageItem | CallItem | ReasoningItem) -> None:
        match item:
            case MessageItem():
                self._content = _blocks(item.content)
            case CallItem():
                self._calls.append(item.as_call())
            case ReasoningItem():
                self._thoughts += [part.text for part in item.content or ()]

    def message(self) -> ChatMessage:
        thoughts = "".join(self._thoughts) or None
        return ChatMessage.model_construct(
            role="assistant", content=self._content, tool_calls=self._calls or None, reasoning_content=thoughts
        )


def _blocks(content: str | list[Part]) -> str | list[Block]:
    return content if isinstance(content, str) else list(map(_block, content))


def _block(part: Part) -> Block:
    return TextBlock(type="text", text=part.text) if isinstance(part, ResponseText) else part
