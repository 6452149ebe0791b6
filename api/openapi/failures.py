"""The answers to what goes wrong, by status, from the table of `errors.py`."""

from __future__ import annotations

from collections.abc import Iterator

import errors
from api.answers import Json
from errors import EardrumError, family

SAYS: dict[type[EardrumError], tuple[str, str | None]] = {  # an example of what each tells, and its `param`
    errors.BadRequest: ("`temperature`: Input should be less than or equal to 2.", "temperature"),
    errors.BadAudio: (
        "`messages[0].content[1].input_audio.data`: the audio is empty.",
        "messages[0].content[1].input_audio.data",
    ),
    errors.AudioTooLong: (
        "`file`: the audio is larger than the limit of 25000000 bytes. Send it compressed, or in parts.",
        "file",
    ),
    errors.BadAudioUrl: (
        "`messages[0].content[0].audio_url.url`: the host has no public address.",
        "messages[0].content[0].audio_url.url",
    ),
    errors.InvalidApiKey: ("No valid API key was provided.", None),
    errors.NotFound: ("Not Found. See /docs for the endpoints.", None),
    errors.ModelNotFound: ("This model does not exist here.", "model"),
    errors.MethodNotAllowed: ("Method Not Allowed. See /docs for the endpoints.", None),
    errors.RequestTimeout: ("The rest of the request did not arrive in time.", None),
    errors.BodyTooLarge: ("The request body is larger than the limit of 100000000 bytes.", None),
    errors.UnsupportedMediaType: ("Send the request as JSON, with the header `Content-Type: application/json`.", None),
    errors.Overloaded: ("The queue is full. Try again later.", None),
    errors.RateLimited: ("Your limit of 60 requests in a minute is reached. Try again in 12 s.", None),
    errors.InternalError: ("The server failed on this request. The request id is in x-request-id.", None),
    errors.KillsWorkers: ("Workers died of this request. Do not send it again.", None),
    errors.Unavailable: ("No worker is ready.", None),
    errors.Draining: ("The server is about to end and takes no more requests.", None),
    errors.WorkerDied: ("The worker died while it was processing the request.", None),
    errors.DeadlineExceeded: (
        "The request's time is over. It is what `x-request-timeout` says, or the server's limit.",
        None,
    ),
}
TITLES = {
    400: "A field, an audio or an address is wrong, or over a limit.",
    401: "No key, or a wrong one.",
    404: "There is no such model.",
    408: "The client stopped sending.",
    413: "The body is over its limit.",
    415: "The body is of another media type.",
    429: "Too much waits, or the key is over its limit.",
    500: "The model failed on this request, or workers die of it.",
    503: "No worker is ready, the worker died, or the server is about to end.",
    504: "The request's time is over.",
}
HEADERS: dict[str, str] = {
    "x-request-id": "The request's id: the client's own, if it sent a sane one.",
    "openai-processing-ms": "Milliseconds until the answer began.",
    "retry-after": "Seconds to wait before the request is sent again.",
    "x-should-retry": "`false`: it would fail again. The SDKs heed it.",
    "www-authenticate": "`Bearer`.",
    "x-ratelimit-limit-requests": "Requests that the key may send in a minute; where the server limits them.",
    "x-ratelimit-remaining-requests": "How many of them are left.",
    "x-ratelimit-reset-requests": "When all of them are there again, such as `12.500s`.",
    "x-ratelimit-limit-audio-seconds": "Seconds of audio that the key may have heard in a minute, if limited.",
    "x-ratelimit-remaining-audio-seconds": "How many of them are left.",
    "x-ratelimit-reset-audio-seconds": "When all of them are there again, such as `12.500s`.",
}
ALWAYS = ("x-request-id", "openai-processing-ms")
OF_A_KEY = tuple(name for name in HEADERS if name.startswith("x-ratelimit"))


def components() -> Json:
    """The answer of each status, by the name `Error` and its number."""
    return {f"Error{status}": _answer(status) for status in TITLES}


def headers(names: tuple[str, ...]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _answer(status: int) -> Json:
    kinds = list(_of_status(status))
    own = {name: None for kind in kinds for name in kind("").headers if name in HEADERS}
    limited = OF_A_KEY if status == errors.RateLimited.status else ()
    codes = ", ".join(f"`{kind.code}`" for kind in kinds if kind.code)
    examples = {kind.code or "invalid_request": {"value": kind(*SAYS[kind]).body()} for kind in kinds}
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        "description": f"{TITLES[status]} `code`: {codes or 'null'}." if codes else TITLES[status],
        "headers": headers((*ALWAYS, *own, *limited)),
        "content": {"application/json": {"schema": schema, "examples": examples}},
    }


def _of_status(status: int) -> Iterator[type[EardrumError]]:
    return (kind for kind in family(EardrumError) if kind in SAYS and kind.status == status)
