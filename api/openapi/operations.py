"""Every operation of the server: what it takes, what it answers, and how it can fail. A new route gets its entry here;
a test holds this table against the routes.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from api.answers import Json
from api.form import Form
from api.openapi import answers, examples, responses
from api.openapi.failures import OF_A_KEY
from api.responses_schema import ResponsesRequest
from api.schema import ChatRequest
from api.text_completions import CompletionRequest
from api.tokenization import DetokenizeRequest, TokenizeRequest
from api.transcription_request import TranscriptionRequest
from config import VERSION

JSON, FORM, STREAM, TEXT = "application/json", "multipart/form-data", "text/event-stream", "text/plain"


@dataclass(frozen=True)
class Body:
    """Of one media type, with an example or several by their names. `kind`: its model, or where it has none the name of
    its schema. `end`: what closes a stream."""

    media_type: str
    kind: type[BaseModel] | str | None
    examples: dict[str, object]
    end: str = ""


@dataclass(frozen=True)
class Operation:
    """`failures`: the statuses of its errors. `is_open`: it needs no key."""

    summary: str
    tag: str
    answers: dict[int, tuple[Body, ...]]
    takes: tuple[Body, ...] = ()
    failures: tuple[int, ...] = ()
    parameters: tuple[Json, ...] = ()
    description: str = ""
    is_open: bool = False
    headers: tuple[str, ...] = ()


def _json(kind: type[BaseModel], example: object) -> Body:
    return Body(JSON, kind, {"example": example})


def _events(kind: type[BaseModel], example: object, end: str = "data: [DONE]\n\n") -> Body:
    return Body(STREAM, kind, {"event": example}, end)


DEADLINE: Json = {"$ref": "#/components/parameters/x-request-timeout"}
ID: Json = {"$ref": "#/components/parameters/x-request-id"}
NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "A name from the list. It may hold slashes.",
    "schema": {"type": "string"},
    "example": examples.NAME,
}
ASKING = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)  # the failures of what asks the model


def _asks(summary: str, takes: Body | tuple[Body, ...], *told: Body, tag: str, description: str = "") -> Operation:
    """One that asks the model."""
    return Operation(
        summary,
        tag,
        {200: told},
        takes if isinstance(takes, tuple) else (takes,),
        ASKING,
        (DEADLINE, ID),
        description,
        headers=OF_A_KEY,
    )


def _hears(summary: str) -> Operation:
    """A transcription or translation."""
    return _asks(
        summary,
        (
            Body(FORM, "TranscriptionForm", {"example": examples.TRANSCRIPTION_FORM}),
            _json(TranscriptionRequest, examples.TRANSCRIPTION_REQUEST),
        ),
        Body(
            JSON,
            "AnyTranscription",
            {"json": examples.TRANSCRIPTION, "verbose_json": examples.VERBOSE_TRANSCRIPTION},
        ),
        Body(TEXT, None, dict(examples.TEXTS)),
        _events(answers.TranscriptEvent, examples.TRANSCRIPT_EVENT),
        tag="Audio",
        description="JSON for `response_format` json and verbose_json, text for text, srt and vtt. In a form, lists "
        "may be sent with `[]` behind their name or without, and an empty field counts as not given.",
    )


def _tells(
    summary: str, kind: type[BaseModel], example: object, tag: str, *failures: int, path: tuple[Json, ...] = ()
) -> Operation:
    """One that is read."""
    return Operation(summary, tag, {200: (_json(kind, example),)}, failures=failures, parameters=(*path, ID))


def _probe(summary: str, *statuses: int) -> Operation:
    told: dict[int, tuple[Body, ...]] = {
        status: (_json(answers.Status, {"status": "ok" if status == 200 else "unavailable"}),) for status in statuses
    }
    return Operation(summary, "Probes", told, is_open=True)


_READY = _probe("A worker answers, too, and requests are taken", 200, 503)

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/v1/chat/completions"): _asks(
        "Answer a conversation",
        _json(ChatRequest, examples.CHAT_REQUEST),
        _json(answers.ChatCompletion, examples.CHAT_COMPLETION),
        _events(answers.ChatCompletionChunk, examples.CHAT_CHUNK),
        tag="Text",
    ),
    ("post", "/v1/responses"): _asks(
        "Answer a conversation, by the Responses API",
        _json(ResponsesRequest, examples.RESPONSES_REQUEST),
        _json(responses.Response, examples.RESPONSE),
        _events(responses.ResponseStreamEvent, examples.RESPONSE_EVENT, end=""),
        tag="Text",
        description="Nothing is stored: each request brings its whole conversation.",
    ),
    ("post", "/v1/completions"): _asks(
        "Continue a text",
        _json(CompletionRequest, examples.COMPLETION_REQUEST),
        _json(answers.TextCompletion, examples.COMPLETION),
        _events(answers.TextCompletionChunk, examples.COMPLETION_CHUNK),
        tag="Text",
        description="By models that can. `max_tokens` is 16 where nothing is said.",
    ),
    ("post", "/v1/audio/transcriptions"): _hears("Write down what is said"),
    ("post", "/v1/audio/translations"): _hears("Write down what is said, in English"),
    ("post", "/tokenize"): _asks(
        "The tokens of a text, or of messages by the chat template",
        _json(TokenizeRequest, examples.TOKENIZE_REQUEST),
        _json(answers.Tokens, examples.TOKENS),
        tag="Tokens",
    ),
    ("post", "/detokenize"): _asks(
        "The text of tokens",
        _json(DetokenizeRequest, examples.DETOKENIZE_REQUEST),
        _json(answers.DetokenizedText, examples.DETOKENIZED),
        tag="Tokens",
    ),
    ("get", "/v1/models"): _tells(
        "The served model, under each of its names", answers.ModelList, examples.MODELS, "Models", 401
    ),
    ("get", "/v1/models/{name}"): _tells(
        "The served model", answers.Model, examples.MODEL, "Models", 401, 404, path=(NAME,)
    ),
    ("get", "/version"): _tells("The server's version", answers.Version, {"version": VERSION}, "Server", 401),
    ("get", "/live"): _probe("This process answers", 200),
    ("get", "/ready"): _READY,
    ("get", "/health"): _READY,
}


def request_models() -> list[type[Form]]:
    """Every model that a JSON body is read by."""
    kinds = [body.kind for operation in OPERATIONS.values() for body in operation.takes]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Form)]


def answer_models() -> list[type[BaseModel]]:
    """Every model of an answer or of an event."""
    bodies = [body for operation in OPERATIONS.values() for told in operation.answers.values() for body in told]
    kinds = [body.kind for body in bodies if isinstance(body.kind, type)]
    return [*kinds, answers.Transcription, answers.VerboseTranscription, answers.Error]
