"""The exception tree, and the one table from an exception to an HTTP answer.

Every class knows its HTTP status and OpenAI's `type` and `code`. An error crosses the process border as its class
name and plain strings (`wire.Failed`) and is rebuilt by `rebuild`; exception objects are never pickled between
processes of ours, since one that does not pickle would take its worker with it.

    EardrumError
    ├── BadRequest                  400
    │   ├── BadAudio                400  not audio, or audio that breaks off
    │   ├── AudioTooLong            400  over a limit of seconds or bytes
    │   └── BadAudioUrl             400  refused, unreachable or too slow
    ├── InvalidApiKey               401
    ├── NotFound                    404
    │   └── ModelNotFound           404
    ├── MethodNotAllowed            405
    ├── RequestTimeout              408  the client stopped sending
    ├── StreamNotRead               408  the client stopped reading: only ever an event in a stream
    ├── BodyTooLarge                413
    ├── UnsupportedMediaType        415
    ├── Overloaded                  429
    │   └── RateLimited             429  one key's own limit
    ├── InternalError               500
    ├── KillsWorkers                500  workers die of it
    ├── Unavailable                 503
    │   ├── Draining                503  the server is about to end
    │   └── WorkerDied              503
    └── DeadlineExceeded            504
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class EardrumError(Exception):
    """Base of all errors that a client may see. `message` is written for the client."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    fixed_headers: ClassVar[dict[str, str]] = {}
    retry_after_s: int | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer, beside those that every answer has."""
        if self.retry_after_s is None:
            return self.fixed_headers
        return {**self.fixed_headers, "retry-after": str(self.retry_after_s)}

    def fields(self) -> tuple[str, str, str | None]:
        """What `rebuild` makes this error of: its kind, message and param, as `wire.Failed` carries them."""
        return type(self).__name__, self.message, self.param

    def body(self) -> dict[str, Any]:
        """OpenAI's error envelope."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


class BadRequest(EardrumError):
    status, type = 400, "invalid_request_error"


class BadAudio(BadRequest):
    code = "invalid_audio"


class AudioTooLong(BadRequest):
    code = "audio_too_long"


class BadAudioUrl(BadRequest):
    code = "invalid_audio_url"


class InvalidApiKey(EardrumError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"
    fixed_headers: ClassVar = {"www-authenticate": "Bearer"}


class NotFound(EardrumError):
    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(EardrumError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(EardrumError):
    status, type, code = 408, "invalid_request_error", "request_timeout"
    fixed_headers: ClassVar = {"connection": "close"}


class StreamNotRead(EardrumError):
    status, type, code = 408, "invalid_request_error", "stream_not_read"


class BodyTooLarge(EardrumError):
    status, type, code = 413, "invalid_request_error", "request_too_large"
    fixed_headers: ClassVar = {"connection": "close"}


class UnsupportedMediaType(EardrumError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class Overloaded(EardrumError):
    status, type, code = 429, "rate_limit_error", "queue_full"

    def __init__(self, message: str, param: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, param)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    code = "rate_limit_exceeded"


class InternalError(EardrumError):
    code = "internal_error"


class KillsWorkers(EardrumError):
    code = "kills_workers"
    fixed_headers: ClassVar = {"x-should-retry": "false"}


class Unavailable(EardrumError):
    status, code, retry_after_s = 503, "unavailable", 2


class Draining(Unavailable):
    code = "draining"
    fixed_headers: ClassVar = {"connection": "close"}


class WorkerDied(Unavailable):
    code = "worker_died"


class DeadlineExceeded(EardrumError):
    status, code = 504, "deadline_exceeded"
    fixed_headers: ClassVar = {"x-should-retry": "false"}


def family(root: type[EardrumError]) -> Iterator[type[EardrumError]]:
    """A class and all below it."""
    yield root
    for child in root.__subclasses__():
        yield from family(child)


_BY_NAME = {cls.__name__: cls for cls in family(EardrumError)}
_BY_STATUS = {404: NotFound, 405: MethodNotAllowed, 413: BodyTooLarge, 415: UnsupportedMediaType}


def rebuild(kind: str, message: str, param: str | None) -> EardrumError:
    """The exception that a process named by its class `kind`; an unknown name is an `InternalError`."""
    return _BY_NAME.get(kind, InternalError)(message, param)


def for_status(status: int, message: str) -> EardrumError:
    """Our exception for an HTTP status that a framework raised."""
    return _BY_STATUS.get(status, InternalError if status >= 500 else BadRequest)(message)


@contextmanager
def located(place: str) -> Iterator[None]:
    """Name the place in the request, such as `messages[0].content[1].audio_url`, in every `BadRequest` from within."""
    try:
        yield
    except BadRequest as error:
        if error.param is not None:
            raise
        raise type(error)(f"`{place}`: {error.message}", place) from error
