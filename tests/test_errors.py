"""docs/errors.md tells what errors.py has, and what the official client makes of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import openai
import pytest
from starlette.types import Receive, Scope, Send

from api import sse
from api.boundary import RequestBoundary
from errors import EardrumError, StreamNotRead, family
from tests.support.inprocess import InProcess, openai_client, request, run_in_process
from tests.support.speech import audio_url, input_audio, user
from tests.support.waiting import until

CLASSES = [cls for cls in family(EardrumError) if cls is not EardrumError]
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "errors.md").read_text()
ROW = re.compile(r"^\| (\d{3}) \| `?(\w+)`? \| `(\w+)` \| `(\w+)` \| (yes|no) \| (.+) \|$", re.M)
TOLD = {(int(status), None if code == "null" else code): rest for status, code, *rest in ROW.findall(PAGE)}
QUESTION = request("hello")


def test_the_page_has_every_error_once() -> None:
    """And none that is not there."""
    assert len(ROW.findall(PAGE)) == len(TOLD)
    of_code = {(cls.status, cls.code): cls.type for cls in CLASSES}
    assert {key: type_ for key, (type_, *_) in TOLD.items()} == of_code
    assert len(of_code) == len(CLASSES), "each reason has a code of its own"


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not StreamNotRead])
async def test_the_client_raises_as_the_page_tells(cls: type[EardrumError]) -> None:
    """The very class, with all fields; asked again or not, after the time that it is told."""
    requests = 0

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal requests
        requests += 1
        raise cls("why", "place")

    class Impatient(openai.AsyncOpenAI):
        async def _sleep_for_retry(self, **options: object) -> None:
            """Not in a test."""

    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(RequestBoundary(fail)))
    async with Impatient(base_url="http://test/v1", api_key="none", max_retries=2, http_client=http) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**QUESTION)
    type_, name, again, when = TOLD[cls.status, cls.code]
    error = caught.value
    assert type(error).__name__ == name
    assert (error.status_code, error.type, error.code, error.param) == (cls.status, type_, cls.code, "place")
    assert "why" in error.message
    assert error.request_id
    assert requests == (3 if again == "yes" else 1)
    assert ("retry-after" in error.response.headers) == ("`Retry-After`" in when)


@pytest.mark.parametrize("cls", CLASSES)
async def test_the_client_raises_in_a_stream(cls: type[EardrumError]) -> None:
    """Whatever the error, and it is the same envelope."""

    async def events() -> AsyncIterator[bytes]:
        yield sse.encode({"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []})
        yield sse.encode_error(cls("why", "place"))

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await sse.StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)

    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(answer))
    async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http) as client:
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        await anext(stream)
        with pytest.raises(openai.APIError, match="why") as caught:
            await anext(stream)
    assert type(caught.value) is openai.APIError
    assert caught.value.body == cls("why", "place").body()["error"]


# ------------------------------------------------------------------------------------------- as they really come about

Ask = Callable[[openai.AsyncOpenAI], Awaitable[object]]


def chat(*parts: dict | str, **options: object) -> Ask:
    return lambda client: client.chat.completions.create(**{"model": "fake", "messages": user(*parts), **options})


def raw(method: str, path: str, **options: object) -> Ask:
    """What the client sends where it is told to send something odd."""

    def ask(client: openai.AsyncOpenAI) -> Awaitable[object]:
        if method == "get":
            return client.get(path, cast_to=object)
        return client.post(path, cast_to=object, **options)

    return ask


FORM = {"options": {"headers": {"content-type": "text/plain"}}, "content": b"hello"}
KEYS = {"api_keys": "other"}


@pytest.mark.parametrize(
    ("status", "code", "ask", "settings"),
    [
        (400, None, chat("hello", n=99), {}),
        (400, "invalid_audio", chat({"type": "input_audio", "input_audio": {"data": "bm9wZQ=="}}), {}),
        (400, "audio_too_long", chat(input_audio("jfk.ogg"), extra_body={"long_audio": "error"}), {"model": "fake:5"}),
        (400, "audio_too_long", chat(input_audio("jfk.ogg")), {"max_audio_bytes": 1000}),
        (400, "invalid_audio_url", chat(audio_url("http://127.0.0.1:1/x.ogg")), {}),
        (401, "invalid_api_key", chat("hello"), KEYS),
        (404, "not_found", lambda client: client.embeddings.create(model="fake", input="hello"), {}),
        (404, "model_not_found", chat("hello", model="gpt-9"), {}),
        (405, "method_not_allowed", raw("get", "/chat/completions"), {}),
        (413, "request_too_large", chat("x" * 2000), {"max_body_bytes": 1000}),
        (415, "unsupported_media_type", raw("post", "/chat/completions", **FORM), {}),
        (500, "internal_error", chat("#fail=prefill"), {}),
        (504, "deadline_exceeded", chat("#tokens=100000 #delay=0.01", extra_headers={"x-request-timeout": "0.1"}), {}),
    ],
)  # fmt: skip
async def test_an_error_as_it_comes_about(status: int, code: str | None, ask: Ask, settings: dict) -> None:
    """Raises the class of its row."""
    async with run_in_process(served_model_name="fake", **settings) as server, openai_client(server) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(client)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert type(caught.value).__name__ == TOLD[status, code][1]
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}


async def refused(server: InProcess) -> openai.APIStatusError:
    async with openai_client(server) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(**QUESTION)
    return caught.value


async def test_a_full_queue_a_closed_door_and_no_worker() -> None:
    """What depends on others."""
    async with run_in_process(running=False, queue_requests=1) as server, server.http() as http:
        waiting = asyncio.ensure_future(http.post("/v1/chat/completions", json=QUESTION))
        await until(lambda: server.pending._num_waiting)
        full = await refused(server)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await server.routes.reception.drain(1)
        closed = await refused(server)
    for error, status, code in ((full, 429, "queue_full"), (closed, 503, "draining")):
        assert (error.status_code, error.code) == (status, code)
        assert type(error).__name__ == TOLD[status, code][1]
        assert int(error.response.headers["retry-after"]) >= 1


def test_the_pages_example_is_what_is_sent() -> None:
    """Its keys."""
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    assert set(json.loads(example)["error"]) == set(EardrumError("").body()["error"])
