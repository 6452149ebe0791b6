"""OpenAI's chat completion request as we read it: strict in types, liberal in what it ignores.

`parse` is the only door: it turns a body into a `ChatRequest` or raises a `BadRequest` whose `param` names the place as
the client wrote it, such as `messages[0].content[1].audio_url.url`. Errors never repeat the input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from errors import BadRequest
from wire import LongAudio

INT32_MAX = 2**31 - 1
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


def _given_or_kept(value: Any, info: ValidationInfo) -> Any:
    """The audio, or nothing where a `uuid` names what is kept of an earlier request."""
    if value is None and info.data.get("uuid") is None:
        raise PydanticCustomError("missing", "Field required, unless a `uuid` names audio that was sent before")
    return value


class _AudioBlock(_Model):
    uuid: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class AudioUrlBlock(_AudioBlock):
    """vLLM's block: an http(s) address or a `data:` URI, in an object or plain."""

    type: Literal["audio_url"]
    audio_url: Annotated[
        Annotated[
            Annotated[AudioUrl, Tag("<object>")] | Annotated[str, Tag("<string>")] | Annotated[None, Tag("<none>")],
            Discriminator(lambda value: {str: "<string>", type(None): "<none>"}.get(type(value), "<object>")),
        ],
        AfterValidator(_given_or_kept),
    ] = Field(None, validate_default=True)


class InputAudio(_Model):
    """Base64, or a `data:` URI. `format` is a label that clients get wrong; the bytes decide."""

    data: str
    format: str | None = None


class InputAudioBlock(_AudioBlock):
    """OpenAI's block."""

    type: Literal["input_audio"]
    input_audio: Annotated[InputAudio | None, AfterValidator(_given_or_kept)] = Field(None, validate_default=True)


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


def _token_biases(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """One error for all that can be wrong: pydantic's own would repeat the client's key."""
    try:
        return validate(value)
    except ValidationError:
        message = "Expected an object from token ids (integers from 0 on) to numbers from -100 to 100"
        raise PydanticCustomError("token_biases", message) from None


TokenBiases = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]],
    WrapValidator(_token_biases),
]


def _object_text(value: Any) -> str:
    """A JSON schema as JSON text, which is how it travels."""
    try:
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        pass  # the parser takes NaN and Infinity, which JSON does not have
    raise PydanticCustomError("json_schema", "Expected a JSON schema: an object, without NaN or Infinity")


def _schema_text(value: Any) -> str:
    """The same, of an object or of its JSON text."""
    try:
        return _object_text(from_json(value) if isinstance(value, str) else value)
    except ValueError:
        message = "Expected a JSON schema: an object, or its JSON text, without NaN or Infinity"
        raise PydanticCustomError("json_schema", message) from None


def _distinct(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("distinct", "The strings must differ from each other")
    return values


def _refuse(value: Any) -> None:
    """Lets nothing but null and false pass, for what would silently be left out of the answer."""
    if value is not None and value is not False:
        raise PydanticCustomError("unsupported", "This is not supported here; leave it out")


ObjectSchema = Annotated[str, BeforeValidator(_object_text)]
TextSchema = Annotated[str, BeforeValidator(_schema_text)]
Nonempty = Annotated[str, Field(min_length=1)]
Labels = Annotated[list[Nonempty], Field(min_length=1), AfterValidator(_distinct)]
Unsupported = Annotated[Any, AfterValidator(_refuse)]


class NamedSchema(_Model):
    """`strict` is read and makes no difference: every schema is enforced."""

    schema_: ObjectSchema = Field(alias="schema")
    name: str | None = None
    strict: bool | None = None


class AnyFormat(_Model):
    type: Literal["text", "json_object", "json_schema"]


class SchemaFormat(AnyFormat):
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[SchemaFormat, Tag("<schema>")] | Annotated[AnyFormat, Tag("<any>")],
    Discriminator(
        lambda value: "<schema>" if isinstance(value, dict) and value.get("type") == "json_schema" else "<any>"
    ),
]


class StructuredOutputs(_Model):
    """vLLM's object. Its switches for whitespace and fallbacks are ignored; what would change the answer is refused."""

    json_: TextSchema | None = Field(None, alias="json")
    regex: Nonempty | None = None
    choice: Labels | None = None
    grammar: Nonempty | None = None
    json_object: bool | None = None
    structural_tag: Unsupported = None
    whitespace_pattern: Unsupported = None
    disable_additional_properties: Unsupported = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(value is not None for value in given) != 1:
            message = "Expected exactly one of json, regex, choice, grammar and json_object"
            raise PydanticCustomError("structured_outputs", message)
        return self


class ChatRequest(_Model):
    """The fields that are used, in OpenAI's and vLLM's words, and one of ours. All others are ignored."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    logit_bias: TokenBiases | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1)
    priority: int | None = Field(None, ge=-(2**31), le=2**31)
    long_audio: LongAudio | None = None  # ours
    modalities: list[str] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: TextSchema | None = None  # these five are how older vLLM wrote structured_outputs
    guided_regex: Nonempty | None = None
    guided_choice: Labels | None = None
    guided_grammar: Nonempty | None = None
    guided_whitespace_pattern: Unsupported = None
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
