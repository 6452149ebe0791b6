"""`python -m tests.schemas.generate`: JSON schemas of what clients receive, from the types of the `openai` package.

Those types are made to read whatever comes: nearly every field may be absent or null. Clients break on less, so here a
field that may be absent must not be null unless `NULLABLE` has it, and what `REQUIRED` has must be there. What no such
server answers (other tools' calls, moderation, images) is left out. Fields of our own are allowed everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
from openai.types import Completion, Model, audio, responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel

Json = dict[str, Any]

FILE = Path(__file__).parent / "openai.json"

TYPES: dict[str, type[BaseModel]] = {
    "chat": ChatCompletion,
    "chat_chunk": ChatCompletionChunk,
    "completion": Completion,
    "completion_chunk": Completion,
    "response": responses.Response,
    "model": Model,
    "transcription": audio.Transcription,
    "transcription_verbose": audio.TranscriptionVerbose,
    "transcript.text.delta": audio.TranscriptionTextDeltaEvent,
    "transcript.text.done": audio.TranscriptionTextDoneEvent,
    "error": ErrorObject,
    "response.created": responses.ResponseCreatedEvent,
    "response.in_progress": responses.ResponseInProgressEvent,
    "response.output_item.added": responses.ResponseOutputItemAddedEvent,
    "response.content_part.added": responses.ResponseContentPartAddedEvent,
    "response.output_text.delta": responses.ResponseTextDeltaEvent,
    "response.output_text.done": responses.ResponseTextDoneEvent,
    "response.function_call_arguments.delta": responses.ResponseFunctionCallArgumentsDeltaEvent,
    "response.function_call_arguments.done": responses.ResponseFunctionCallArgumentsDoneEvent,
    "response.reasoning_text.delta": responses.ResponseReasoningTextDeltaEvent,
    "response.reasoning_text.done": responses.ResponseReasoningTextDoneEvent,
    "response.content_part.done": responses.ResponseContentPartDoneEvent,
    "response.output_item.done": responses.ResponseOutputItemDoneEvent,
    "response.completed": responses.ResponseCompletedEvent,
    "response.incomplete": responses.ResponseIncompleteEvent,
    "response.failed": responses.ResponseFailedEvent,
    "response.error": responses.ResponseErrorEvent,
}

# By the title of an object: keys that must be there, null or not, though the type does without.
REQUIRED: dict[str, tuple[str, ...]] = {
    "ChatCompletion": ("usage",),
    "ChatCompletionMessage": ("content", "refusal"),
    "Choice": ("logprobs",),
    "ChunkChoice": ("logprobs", "finish_reason"),
    "ChoiceLogprobs": ("content", "refusal"),
    "Completion": ("usage",),
    "CompletionChoice": ("logprobs",),
    "PieceChoice": ("logprobs",),
    "ChatCompletionTokenLogprob": ("bytes",),
    "TopLogprob": ("bytes",),
    "ErrorObject": ("code", "param"),
    "ResponseErrorEvent": ("code", "param"),
    "Response": ("error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "status", "text"),
    "ResponseOutputText": ("logprobs",),
    "Transcription": ("usage",),
    "TranscriptionVerbose": ("segments", "usage"),
    "TranscriptionTextDoneEvent": ("usage",),
}
# Keys that may be null.
NULLABLE: dict[str, tuple[str, ...]] = {
    "ChatCompletionMessage": ("content", "refusal"),
    "Choice": ("logprobs",),
    "ChunkChoice": ("logprobs", "finish_reason"),
    "ChatCompletionChunk": ("usage",),
    "ChoiceLogprobs": ("content", "refusal"),
    "CompletionChoice": ("logprobs",),
    "PieceChoice": ("logprobs", "finish_reason"),
    "Piece": ("usage",),
    "ErrorObject": ("code", "param"),
    "ResponseErrorEvent": ("code", "param"),
    "Response": (
        *("error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "usage", "completed_at"),
        *("max_output_tokens", "previous_response_id", "reasoning", "max_tool_calls"),
    ),
    "Reasoning": ("effort", "summary"),
    "ResponseFormatTextJSONSchemaConfig": ("strict",),
    "FunctionTool": ("parameters", "strict"),
}
# What is said of a field instead of what its type says.
INSTEAD: dict[str, Json] = {
    "Response": {
        "instructions": {"type": ["string", "null"]},
        "created_at": {"type": "integer"},
        "completed_at": {"type": ["integer", "null"]},
    },
    "ChatCompletion": {"choices": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Choice"}}},
    "PieceChoice": {"finish_reason": {"enum": ["stop", "length", "content_filter", None]}},
}
LEFT_OUT = {  # fields
    *("access_programs", "conversation", "image", "input_transformations", "moderation", "prompt", "tool_usage"),
    *("prompt_cache_diagnostics", "prompt_cache_options", "annotations", "misalignment", "caller"),
}
OF_A_RESPONSE = {  # the members of unions that are kept
    *(
        "ResponseOutputMessage",
        "ResponseFunctionToolCall",
        "ResponseOutputText",
        "ResponseOutputRefusal",
        "ResponseReasoningItem",
        "PartReasoningText",
        "FunctionTool",
        "ToolChoiceFunction",
        "ToolChoiceAllowed",
    ),
    *("ResponseFormatText", "ResponseFormatTextJSONSchemaConfig", "ResponseFormatJSONObject", "UsageTokens"),
}


def generate() -> Json:
    """All schemas by name."""
    return {"openai": openai.__version__, **{name: _schema(name, kind) for name, kind in TYPES.items()}}


def _schema(name: str, kind: type[BaseModel]) -> Json:
    schema = kind.model_json_schema()
    if name == "chat_chunk":
        schema["$defs"]["Choice"]["title"] = "ChunkChoice"
    if name == "completion_chunk":  # OpenAI has one type for both
        schema["title"], schema["$defs"]["CompletionChoice"]["title"] = "Piece", "PieceChoice"
    defs = schema.pop("$defs", {})
    strict: Json = _strict(schema)
    kept: Json = {}
    waiting = _named(strict)
    while waiting:
        each = waiting.pop()
        if each not in kept:
            kept[each] = _strict(defs[each])
            waiting |= _named(kept[each])
    return {"$defs": dict(sorted(kept.items())), **strict} if kept else strict


def _named(schema: object) -> set[str]:
    """The definitions that a schema refers to."""
    if isinstance(schema, list):
        return set().union(*map(_named, schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].removeprefix("#/$defs/")} if "$ref" in schema else set()
    return own.union(*map(_named, schema.values()))


def _strict(schema: Json) -> Json:
    """An object's schema by the rules above."""
    title = schema.get("title", "")
    if schema.get("type") != "object":
        return _plain(schema)
    properties = {
        name: _field(title, name, field) for name, field in schema.get("properties", {}).items() if name not in LEFT_OUT
    }
    required = sorted({*schema.get("required", ()), *REQUIRED.get(title, ())} - LEFT_OUT)
    return {"type": "object", "title": title, "properties": properties, "required": required}


def _field(title: str, name: str, field: Json) -> Json:
    if instead := INSTEAD.get(title, {}).get(name):
        return instead
    optional = "default" in field
    plain = _plain(field)
    if not optional or name in NULLABLE.get(title, ()):
        return plain
    members = [member for member in plain.get("anyOf", ()) if member != {"type": "null"}]
    return plain if not members else members[0] if len(members) == 1 else {"anyOf": members}


def _plain(schema: Json) -> Json:
    """Without what is for people, and with the members of unions that concern us."""
    kept = {
        key: value for key, value in schema.items() if key not in ("title", "description", "default", "discriminator")
    }
    if "anyOf" in kept or "oneOf" in kept:
        members = [_plain(member) for member in (*kept.pop("anyOf", ()), *kept.pop("oneOf", ()))]
        members = [member for member in members if _concerns(member, members)]
        return {**kept, "anyOf": members} if len(members) > 1 else {**kept, **members[0]}
    if isinstance(kept.get("items"), dict):
        kept["items"] = _plain(kept["items"])
    return kept


def _concerns(member: Json, members: list[Json]) -> bool:
    if "enum" in member and {"type": "string"} in members:
        return False  # known models, beside any text
    name = member.get("$ref", "").removeprefix("#/$defs/")
    known = [each for each in members if each.get("$ref", "").removeprefix("#/$defs/") in OF_A_RESPONSE]
    return not name or not known or name in OF_A_RESPONSE


def text() -> str:
    """A line for each schema."""
    lines = (f"{json.dumps(name)}: {json.dumps(schema)}" for name, schema in generate().items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(text())
