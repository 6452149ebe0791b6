"""What holds all other tests' answers against OpenAI's types can fail: each defect that breaks a client is seen."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import openai
import pytest
from starlette.responses import JSONResponse

from api.openapi import examples
from tests.schemas.check import Exchange
from tests.schemas.generate import FILE, text
from tests.support.inprocess import openai_client, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import user
from tests.support.watching import watched, wrong_answers

Change = Callable[[Any], object]

CHAT, TEXT, RESPONSES, AUDIO = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/audio/transcriptions"
HEADERS = {"x-request-id": "x", "openai-processing-ms": "1", "content-type": "application/json"}
STREAM = {**HEADERS, "content-type": "text/event-stream", "cache-control": "no-cache"}


def body_of(path: str, body: object, status: int = 200, headers: dict | None = None, asked: dict | None = None) -> list:
    """What is wrong with an answer."""
    method = "GET" if asked is None and "models" in path else "POST"
    exchange = Exchange(method, path, asked, status, {**HEADERS, **(headers or {})})
    exchange.feed(body if isinstance(body, bytes) else json.dumps(body).encode())
    return exchange.end()


def stream_of(path: str, events: list, asked: dict | None = None, headers: dict | None = None) -> list:
    """What is wrong with a stream. An event is an object, or a line of bytes as it is."""
    exchange = Exchange("POST", path, asked, 200, STREAM if headers is None else headers)
    for event in events:
        named = b"event: " + event["type"].encode() + b"\n" if path == RESPONSES and isinstance(event, dict) else b""
        exchange.feed(event if isinstance(event, bytes) else named + b"data: " + json.dumps(event).encode() + b"\n\n")
    return exchange.end()


def test_the_schemas_are_those_of_the_installed_package() -> None:
    """`python -m tests.schemas.generate` writes them anew."""
    assert FILE.read_text() == text()


# ------------------------------------------------------------------------------------------------------------- answers


def calls(choice: dict, *, reason: str = "tool_calls", arguments: object = "{}", **fields: object) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}, **fields}
    choice["message"]["tool_calls"] = [{key: value for key, value in call.items() if value != "absent"}]
    choice["finish_reason"] = reason


def choice(change: Change) -> Change:
    return lambda body: change(body["choices"][0])


def message(change: Change) -> Change:
    return lambda body: change(body["choices"][0]["message"])


CHAT_DEFECTS: dict[str, Change] = {
    "choices_empty": lambda body: body.update(choices=[]),
    "choices_null": lambda body: body.update(choices=None),
    "content_list": message(lambda m: m.update(content=[{"type": "text", "text": "x"}])),
    "content_missing": message(lambda m: m.pop("content")),
    "content_null": message(lambda m: m.update(content=None)),
    "usage_missing": lambda body: body.pop("usage"),
    "usage_null": lambda body: body.update(usage=None),
    "usage_wrong": lambda body: body["usage"].update(total_tokens=1),
    "usage_float": lambda body: body["usage"].update(prompt_tokens=562.0),
    "finish_missing": choice(lambda c: c.pop("finish_reason")),
    "finish_invalid": choice(lambda c: c.update(finish_reason="eos")),
    "finish_null": choice(lambda c: c.update(finish_reason=None)),
    "index_missing": choice(lambda c: c.pop("index")),
    "index_wrong": choice(lambda c: c.update(index=1)),
    "role_missing": message(lambda m: m.pop("role")),
    "role_wrong": message(lambda m: m.update(role="user")),
    "object_missing": lambda body: body.pop("object"),
    "id_missing": lambda body: body.pop("id"),
    "model_missing": lambda body: body.pop("model"),
    "created_float": lambda body: body.update(created=1.0),
    "tool_args_object": choice(lambda c: calls(c, arguments={})),
    "tool_type_missing": choice(lambda c: calls(c, type="absent")),
    "tool_id_missing": choice(lambda c: calls(c, id="absent")),
    "tool_calls_empty": message(lambda m: m.update(tool_calls=[])),
    "finish_stop_with_tools": choice(lambda c: calls(c, reason="stop")),
    "finish_tools_without": choice(lambda c: c.update(finish_reason="tool_calls")),
    "fingerprint_null": lambda body: body.update(system_fingerprint=None),
    "tool_calls_null": message(lambda m: m.update(tool_calls=None)),
    "function_call_null": message(lambda m: m.update(function_call=None)),
    "refusal_missing": message(lambda m: m.pop("refusal")),
    "logprobs_missing": choice(lambda c: c.pop("logprobs")),
    "not_described": lambda body: body.update(surprise=1),
    "not_described_inside": lambda body: body["usage"]["audio"].update(surprise=1),
}


@pytest.mark.parametrize("name", CHAT_DEFECTS)
def test_a_broken_chat_completion(name: str) -> None:
    """Each of these breaks a client, or is not described."""
    body = deepcopy(examples.CHAT_COMPLETION)
    assert body_of(CHAT, body) == []
    CHAT_DEFECTS[name](body)
    assert body_of(CHAT, body)


def test_choices_are_as_many_as_were_asked_for() -> None:
    """Where the request is known."""
    assert body_of(CHAT, examples.CHAT_COMPLETION, asked={"n": 2})
    assert not body_of(CHAT, examples.CHAT_COMPLETION, asked={"n": 1, "stream": None})


OTHERS: list[tuple[str, dict, Change]] = [
    (TEXT, examples.COMPLETION, lambda b: b.pop("usage")),
    (TEXT, examples.COMPLETION, lambda b: b["choices"][0].pop("logprobs")),
    (TEXT, examples.COMPLETION, lambda b: b["choices"][0].update(finish_reason=None)),
    (RESPONSES, examples.RESPONSE, lambda b: b.pop("output")),
    (RESPONSES, examples.RESPONSE, lambda b: b.update(created_at=1.5)),
    (RESPONSES, examples.RESPONSE, lambda b: b["output"][0]["content"][0].pop("annotations")),
    (RESPONSES, examples.RESPONSE, lambda b: b.pop("incomplete_details")),
    (AUDIO, examples.TRANSCRIPTION, lambda b: b.pop("text")),
    (AUDIO, examples.TRANSCRIPTION, lambda b: b.update(usage=None)),
    (AUDIO, examples.VERBOSE_TRANSCRIPTION, lambda b: b.update(duration="11")),
    (AUDIO, examples.VERBOSE_TRANSCRIPTION, lambda b: b["segments"][0].pop("seek")),
    ("/v1/models", examples.MODELS, lambda b: b.pop("object")),  # models_bare
    ("/v1/models", examples.MODELS, lambda b: b.update(data=[])),  # models_empty
    ("/v1/models", examples.MODELS, lambda b: b["data"][0].pop("object")),
    ("/v1/models/a/b", examples.MODEL, lambda b: b.pop("created")),
    ("/v1/models/a/b", examples.MODEL, lambda b: b.pop("owned_by")),
    ("/live", {"status": "ok"}, lambda b: b.update(status=1)),
]


@pytest.mark.parametrize(("path", "good", "change"), OTHERS)
def test_another_broken_answer(path: str, good: dict, change: Change) -> None:
    """Of each endpoint."""
    body = deepcopy(good)
    assert body_of(path, body) == []
    change(body)
    assert body_of(path, body)


ENVELOPE = {"message": "m", "type": "t", "param": None, "code": None}


@pytest.mark.parametrize(
    "body",
    [
        {"detail": "x"},
        {"error": "x"},
        {**ENVELOPE},
        b"<html>",
        b"",
        {"error": {"message": "m", "type": "t"}},
        {"error": {**ENVELOPE, "code": 404}},
        {"error": ENVELOPE, "detail": "x"},
        {"error": {**ENVELOPE, "status": 1}},
    ],
)
def test_a_broken_error(body: object) -> None:
    """All four keys in the envelope, and nothing else."""
    assert body_of(CHAT, {"error": ENVELOPE}, 400) == []
    assert body_of(CHAT, body, 400)


def test_an_error_as_a_success_and_a_status_that_is_not_described() -> None:
    """Either is wrong whatever its body."""
    assert body_of(CHAT, {"error": ENVELOPE}, 200)
    assert body_of(CHAT, {"error": ENVELOPE}, 422)
    assert body_of("/v1/nope", {"error": ENVELOPE}, 404) == []
    assert body_of(CHAT, {"error": ENVELOPE}, 400, {"content-type": "text/html"})


def test_headers() -> None:
    """Those of every answer, those of overload, those of streams."""
    assert Exchange("POST", CHAT, None, 200, {"content-type": "application/json"}).wrong
    assert body_of(CHAT, {"error": ENVELOPE}, 429)
    assert body_of(CHAT, {"error": ENVELOPE}, 429, {"retry-after": "1"}) == []
    for more in ({"cache-control": "public"}, {"content-length": "5"}, {"content-encoding": "gzip"}):
        assert Exchange("POST", CHAT, None, 200, {**STREAM, **more}).wrong
    assert Exchange("POST", CHAT, {"stream": True}, 200, HEADERS).wrong
    assert Exchange("POST", CHAT, {}, 200, STREAM).wrong
    assert not Exchange("OPTIONS", CHAT, None, 200, {}).wrong


# ------------------------------------------------------------------------------------------------------------- streams

USAGE = examples.CHAT_COMPLETION["usage"]
ASKED = {"stream": True, "stream_options": {"include_usage": True}}
DONE = b"data: [DONE]\n\n"


def chunk(delta: dict, reason: str | None = None, index: int = 0, **fields: object) -> dict:
    each = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    frame = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return {**frame, "choices": [each], "usage": None, **fields}


def good_chunks() -> list:
    first = chunk({"role": "assistant", "content": ""})
    return [
        first,
        chunk({"content": "a"}),
        chunk({"content": "b"}),
        chunk({}, "stop"),
        chunk({}, choices=[], usage=USAGE),
        DONE,
    ]


def of_choice(at: int, **fields: object) -> Change:
    return lambda chunks: chunks[at]["choices"][0].update(fields)


def without(at: int, name: str) -> Change:
    return lambda chunks: chunks[at]["choices"][0].pop(name)


CHUNK_DEFECTS: dict[str, Change] = {
    "truncated_eof": lambda c: c.__delitem__(slice(2, None)),
    "no_done": lambda c: c.pop(),
    "finish_missing": without(3, "finish_reason"),
    "finish_null": of_choice(3, finish_reason=None),
    "finish_invalid": of_choice(3, finish_reason="eos"),
    "finish_twice": lambda c: c.insert(4, chunk({}, "stop")),
    "finish_early": of_choice(1, finish_reason="stop"),
    "usage_choices_null": lambda c: c[4].update(choices=None),
    "usage_no_choices": lambda c: c[4].pop("choices"),
    "usage_with_choices": lambda c: c[4].update(choices=c[1]["choices"]),
    "usage_missing": lambda c: c.pop(4),
    "usage_twice": lambda c: c.insert(4, c[4]),
    "usage_every_chunk": lambda c: c[1].update(usage=USAGE),
    "usage_no_null": lambda c: c[1].pop("usage"),
    "usage_wrong": lambda c: c[4].update(usage={**USAGE, "total_tokens": 1}),
    "index_missing": without(1, "index"),
    "final_delta_null": of_choice(3, delta=None),
    "final_no_delta": without(3, "delta"),
    "no_role": lambda c: c[0]["choices"][0].update(delta={"content": ""}),
    "role_every_chunk": of_choice(1, delta={"role": "assistant", "content": "a"}),
    "role_empty": of_choice(1, delta={"role": "", "content": "a"}),
    "role_null": of_choice(1, delta={"role": None, "content": "a"}),
    "content_null": of_choice(1, delta={"content": None}),
    "tool_calls_null": of_choice(1, delta={"content": "a", "tool_calls": None}),
    "fingerprint_null": lambda c: c[1].update(system_fingerprint=None),
    "choices_empty_first": lambda c: c.insert(0, chunk({}, choices=[])),
    "id_changes": lambda c: c[1].update(id="y"),
    "created_changes": lambda c: c[1].update(created=2),
    "created_float": lambda c: c[0].update(created=1.0),
    "model_missing": lambda c: c[1].pop("model"),
    "object_missing": lambda c: c[1].pop("object"),
    "logprobs_missing": without(1, "logprobs"),
    "data_after_done": lambda c: c.append(chunk({"content": "c"})),
    "done_after_error": lambda c: c.__setitem__(slice(2, 5), [{"error": ENVELOPE}]),
    "error_flat": lambda c: c.__setitem__(slice(2, None), [{"error": {"message": "m"}}]),
    "no_json": lambda c: c.insert(1, b"data: {x\n\n"),
    "a_comment": lambda c: c.insert(1, b": ping\n\n"),
    "not_closed": lambda c: c.append(b"data: "),
    "not_described": lambda c: c[1].update(surprise=1),
    "a_second_choice": lambda c: c.insert(1, chunk({"role": "assistant"}, index=1)),
}


@pytest.mark.parametrize("name", CHUNK_DEFECTS)
def test_a_broken_stream_of_chunks(name: str) -> None:
    """Each of these breaks a client."""
    chunks = good_chunks()
    assert stream_of(CHAT, chunks, ASKED) == []
    CHUNK_DEFECTS[name](chunks)
    assert stream_of(CHAT, chunks, ASKED)


def test_streams_that_are_right() -> None:
    """With an error at the end, without a usage, with two choices, and one that its client left."""
    chunks = good_chunks()
    assert stream_of(CHAT, [*chunks[:2], {"error": ENVELOPE}], ASKED) == []
    plain = [{key: value for key, value in each.items() if key != "usage"} for each in chunks[:4]]
    assert stream_of(CHAT, [*plain, DONE], {"stream": True}) == []
    assert stream_of(CHAT, chunks, {"stream": True}), "usage that was not asked for"
    others = [chunk({"role": "assistant"}, index=1), chunk({}, "length", index=1)]
    assert stream_of(CHAT, [*others, *chunks], {**ASKED, "n": 2}) == []
    assert stream_of(CHAT, chunks, {**ASKED, "n": 2}), "a choice is missing"


FIRST_CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"id": None}, {}, "tool_calls"),
        ({"id": "absent"}, {}, "tool_calls"),
        ({"type": "absent"}, {}, "tool_calls"),
        ({"type": None}, {}, "tool_calls"),
        ({"index": "absent"}, {}, "tool_calls"),
        ({"function": {"name": "f"}}, {}, "tool_calls"),
        ({"function": {"arguments": ""}}, {}, "tool_calls"),
        ({"function": {"name": "f", "arguments": {}}}, {}, "tool_calls"),
        ({}, {"id": "c"}, "tool_calls"),  # tool_repeat_id
        ({}, {"id": None}, "tool_calls"),  # tool_null_id
        ({}, {"type": "function"}, "tool_calls"),
        ({}, {"function": {"name": "f", "arguments": "{}"}}, "tool_calls"),
        ({}, {}, "stop"),  # finish_stop_with_tools
    ],
)
def test_broken_deltas_of_a_tool_call(first: dict, second: dict, reason: str) -> None:
    """The first has all, the later ones the arguments alone. Whether they are described is no matter here."""

    def wrong(first: dict, second: dict, reason: str) -> list:
        plain = {key: value for key, value in {**FIRST_CALL, **first}.items() if value != "absent"}
        deltas = [{"role": "assistant", "tool_calls": [plain]}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": "{}"}, **second}]}]
        chunks = [*map(chunk, deltas), chunk({}, reason), chunk({}, choices=[], usage=USAGE), DONE]
        return [each for each in stream_of(CHAT, chunks, ASKED) if "/openapi.json" not in each]

    assert wrong({}, {}, "tool_calls") == []
    assert wrong(first, second, reason)


def piece(text: str, reason: str | None = None) -> dict:
    each = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [each]}


def test_a_stream_of_texts() -> None:
    """As chunks are, but for the role."""
    asked = {"stream": True}
    assert stream_of(TEXT, [piece("a"), piece("", "stop"), DONE], asked) == []
    assert stream_of(TEXT, [piece("a"), DONE], asked)
    assert stream_of(TEXT, [piece("a"), piece("", "stop")], asked)
    assert stream_of(TEXT, [chunk({"role": "assistant"}), piece("", "stop"), DONE], asked)


def test_a_stream_of_a_transcription() -> None:
    """Deltas, then all of the text, then the end."""
    said = [{"type": "transcript.text.delta", "delta": "a"}, {"type": "transcript.text.delta", "delta": "b"}]
    done = {"type": "transcript.text.done", **examples.TRANSCRIPTION, "text": "ab"}
    assert stream_of(AUDIO, [*said, done, DONE]) == []
    for events in (
        [*said, DONE],  # stt_no_done_event
        [*said, done],
        [said[0], done, DONE],
        [*said, done, said[0], DONE],
        [*said, {key: value for key, value in done.items() if key != "usage"}, DONE],
        [*said, {**done, "type": "transcript.done"}, DONE],
        [*said, {"text": "ab"}, DONE],
    ):
        assert stream_of(AUDIO, events), events


def response_events() -> list[dict]:
    frame = {**examples.RESPONSE, "status": "in_progress", "output": [], "usage": None, "completed_at": None}
    part = examples.RESPONSE["output"][0]["content"][0]
    item = examples.RESPONSE["output"][0]
    place = {"item_id": "msg_5f0c", "output_index": 0, "content_index": 0}
    events: list[dict] = [
        {"type": "response.created", "response": frame},
        {"type": "response.in_progress", "response": frame},
        {"type": "response.output_item.added", "output_index": 0, "item": {**item, "content": []}},
        {"type": "response.content_part.added", **place, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **place, "delta": part["text"], "logprobs": []},
        {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": examples.RESPONSE},
    ]  # fmt: skip
    return renumbered(events, 0)


def renumbered(events: list[dict], first: int) -> list[dict]:
    return [{**event, "sequence_number": number} for number, event in enumerate(events, first)]


RESPONSE_DEFECTS: dict[str, Change] = {
    "cut": lambda e: e.pop(),
    "begins late": lambda e: e.pop(0),
    "numbers": lambda e: e[3].update(sequence_number=7),
    "no number": lambda e: e[3].pop("sequence_number"),
    "unknown": lambda e: e[4].update(type="response.text"),
    "no type": lambda e: e.__setitem__(4, b'data: {"delta": "x"}\n\n'),
    "another name": lambda e: e.__setitem__(4, b"event: x\ndata: " + json.dumps(e[4]).encode() + b"\n\n"),
    "text": lambda e: e[5].update(text="x"),
    "no logprobs": lambda e: e[4].pop("logprobs"),
    "status": lambda e: e[8]["response"].update(status="incomplete"),
    "goes on": lambda e: e.append({**e[8], "sequence_number": 9}),
    "part not done": lambda e: e.__setitem__(slice(6, None), renumbered(e[7:], 6)),
    "done": lambda e: e.append(DONE),
}  # fmt: skip


@pytest.mark.parametrize("name", RESPONSE_DEFECTS)
def test_a_broken_stream_of_a_response(name: str) -> None:
    """Numbers, names, order, texts."""
    events = deepcopy(response_events())
    assert stream_of(RESPONSES, events) == []
    RESPONSE_DEFECTS[name](events)
    assert stream_of(RESPONSES, events)


def test_a_response_that_fails() -> None:
    """Its last event is the error."""
    error = {"type": "error", "sequence_number": 4, "code": None, "message": "m", "param": None, "error": ENVELOPE}
    assert stream_of(RESPONSES, [*response_events()[:4], error]) == []
    assert stream_of(RESPONSES, [*response_events()[:4], {**error, "error": {}}])


# --------------------------------------------------------------------------------------------------- every client looks


async def test_clients_in_process_are_watched() -> None:
    """Both of them: an error that is not in the envelope is told."""

    async def broken() -> JSONResponse:
        return JSONResponse({"detail": "no"}, 400)

    async with run_in_process() as server, server.http() as http, openai_client(server) as client:
        server.app.add_api_route("/v1/broken", broken)
        await http.get("/v1/broken")
        assert any("without its envelope" in each for each in wrong_answers())
        with pytest.raises(openai.BadRequestError):
            await client.get("/broken", cast_to=object)
        assert any("without its envelope" in each for each in wrong_answers())


async def test_clients_of_servers_are_watched() -> None:
    """All three, here of a server that is none of ours: it answers in HTML."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        server = RunningServer(other.server_port, None, None, "m")
        with server.http() as http:
            http.get("/v1/models")
        assert any("an error as text/html" in each for each in wrong_answers())
        with server.client() as client, pytest.raises(openai.APIStatusError):
            client.models.list()
        assert any("an error as text/html" in each for each in wrong_answers())
        async with server.async_client() as client:
            with pytest.raises(openai.APIStatusError):
                await client.models.list()
        assert any("an error as text/html" in each for each in wrong_answers())
        other.shutdown()


async def test_a_stream_that_is_left_or_breaks_is_no_short_one() -> None:
    """Only one that was closed in order has to have an end."""
    first, second = (b"data: " + json.dumps(each).encode() + b"\n\n" for each in good_chunks()[:2])

    class Bytes(httpx2.AsyncByteStream):
        async def __aiter__(self):
            yield first
            yield second
            if self.fails:
                raise httpx2.ReadError("gone")

    class Broken(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, headers=STREAM, stream=stream)

    async with httpx2.AsyncClient(transport=watched(Broken()), base_url="http://test") as http:
        for fails, reads, is_wrong in ((True, 9, False), (False, 1, False), (False, 9, True)):
            stream = Bytes()
            stream.fails = fails
            try:
                async with http.stream("POST", CHAT, json=ASKED) as answer:
                    async for _ in answer.aiter_raw():
                        reads -= 1
                        if not reads:
                            break
            except httpx2.ReadError:
                assert fails
            assert bool(wrong_answers()) == is_wrong


async def test_the_official_client_sees_streams_to_their_end() -> None:
    """It reads up to [DONE] and then drains the rest: what comes behind is seen, too."""
    encoded = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in good_chunks()[:-1]] + [DONE]
    for events, is_wrong in ((encoded, False), ([*encoded, encoded[1]], True), (encoded[:-2], True)):

        class Bytes(httpx2.AsyncByteStream):
            def __init__(self, events: list[bytes]) -> None:
                self._events = iter(events)  # a socket gives each byte once

            async def __aiter__(self):
                for event in self._events:
                    yield event

        class Fixed(httpx2.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
                more = {"http_version": b"HTTP/1.1"}
                return httpx2.Response(200, headers=STREAM, stream=Bytes(events), extensions=more)  # noqa: B023

        http = httpx2.AsyncClient(transport=watched(Fixed()))
        async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http) as client:
            stream = await client.chat.completions.create(model="m", messages=user("x"), **ASKED)
            async for _ in stream:
                pass
        assert bool(wrong_answers()) == is_wrong
