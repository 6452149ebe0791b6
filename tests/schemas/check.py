"""Whether what a client receives is what OpenAI's clients can take, and what `/openapi.json` describes.

`Exchange` is one request and its answer. It is fed the body as it comes, and tells what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from api.openapi.document import describe
from config import Settings
from tests.schemas.generate import FILE
from tests.schemas.rules import Asked, ChunkRules, Json, ResponseRules, TranscriptRules, of_completion

SCHEMA_EVENTS = 50  # of each stream, that are held against schemas
PROBES = ("/live", "/ready", "/health")
STREAM = "text/event-stream"
ERROR = "#/components/schemas/Error"


def _is_integer(_: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)  # 1.0 is none, which JSON schema lets pass


Strict = extend(Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer))


@cache
def _openai(name: str) -> Any:
    return Strict(json.loads(FILE.read_text())[name])


@cache
def _document() -> Json:
    document: Json = _closed(describe(Settings(_env_file=None, model="fake", api_keys="key")))
    return document


def _closed(schema: Any) -> Any:
    """Without room for fields that are not described."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_object = closed.get("type") == "object" and isinstance(closed.get("properties"), dict)
    return {**closed, "additionalProperties": False} if is_object else closed


@cache
def _described(reference: str) -> Any:
    return Strict({"components": _document()["components"], "$ref": reference})


def _wrong(validator: Any, value: object, where: str) -> Iterator[str]:
    if error := best_match(validator.iter_errors(value)):
        yield f"{where}: {error.json_path}: {error.message}"


def _against(name: str, value: object) -> Iterator[str]:
    """OpenAI's own type of this name."""
    yield from _wrong(_openai(name), value, f"OpenAI's {name}")


class Exchange:
    """One request and its answer. `asked`: the request's body where it is JSON, else `None`."""

    def __init__(self, method: str, path: str, asked: Asked, status: int, headers: Mapping[str, str]) -> None:
        self._path = path.rstrip("/") or "/"
        self._asked = asked
        self._status = status
        self._type = headers.get("content-type", "").partition(";")[0]
        self._unread = b""
        self._has_ended = False
        self._stream = _Stream(self._path, asked) if self._type == STREAM else None
        self.wrong: list[str] = []
        self._bodiless = method in ("HEAD", "OPTIONS") or status == 304
        if method != "OPTIONS":
            self.wrong += self._of_headers(method, headers)

    def _of_headers(self, method: str, headers: Mapping[str, str]) -> Iterator[str]:
        for name in ("x-request-id", "openai-processing-ms"):
            if name not in headers:
                yield f"no {name}"
        described = _operation(method, self._path)
        if described and self._status not in (304, 405) and str(self._status) not in described["responses"]:
            yield f"the status {self._status} is not described"
        asked = self._asked if self._status == 200 and self._path in STREAMS else None
        if asked is not None and bool(asked.get("stream")) != (self._stream is not None):
            yield f"{self._type} for `stream`: {asked.get('stream')}"
        if self._stream:
            if headers.get("cache-control") != "no-cache" or {"content-length", "content-encoding"} & set(headers):
                yield "a stream that may be cached, or has a length or an encoding"
        elif self._status in (429, 503) and self._path not in PROBES and "retry-after" not in headers:
            yield "no retry-after"

    def feed(self, data: bytes) -> None:
        if self._stream is None:
            self._unread += data
            return
        *events, self._unread = (self._unread + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self.wrong += self._stream.see(event.decode())

    def end(self) -> list[str]:
        """What is wrong, once all of the body has come."""
        if self._has_ended:
            return self.wrong
        self._has_ended = True
        if self._stream is not None:
            if self._unread:
                self.wrong.append("the last event is not closed")
            self.wrong += self._stream.end()
        elif not self._bodiless:
            self.wrong += self._of_body()
        return self.wrong

    def _of_body(self) -> Iterator[str]:
        if self._type != "application/json":
            if self._status >= 400:
                yield f"an error as {self._type or 'nothing'}"
            return
        try:
            body = json.loads(self._unread)
        except ValueError:
            yield "the body is no JSON"
            return
        described = _operation("GET", self._path) or _operation("POST", self._path)
        if self._status >= 400 and self._path not in PROBES:
            yield from _of_error(body)
        elif described:
            answer = described["responses"].get(str(self._status), {})
            schema = answer.get("content", {}).get("application/json", {}).get("schema", {"$ref": ERROR})
            yield from _wrong(_described(schema["$ref"]), body, "/openapi.json")
            wrong = list(_of_answer(self._path, body))
            yield from wrong or (of_completion(body, self._asked) if "completions" in self._path else ())


def _operation(method: str, path: str) -> Json | None:
    path = "/v1/models/{name}" if path.startswith("/v1/models/") else path
    operation: Json | None = _document()["paths"].get(path, {}).get(method.lower().replace("head", "get"))
    return operation


def _of_error(body: object) -> Iterator[str]:
    if not isinstance(body, dict) or set(body) != {"error"}:
        yield "an error without its envelope"
        return
    yield from _against("error", body["error"])
    yield from _wrong(_described(ERROR), body, "/openapi.json")


def _of_answer(path: str, body: Json) -> Iterator[str]:
    match path.removeprefix("/v1/").split("/"):
        case ["chat", "completions"]:
            yield from _against("chat", body)
        case ["completions"]:
            yield from _against("completion", body)
        case ["responses"]:
            yield from _against("response", body)
        case ["audio", _]:
            yield from _against("transcription_verbose" if "segments" in body else "transcription", body)
        case ["models"]:
            if body.get("object") != "list" or not body.get("data"):
                yield "a list of models without its envelope, or empty"
            for model in body.get("data") or ():
                yield from _against("model", model)
        case ["models", *_]:
            yield from _against("model", body)


# ------------------------------------------------------------------------------------------------------------- streams

Rules = ChunkRules | ResponseRules | TranscriptRules
STREAMS: dict[str, tuple[Callable[[Asked], Rules], Callable[[Json], str], str]] = {  # rules, OpenAI's type, last line
    "/v1/chat/completions": (lambda asked: ChunkRules(asked, has_roles=True), lambda _: "chat_chunk", "[DONE]"),
    "/v1/completions": (lambda asked: ChunkRules(asked, has_roles=False), lambda _: "completion_chunk", "[DONE]"),
    "/v1/responses": (ResponseRules, lambda event: event["type"].replace("error", "response.error"), ""),
    "/v1/audio/transcriptions": (TranscriptRules, lambda event: str(event["type"]), "[DONE]"),
    "/v1/audio/translations": (TranscriptRules, lambda event: str(event["type"]), "[DONE]"),
}


class _Stream:
    def __init__(self, path: str, asked: Asked) -> None:
        make, self._type_of, self._last = STREAMS[path]
        self._rules = make(asked)
        self._schema = _document()["paths"][path]["post"]["responses"]["200"]["content"][STREAM]["x-event-schema"][
            "$ref"
        ]
        self._seen = 0
        self._is_over = self._failed = self._broken = False

    def see(self, event: str) -> Iterator[str]:
        """One event, without its blank line."""
        if self._is_over:
            yield f"an event after the last: {event[:80]}"
        lines = dict(line.partition(": ")[::2] for line in event.split("\n"))
        if set(lines) - {"event", "data"} or "data" not in lines:
            yield f"no plain event: {event[:80]}"
            return
        if lines["data"] == "[DONE]":
            self._is_over = True
            if not self._last:
                yield "[DONE], which such a stream does not have"
            return
        try:
            value = json.loads(lines["data"])
        except ValueError:
            yield f"an event that is no JSON: {event[:80]}"
            return
        if lines.get("event", value.get("type")) != value.get("type"):
            yield "an event under another name than its type"
        yield from self._value(value)

    def _value(self, value: Json) -> Iterator[str]:
        if "error" in value and "type" not in value:
            self._is_over = self._failed = True
            yield from _of_error(value)
            return
        self._seen += 1
        self._failed |= value.get("type") == "error"
        try:
            wrong = [*self._of_type(value)] or [*self._rules.see(value)]
            wrong += self._of_description(value)
        except (KeyError, TypeError, AttributeError):
            wrong = [f"an event of no known form: {str(value)[:80]}"]
        self._broken |= bool(wrong)
        yield from wrong

    def _of_type(self, value: Json) -> Iterator[str]:
        """Of the first events: a schema takes a millisecond, and a stream that began well rarely changes its form."""
        return _against(self._type_of(value), value) if self._seen <= SCHEMA_EVENTS else iter(())

    def _of_description(self, value: Json) -> Iterator[str]:
        described = _described(self._schema)
        return _wrong(described, value, "/openapi.json") if self._seen <= SCHEMA_EVENTS else iter(())

    def end(self) -> Iterator[str]:
        """The connection was closed in order."""
        if self._failed or self._broken:
            return
        if self._last and not self._is_over:
            yield f"no {self._last}, and no error"
        yield from self._rules.end()
