"""OpenAI's chat completion request as we read it, through the door of `form.py`.

`parse` turns a body into a `ChatRequest`, or raises a `BadRequest` whose `param` names the place.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError, from_json

from api.form import AlwaysOn, Form, Question, Unsupported, parse_as
from api.sampling import SamplingFields
from api.templating import TemplateFields
from api.tool_history import Call, ShortText
from api.tool_schema import ToolFields


class TextBlock(Form):
    type: Literal["text"]
    text: str


class RefusalBlock(Form):
    """What OpenAI's own models put into an assistant's turn; it comes back with the history."""

    type: Literal["refusal"]
    refusal: str


class AudioUrl(Form):
    url: str


def _given_or_kept(value: Any, info: ValidationInfo) -> Any:
    """The audio, or nothing where a `uuid` names what is kept of an earlier request."""
    if value is None and info.data.get("uuid") is None:
        raise PydanticCustomError("missing", "Field required, unless a `uuid` names audio that was sent before")
    return value


def _shape(value: Any) -> str:
    """Whether audio is told in an object, or plain."""
    return {str: "<string>", type(None): "<none>"}.get(type(value), "<object>")


class _AudioBlock(Form):
    uuid: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class AudioUrlBlock(_AudioBlock):
    """vLLM's block: an http(s) address or a `data:` URI, in an object or plain."""

    type: Literal["audio_url"]
    audio_url: Annotated[
        Annotated[
            Annotated[AudioUrl, Tag("<object>")] | Annotated[str, Tag("<string>")] | Annotated[None, Tag("<none>")],
            Discriminator(_shape),
        ],
        AfterValidator(_given_or_kept),
    ] = Field(None, validate_default=True)


class InputAudio(Form):
    """Base64, or a `data:` URI. `format` is a label that clients get wrong; the bytes decide."""

    data: str
    format: str | None = None


class InputAudioBlock(_AudioBlock):
    """OpenAI's block; Mistral's API has the base64 itself in the place of the object."""

    type: Literal["input_audio"]
    input_audio: Annotated[
        Annotated[
            Annotated[InputAudio, Tag("<object>")] | Annotated[str, Tag("<string>")] | Annotated[None, Tag("<none>")],
            Discriminator(_shape),
        ],
        AfterValidator(_given_or_kept),
    ] = Field(None, validate_default=True)


_BLOCKS = {"text": TextBlock, "refusal": RefusalBlock, "audio_url": AudioUrlBlock, "input_audio": InputAudioBlock}


def _block_tag(block: Any) -> str | None:
    kind = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)
    return f"<{kind}>" if isinstance(kind, str) and kind in _BLOCKS else None


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


def _content_tag(value: Any) -> str | None:
    return "<string>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


TEXT_OR_PARTS = Discriminator(
    _content_tag,
    custom_error_type="content_type",
    custom_error_message="Expected a string or a list of content parts",
)
Content = Annotated[Annotated[str, Tag("<string>")] | Annotated[list[Block], Tag("<parts>")], TEXT_OR_PARTS]


def _known_role(value: Any) -> Any:
    if value == "function":
        raise PydanticCustomError("old_role", "This is OpenAI's older form; use `tool`, and `tool_call_id`")
    return value


class ChatMessage(Form):
    """`tool_calls` and `reasoning_content` are what an assistant's answer had; `tool_call_id` and `name` say whose
    result a tool's message is."""

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], BeforeValidator(_known_role)]
    content: Content | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: ShortText | None = None
    name: str | None = None
    reasoning_content: str | None = None
    function_call: Unsupported = None


class StreamOptions(Form):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's


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


class NotSupported(Form):
    """What would change the answer and is not done here: refused, so that nobody takes one answer for another."""

    audio: Unsupported = None  # OpenAI's, as are the next
    web_search_options: Unsupported = None
    stop_token_ids: Unsupported = None  # vLLM's, as are all from here on
    include_stop_str_in_output: Unsupported = None
    bad_words: Unsupported = None
    allowed_token_ids: Unsupported = None
    prompt_logprobs: Unsupported = None
    echo: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    use_beam_search: Unsupported = None
    logits_processors: Unsupported = None
    documents: Unsupported = None
    chat_template: Unsupported = None
    skip_special_tokens: AlwaysOn = None


ObjectSchema = Annotated[str, BeforeValidator(_object_text, json_schema_input_type=dict[str, Any])]
TextSchema = Annotated[str, BeforeValidator(_schema_text, json_schema_input_type=dict[str, Any] | str)]
Nonempty = Annotated[str, Field(min_length=1)]
Labels = Annotated[list[Nonempty], Field(min_length=1), AfterValidator(_distinct)]


class NamedSchema(Form):
    """`strict` is read and makes no difference: every schema is enforced."""

    schema_: ObjectSchema = Field(alias="schema")
    name: str | None = None
    strict: bool | None = None


class AnyFormat(Form):
    type: Literal["text", "json_object", "json_schema"]


class SchemaFormat(AnyFormat):
    json_schema: NamedSchema


ResponseFormat = Annotated[
    Annotated[SchemaFormat, Tag("<schema>")] | Annotated[AnyFormat, Tag("<any>")],
    Discriminator(
        lambda value: "<schema>" if isinstance(value, dict) and value.get("type") == "json_schema" else "<any>"
    ),
]


class StructuredOutputs(Form):
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


class StructureFields(Form):
    """What the answer must look like."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: TextSchema | None = None  # these five are how older vLLM wrote structured_outputs
    guided_regex: Nonempty | None = None
    guided_choice: Labels | None = None
    guided_grammar: Nonempty | None = None
    guided_whitespace_pattern: Unsupported = None


class ChatRequest(Question, SamplingFields, StructureFields, TemplateFields, ToolFields, NotSupported):
    """The fields that are used, in OpenAI's and vLLM's words, and one of ours. Those of `NotSupported` are refused, all
    others ignored."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1)
    modalities: list[str] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def parse(body: bytes) -> ChatRequest:
    """The request in a JSON body. Raises `BadRequest`."""
    return parse_as(ChatRequest, body)
