"""The schemas of requests, from the models that read them, and what those models say in code instead of in types.

Where a rule is no schema's to say (fields that exclude each other, sums over a conversation), the description is looser
than the server, which then answers 400; it is never stricter.
"""

from __future__ import annotations

from collections.abc import Iterator

from api.answers import Json
from api.transcription_request import LISTS
from config import Settings

FIELDS = {
    "model": "A name from `GET /v1/models`.",
    "messages": "The conversation. All audio in it is heard, in order.",
    "stream": "Answer in server-sent events.",
    "stream_options": "With `stream` only.",
    "include_usage": "A last chunk tells the usage.",
    "continuous_usage_stats": "Each chunk tells the usage so far; with `include_usage` only.",
    "continue_final_message": "The last message is the assistant's, and the answer goes on where it ends.",
    "add_generation_prompt": "Whether the chat template opens the assistant's turn; true where nothing is said.",
    "chat_template_kwargs": "Variables of the chat template.",
    "add_special_tokens": "Those that the tokenizer puts around a `prompt`; true where nothing is said.",
    "return_token_strs": "Tell the tokens' names, too.",
    "max_tokens": "Most tokens of the answer.",
    "max_completion_tokens": "The same; it goes before `max_tokens`.",
    "max_output_tokens": "Most tokens of the answer.",
    "min_tokens": "Fewest tokens of the answer.",
    "temperature": "0 is greedy. Where nothing is said, the model's own.",
    "top_p": "Sample from the likeliest tokens of this probability together.",
    "top_k": "Sample from so many of the likeliest tokens; 0 and -1: from all.",
    "min_p": "Drop tokens less likely than this share of the likeliest one's probability.",
    "presence_penalty": "Against tokens that were written before.",
    "frequency_penalty": "The same, for each time.",
    "repetition_penalty": "Divides the logits of tokens that were there before, in the prompt too; 1: nothing.",
    "logit_bias": "From token ids to what is added to their logits.",
    "ignore_eos": "Go on behind the end that the model writes.",
    "priority": "Lower goes first.",
    "seed": "The same seed draws the same tokens.",
    "stop": "The answer ends before any of these.",
    "n": "Choices.",
    "logprobs": "Tell the log-probability of each token.",
    "top_logprobs": "Tell so many alternatives beside each token, with `logprobs` only.",
    "modalities": "`text`; this server does not speak.",
    "tools": "Functions that the model may call.",
    "tool_choice": "Whether it may, must, or which one; auto where nothing is said.",
    "parallel_tool_calls": "Whether an answer may call several; true where nothing is said.",
    "functions": "OpenAI's older form: use `tools`.",
    "function_call": "OpenAI's older form: use `tool_choice`.",
    "response_format": "What the answer must look like.",
    "structured_outputs": "The same in vLLM's words: exactly one of json, regex, choice, grammar and json_object.",
    "long_audio": "Audio longer than the model hears at once: `error` refuses it, `truncate` hears its beginning, "
    "`chunk` answers it in pieces.",
    "uuid": "A name for this audio. Later requests may send it alone.",
    "input_audio": "Base64 in `data`.",
    "audio_url": "An http(s) address or a `data:` URI.",
    "include": "`message.output_text.logprobs` tells the log-probability of each token; other values tell nothing.",
    "instructions": "A system message before the input.",
    "metadata": "Comes back with the answer.",
    "prompt": "The text that is continued.",
    "best_of": "1.",
    "grammar": "In the syntax of Lark or of llama.cpp (GBNF).",
}
_AUDIO_FIELDS = {
    "prompt": "Helps with names and spelling.",
    "language": "ISO 639-1, such as `en`.",
    "response_format": "`json` where nothing is said.",
    "timestamp_granularities": "`segment`, with verbose_json only.",
    "include": "`logprobs`, with json only.",
    "stream": "Answer in server-sent events, with json and text only.",
    "chunking_strategy": "The server cuts at pauses by itself.",
    "file": "Audio of any format. Its name and type are not looked at.",
}
_REFUSED = "Not done here: leave it out."
_OLDER = "Older vLLM's way to ask for `structured_outputs`."
_GIVEN_UP = dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), _OLDER)


def mend(schemas: Json, settings: Settings) -> None:
    """Say in the request models' schemas what their validators do, what each field is, and this server's limits."""
    for block, audio in (("AudioUrlBlock", "audio_url"), ("InputAudioBlock", "input_audio")):
        schemas[block]["anyOf"] = [_given(audio), _given("uuid")]
    schemas["AnyFormat"]["properties"]["type"]["enum"] = ["text", "json_object"]
    schemas["SchemaFormat"]["properties"]["type"] = {"const": "json_schema"}
    schemas["TranscriptionRequest"]["properties"]["chunking_strategy"] = _STRATEGY
    schemas["TranscriptionRequest"]["properties"]["timestamp_granularities"] = _nullable(_strings("segment"))
    schemas["TranscriptionRequest"]["required"].append("input_audio")
    schemas["TranscriptionRequest"]["properties"]["input_audio"] = {"$ref": "#/components/schemas/InputAudio"}
    schemas["TranscriptionForm"] = _form(schemas["TranscriptionRequest"])
    for name, schema in schemas.items():
        own = _AUDIO_FIELDS if name.startswith("Transcription") else {}
        _describe(schema.get("properties", {}), {**_GIVEN_UP, **FIELDS, **own})
    for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest"):
        _bound(schemas[name]["properties"], settings)
        _sort(schemas[name])
    _name_models(schemas, settings)
    _allow_variables(schemas, settings)


_STRATEGY: Json = {
    "anyOf": [
        {"const": "auto"},
        {
            "type": "object",
            "properties": {"type": {"const": "server_vad"}},
            "additionalProperties": False,
            "minProperties": 1,
        },
        {"type": "null"},
    ]
}


def _strings(*allowed: str) -> Json:
    return {"type": "array", "items": {"enum": list(allowed)}}


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _given(field: str) -> Json:
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


def _form(request: Json) -> Json:
    """The same fields as a form has them: no nulls, and the audio as a file."""
    fields = {name: _without_null(schema) for name, schema in request["properties"].items() if name != "input_audio"}
    fields = {f"{name}[]" if name in LISTS else name: schema for name, schema in fields.items()}
    file = {"type": "string", "format": "binary", "description": _AUDIO_FIELDS["file"]}
    return {"type": "object", "properties": {"file": file, **fields}, "required": ["file", "model"]}


def _without_null(schema: Json) -> Json:
    members = [member for member in schema.get("anyOf", ()) if member != {"type": "null"}]
    return members[0] if len(members) == 1 else {**schema, "anyOf": members} if members else schema


def _describe(properties: Json, told: dict[str, str]) -> None:
    for name, schema in properties.items():
        if is_refused(schema):
            schema["description"] = _REFUSED
        elif text := told.get(name.removesuffix("[]")):
            schema.setdefault("description", text)


def is_refused(schema: Json) -> bool:
    """Whether a field is one of those that are not done here."""
    return {"enum": schema.get("enum")} in ({"enum": [None, False, [], {}]}, {"enum": [None, True]})


def _bound(fields: Json, settings: Settings) -> None:
    """Write this server's limits into a request's fields."""
    for name, kind, limits in (
        ("n", "integer", {"maximum": settings.max_n}),
        ("top_logprobs", "integer", {"maximum": settings.max_top_logprobs}),
        ("logprobs", "integer", {"maximum": settings.max_top_logprobs}),
        ("logit_bias", "object", {"maxProperties": settings.max_logit_bias, "additionalProperties": False}),
        ("stop", "array", {"maxItems": settings.max_stop}),
        ("stop", "string", {"maxLength": settings.max_stop_chars}),
    ):
        for schema in _members(fields.get(name, {})):
            if schema.get("type") == kind:
                schema.update(limits)


def _members(schema: Json) -> Iterator[Json]:
    """A schema, those that it is one of, and those of its items."""
    yield schema
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *filter(None, [schema.get("items")])):
        yield from _members(inner)


def _sort(schema: Json) -> None:
    """What is needed first, what is refused last."""

    def rank(field: tuple[str, Json]) -> int:
        name, inner = field
        return 2 if is_refused(inner) else 0 if name in schema["required"] else 1

    schema["properties"] = dict(sorted(schema["properties"].items(), key=rank))


def _allow_variables(schemas: Json, settings: Settings) -> None:
    """The variables of the chat template that this server takes."""
    for name in ("ChatRequest", "TokenizeRequest"):
        for schema in _members(schemas[name]["properties"]["chat_template_kwargs"]):
            if schema.get("type") == "object":
                schema["propertyNames"] = {"enum": list(settings.allow_template_kwargs)}


def _name_models(schemas: Json, settings: Settings) -> None:
    """The names that may be asked for, where everybody may know them."""
    if not settings.keys:
        for schema in schemas.values():
            if "model" in schema.get("properties", {}):
                schema["properties"]["model"]["enum"] = list(settings.public_names)
