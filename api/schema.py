"""OpenAI's chat completion request as we read it: strict in types, liberal in what it ignores.

`parse` is the only door: it turns a body into a `ChatRequest` or raises a `BadRequest` whose `param` names the place as
the client wrote it, such as `messages[0].content[1].audio_url.url`. Errors never repeat the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from errors import BadRequest

INT64_MAX = 2**63 - 1


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class TextBlock(_Model):
    type: Literal["text"]
    text: str


class RefusalBlock(_Model):
    """What OpenAI's own models put into an assistant's turn; it comes back with the history."""

    type: Literal["refusal"]
    refusal: str


class AudioUrl(_Model):
    url: str


class AudioUrlBlock(_Model):
    """vLLM's block: an http(s) address or a `data:` URI, in an object or plain."""

    type: Literal["audio_url"]
    audio_url: Annotated[
        Annotated[AudioUrl, Tag("<object>")] | Annotated[str, Tag("<string>")],
        Discriminator(lambda value: "<string>" if isinstance(value, str) else "<object>"),
    ]


class InputAudio(_Model):
    """Base64, or a `data:` URI. `format` is a label that clients get wrong; the bytes decide."""

    data: str
    format: str | None = None


class InputAudioBlock(_Model):
    """OpenAI's block."""

    type: Literal["input_audio"]
    input_audio: InputAudio


_BLOCKS = {"text": TextBlock, "refusal": RefusalBlock, "audio_url": AudioUrlBlock, "input_audio": InputAudioBlock}


def _block_tag(block: Any) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return f"<{kind}>" if kind in _BLOCKS else None


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[RefusalBlock, Tag("<refusal>")]
    | Annotated[AudioUrlBlock, Tag("<audio_url>")]
    | Annotated[InputAudioBlock, Tag("<input_audio>")],
    Discriminator(
        _block_tag,
        custom_error_type="unknown_block",
        custom_error_message=f"Expected a content part with a `type` of {', '.join(_BLOCKS)}",
    ),
]

Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Block], Tag("<parts>")],
    Discriminator(
        lambda value: {str: "<string>", list: "<parts>"}.get(type(value)),
        custom_error_type="content_type",
        custom_error_message="Expected a string or a list of content parts",
    ),
]


class ChatMessage(_Model):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None


class StreamOptions(_Model):
    include_usage: bool | None = None


class ChatRequest(_Model):
    """The fields that are used. All others are ignored."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1)
    modalities: list[str] | None = None
    seed: int | None = Field(None, ge=-INT64_MAX - 1, le=INT64_MAX)
    stop: (
        Annotated[
            Annotated[str, Tag("<string>")] | Annotated[list[str], Tag("<list>")],
            Discriminator(lambda value: "<string>" if isinstance(value, str) else "<list>"),
        ]
        | None
    ) = None


def parse(body: bytes) -> ChatRequest:
    """The request in a JSON body. Raises `BadRequest`."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _bad_request(error) from None


def _bad_request(error: ValidationError) -> BadRequest:
    """The first thing that is wrong, in a sentence. Pydantic's message quotes types and bounds, never the input."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return BadRequest("The request body is not valid JSON.", None)
    place = _place(first["loc"])
    if not place:
        return BadRequest("The request body must be a JSON object.", None)
    if first["type"] == "missing":
        return BadRequest(f"`{place}` is missing.", place)
    return BadRequest(f"`{place}`: {first['msg']}.", place)


def _place(loc: Sequence[int | str]) -> str:
    """A pydantic location in the client's words: `messages[0].content[1].text`. Union tags, in <>, are left out."""
    place = ""
    for step in loc:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):
            place += f".{step}" if place else step
    return place
