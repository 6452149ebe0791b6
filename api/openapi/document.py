"""`/openapi.json`: the table of operations in the words of OpenAPI 3.1. Endpoints read their bodies themselves, so the
framework cannot derive it.

It names the served model only where no key guards it, as everybody may read this.
"""

from __future__ import annotations

import json

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from api.answers import Json
from api.openapi import failures, requests
from api.openapi.examples import NAME, named
from api.openapi.failures import ALWAYS
from api.openapi.operations import FORM, OPERATIONS, STREAM, TEXT, Body, Operation, answer_models, request_models
from config import VERSION, Settings

ABOUT = """Serves an audio-language model. What answers a GET answers a HEAD, and a slash at the end of a path means
nothing. Fields that are not listed are ignored, and null is the same as nothing.

Errors before the first token of a stream have their status, as without a stream. A later one is the stream's last
event: the same envelope, or an event of the type `error` in the Responses API."""


class _Readable(GenerateJsonSchema):
    """Without titles made of field names, and without defaults: what may be absent is not `required`."""

    def field_title_should_be_set(self, schema: object) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])


def render(settings: Settings) -> bytes:
    """The document as JSON."""
    return json.dumps(describe(settings), ensure_ascii=False, separators=(",", ":")).encode()


def describe(settings: Settings) -> Json:
    """The document."""
    paths: Json = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _operation(method, path, operation, settings)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Eardrum", "version": VERSION, "description": ABOUT, "license": LICENSE},
        "paths": paths,
        "components": {
            "schemas": _schemas(settings),
            "responses": failures.components(),
            "parameters": PARAMETERS,
            "headers": {name: _header(name, text) for name, text in failures.HEADERS.items()},
            **({"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if settings.keys else {}),
        },
        **({"security": [{"key": []}]} if settings.keys else {}),
    }


LICENSE: Json = {"name": "Apache 2.0", "identifier": "Apache-2.0"}
PARAMETERS: Json = {
    "x-request-timeout": {
        "name": "x-request-timeout",
        "in": "header",
        "description": "Seconds until the request is given up, where that is less than the server allows.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "example": 30,
    },
    "x-request-id": {
        "name": "x-request-id",
        "in": "header",
        "description": "A name for the request, of up to 128 letters, digits and `_.:-`; told again and logged.",
        "schema": {"type": "string"},
        "example": "my-request-1",
    },
}


def _schemas(settings: Settings) -> Json:
    asked, told = _defs(request_models()), _defs(answer_models())
    assert not asked.keys() & told.keys(), "a name means one thing"
    requests.mend(asked, settings)
    of_either = [{"$ref": f"#/components/schemas/{name}"} for name in ("Transcription", "VerboseTranscription")]
    return {**asked, **told, "AnyTranscription": {"anyOf": of_either}}


def _defs(models: list) -> Json:  # type: ignore[type-arg]
    """The schemas of models and of all that they hold, by their names."""
    inputs = [(model, "validation") for model in models]
    _, schema = models_json_schema(
        inputs,  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
        schema_generator=_Readable,
    )
    defs: Json = schema["$defs"]
    return defs


def _operation(method: str, path: str, operation: Operation, settings: Settings) -> Json:
    """`operationId` is what generated clients call it."""
    told = {str(status): _answer(operation, status, settings) for status in operation.answers}
    failed = [status for status in operation.failures if status != 401 or settings.keys]
    return {
        "operationId": "_".join((method, *path.replace("{", "").replace("}", "").split("/")[1:])),
        "summary": operation.summary,
        "tags": [operation.tag],
        **({"description": operation.description} if operation.description else {}),
        **({"parameters": list(operation.parameters)} if operation.parameters else {}),
        **({"requestBody": _body(operation, settings)} if operation.takes else {}),
        "responses": {**told, **{str(status): {"$ref": f"#/components/responses/Error{status}"} for status in failed}},
        **({"security": []} if operation.is_open and settings.keys else {}),
    }


def _body(operation: Operation, settings: Settings) -> Json:
    return {"required": True, "content": {body.media_type: _content(body, settings) for body in operation.takes}}


def _answer(operation: Operation, status: int, settings: Settings) -> Json:
    content = {body.media_type: _content(body, settings) for body in operation.answers[status]}
    text = "The answer" if status == 200 else "Not now"
    if STREAM in content:
        text += "; with `stream` in server-sent events, whose schema is under `x-event-schema`"
    return {"description": f"{text}.", "headers": failures.headers((*ALWAYS, *operation.headers)), "content": content}


def _content(body: Body, settings: Settings) -> Json:
    name = NAME if settings.keys else settings.public_name
    told = {key: {"value": named(value, name)} for key, value in body.examples.items()}
    if body.media_type == STREAM:
        told = {key: {"value": _event(value["value"], body.end)} for key, value in told.items()}
        return {"schema": {"type": "string"}, "x-event-schema": _reference(body), "examples": told}
    if body.media_type == TEXT:
        return {"schema": {"type": "string"}, "examples": told}
    lists = {"encoding": {"file": {"contentType": "application/octet-stream"}}} if body.media_type == FORM else {}
    return {"schema": _reference(body), "examples": told, **lists}


def _reference(body: Body) -> Json:
    name = body.kind if isinstance(body.kind, str) else body.kind.__name__ if body.kind else ""
    return {"$ref": f"#/components/schemas/{name}"}


def _event(value: Json, end: str) -> str:
    kind = f"event: {value['type']}\n" if not end else ""  # as the Responses API has it
    return f"{kind}data: {json.dumps(value, separators=(',', ':'))}\n\n{end}"


def _header(name: str, text: str) -> Json:
    return {"description": text, "schema": {"type": "integer" if name in _NUMBERS else "string"}}


_NUMBERS = {"openai-processing-ms", "retry-after", "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"}
