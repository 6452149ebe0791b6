"""The whole stack with the fake model, spoken to as users do: through the official client, and with plain HTTP where
bytes are the subject."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.support.origin import Origin
from tests.support.servers import RunningServer, run_server
from tests.support.speech import audio_url, input_audio, user
from tests.support.waiting import until

CHAT = "/v1/chat/completions"


@pytest.fixture
def client(fake_server: RunningServer) -> Iterator[openai.OpenAI]:
    with fake_server.client() as client:
        yield client


def ask(client: openai.OpenAI, *parts: dict | str, **options: object):
    return client.chat.completions.create(model="fake", messages=user(*parts), **options)


def events(text: str) -> list[dict]:
    """The chunks of a stream, which must be closed by [DONE]."""
    *chunks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


# ------------------------------------------------------------------------------------------------------------- answers


def test_an_answer_has_openais_shape(client: openai.OpenAI) -> None:
    """All that strict clients check."""
    answer = ask(client, "hello")
    assert answer.object == "chat.completion"
    assert answer.model == "fake"
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content == "I heard nothing. You said: hello"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len(choice.message.content)


def test_a_stream_has_one_id_one_role_and_one_end(client: openai.OpenAI, fake_server: RunningServer) -> None:
    """And the same text as the answer in one piece; usage only when it was asked for."""
    chunks = list(ask(client, "#tokens=30", stream=True))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        ask(client, "#tokens=30").choices[0].message.content
    )
    assert all(chunk.usage is None for chunk in chunks)
    with fake_server.http() as http:
        raw = http.post(CHAT, json={"model": "fake", "messages": user("#tokens=3"), "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["cache-control"] == "no-cache"
    assert all("usage" not in chunk for chunk in events(raw.text))


def test_usage_comes_last_when_asked(client: openai.OpenAI, fake_server: RunningServer) -> None:
    """In a chunk without choices, once, and null before."""
    *chunks, last = ask(client, "hello", stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage == ask(client, "hello").usage
    assert all(chunk.usage is None for chunk in chunks)


def test_the_streaming_helper_of_the_sdk(client: openai.OpenAI) -> None:
    """It checks the chunks' shape more strictly than the plain iterator."""
    with client.chat.completions.stream(model="fake", messages=user("hello")) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "I heard nothing. You said: hello"


async def test_the_async_client(fake_server: RunningServer) -> None:
    """Many at once, streamed and not."""
    async with fake_server.async_client() as client:

        async def one(i: int) -> str | None:
            answer = await client.chat.completions.create(model="fake", messages=user(f"#say=number_{i}"))
            return answer.choices[0].message.content

        async def streamed(i: int) -> str:
            stream = await client.chat.completions.create(model="fake", messages=user(f"#say=nr_{i}"), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*map(one, range(40)), *map(streamed, range(40)))
    assert answers == [f"number {i}" for i in range(40)] + [f"nr {i}" for i in range(40)]


def test_several_choices(client: openai.OpenAI) -> None:
    """Each by its index, streamed and not; a seed repeats them."""
    options = {"n": 3, "seed": 5, "temperature": 1.0}
    answer = ask(client, "#tokens=12 #random", **options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    streamed = ["", "", ""]
    for chunk in ask(client, "#tokens=12 #random", stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts
    assert answer.usage.completion_tokens == 36


def test_limits_and_stops(client: openai.OpenAI) -> None:
    """Both names for the limit, and the reason as it really was."""
    for name in ("max_tokens", "max_completion_tokens"):
        choice = ask(client, "#tokens=50", **{name: 4}).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("abcd", "length")
    for stop in ("e", ["zzz", "e"]):
        choice = ask(client, "#tokens=50", stop=stop).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("abcd", "stop")


def test_audio_in_every_form_and_turn(client: openai.OpenAI, origin: Origin) -> None:
    """Blocks of both kinds, a plain string, a wrong label, earlier turns, all roles."""
    wrong = {"type": "input_audio", "input_audio": {**input_audio("cv-en-no.mp3")["input_audio"], "format": "wav"}}
    data = "data:audio/wav;base64," + input_audio("jfk.ogg")["input_audio"]["data"]
    messages = [
        {"role": "system", "content": "listen"},
        {"role": "developer", "content": [{"type": "text", "text": "carefully"}]},
        *user(wrong, {"type": "audio_url", "audio_url": data}),
        {"role": "assistant", "content": "yes"},
        {"role": "tool", "content": "result", "tool_call_id": "1"},
        *user(audio_url(origin.url("clip/jfk.m4a")), "well?"),
    ]
    answer = client.chat.completions.create(model="fake", messages=messages)
    assert answer.choices[0].message.content == "I heard 4.1 s, 11.0 s, 11.0 s. You said: well?"
    assert answer.usage.prompt_tokens_details.audio_tokens == 26
    assert answer.usage.audio["parts"] == 3


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        (audio_url("http://127.0.0.1:1/x.ogg"), "audio_url.url", "invalid_audio_url"),
        (audio_url("ftp://example.com/x.ogg"), "audio_url.url", "invalid_audio_url"),
        (audio_url("data:audio/ogg;base64,!!!"), "audio_url.url", "invalid_audio"),
        ({"type": "input_audio", "input_audio": {"data": "bm9wZQ=="}}, "input_audio.data", "invalid_audio"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, "input_audio.data", "invalid_audio"),
    ],
)
def test_bad_audio_is_a_400_that_names_its_part(client, part, param, code, stream) -> None:
    """Also where a stream was asked for."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "listen", part, stream=stream)
    assert caught.value.param == f"messages[0].content[1].{param}"
    assert caught.value.code == code
    assert caught.value.type == "invalid_request_error"
    assert f"messages[0].content[1].{param}" in caught.value.message
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("path", "message"), [("text/", "FFmpeg"), ("status/404", "404"), ("gzip/jfk.ogg", "encoding"), ("drip/", "slowly")]
)
def test_an_origin_that_misbehaves_is_told(client: openai.OpenAI, origin: Origin, path: str, message: str) -> None:
    """As a bad request, in time."""
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, audio_url(origin.url(path)))


def test_an_unknown_model(client: openai.OpenAI) -> None:
    """404 `model_not_found`, and the message names the one that is served."""
    with pytest.raises(openai.NotFoundError, match="`fake`") as caught:
        client.chat.completions.create(model="gpt-9", messages=user("hello"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/gpt-9")


def test_models_are_listed_with_what_they_take(client: openai.OpenAI) -> None:
    """OpenAI's fields, and ours beside them."""
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "eardrum")
    assert isinstance(model.created, int)
    assert set(model.audio) == {
        *("sampling_rate", "max_seconds_per_window", "max_seconds_per_clip", "max_clips", "formats", "long_audio"),
        *("batching", "why"),
    }
    assert (model.audio["sampling_rate"], model.audio["max_seconds_per_window"]) == (16_000, None)
    assert (model.audio["max_seconds_per_clip"], model.audio["max_clips"]) == (3600, 16)
    assert client.models.retrieve("fake") == model


def test_a_failure_in_the_middle_of_a_stream_raises(client: openai.OpenAI, fake_server: RunningServer) -> None:
    """One error event, closed by a blank line; what came before was delivered."""
    stream = ask(client, "#tokens=20 #fail=step", stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "a", "b"]
    with pytest.raises(openai.APIError, match="failed while it answered"):
        list(stream)
    with fake_server.http() as http:
        raw = http.post(CHAT, json={"model": "fake", "messages": user("#tokens=20 #fail=step"), "stream": True})
    assert raw.text.endswith('"code":"internal_error"}}\n\n')


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/info", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_every_error_is_in_openais_envelope(fake_server: RunningServer, method: str, path: str, status: int) -> None:
    """Also those of the framework, with all four fields and a request id."""
    with fake_server.http() as http:
        answer = http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_bodies_that_are_not_json_are_refused(fake_server: RunningServer) -> None:
    """415 for another media type, 400 for what is not JSON; the body does not come back."""
    with fake_server.http() as http:
        form = http.post(CHAT, data={"secret": "x"})
        broken = http.post(CHAT, content=b'{"secret', headers={"content-type": "application/json"})
        wrong = http.post(CHAT, json={"model": "fake", "messages": user("x"), "n": "secret" * 100_000})
    assert [answer.status_code for answer in (form, broken, wrong)] == [415, 400, 400]
    assert all("secret" not in answer.text for answer in (form, broken, wrong))
    assert "Content-Type" in form.json()["error"]["message"]


def test_a_request_id_is_kept_or_made(fake_server: RunningServer) -> None:
    """The client's own comes back; one that could forge a log line does not."""
    with fake_server.http() as http:
        assert http.get("/live", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
        assert http.get("/live", headers={"x-request-id": b"a b\t\xff"}).headers["x-request-id"].startswith("req_")
        first, second = (http.get("/v1/models").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_probes_answer(fake_server: RunningServer) -> None:
    """All three."""
    with fake_server.http() as http:
        assert [http.get(path).status_code for path in ("/live", "/ready", "/health")] == [200, 200, 200]


# ------------------------------------------------------------------------------------------- clients that leave, bounds


@pytest.mark.parametrize("stream", [True, False])
def test_work_stops_when_the_client_leaves(client, fake_server: RunningServer, stream: bool) -> None:
    """Rows that would decode for minutes are free at once: more such requests than there are rows come and go, and the
    next is answered."""
    body = {"model": "fake", "messages": user("#tokens=100000 #delay=0.01"), "stream": stream}
    for _ in range(20):
        with httpx.Client(base_url=fake_server.base_url, timeout=httpx.Timeout(5, read=0.3)) as http:
            if stream:
                with http.stream("POST", CHAT, json=body) as answer:
                    next(answer.iter_raw())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post(CHAT, json=body)
    assert ask(client, "#say=next").choices[0].message.content == "next"


async def test_a_slow_address_delays_nobody(fake_server: RunningServer, origin: Origin) -> None:
    """While more requests than there are rows wait 2 s for their audio, others come and go."""
    slow = [user(audio_url(origin.url(f"clip/cv-en-no.mp3?wait=2&n={i}"))) for i in range(20)]
    async with fake_server.async_client() as client:
        asked = len(origin.requested)
        origin.release.clear()
        waiting = [
            asyncio.ensure_future(client.chat.completions.create(model="fake", messages=messages)) for messages in slow
        ]
        await until(lambda: len(origin.requested) == asked + 20)
        for _ in range(5):
            answer = await client.chat.completions.create(model="fake", messages=user(input_audio("cv-en-no.mp3")))
            assert "4.1 s" in answer.choices[0].message.content
        assert not any(task.done() for task in waiting)
        origin.release.set()
        answers = await asyncio.gather(*waiting)
    assert all("4.1 s" in answer.choices[0].message.content for answer in answers)


def test_keys() -> None:
    """Everything but the probes wants one of the keys, as an OpenAI client sends it."""
    with run_server("--model", "fake", env={"EARDRUM_API_KEYS": "first, sécond"}) as server:
        for key in ("first", "sécond"):
            headers = {"authorization": f"Bearer {key}".encode()}
            assert httpx.get(f"{server.base_url}/v1/models", headers=headers).status_code == 200
        with server.client(api_key="first") as client:
            assert ask(client, "hello").choices
        with server.client(api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
            ask(client, "hello")
        assert caught.value.code == "invalid_api_key"
        for headers in ({}, {"authorization": "first"}, {"authorization": "Bearer"}, {"x-api-key": "first"}):
            assert httpx.get(f"{server.base_url}/v1/models", headers=headers).status_code == 401
        assert httpx.get(f"{server.base_url}/nope").status_code == 401
        assert [httpx.get(server.base_url + path).status_code for path in ("/live", "/ready", "/health")] == [200] * 3
        trick = httpx.get(f"{server.base_url}/v1/models", headers={"host": "evil/live?"})
        assert trick.status_code == 401


def send_all_then_read(port: int, body: bytes) -> bytes:
    """As simple clients do it: a connection that is reset while they send hides the answer from them."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        raw.sendall(head.encode() + body)
        return raw.recv(4096)


def test_a_large_body_is_answered_and_not_reset() -> None:
    """413 for one over the limit, with and without a declared length; the client sees the answer."""
    with run_server("--model", "fake", "--max-body-bytes", "100000") as server, server.http() as http:
        large = {"model": "fake", "messages": user("x" * 3_000_000)}
        declared = http.post(CHAT, json=large)
        chunked = http.post(
            CHAT,
            content=(json.dumps(large).encode()[i : i + 65536] for i in range(0, 3_000_000, 65536)),
            headers={"content-type": "application/json"},
        )
        for answer in (declared, chunked):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert send_all_then_read(server.port, b"x" * 30_000_000).startswith(b"HTTP/1.1 413 ")
        assert http.post(CHAT, json={"model": "fake", "messages": user("small")}).status_code == 200


def test_a_client_that_sends_half_a_body_and_leaves(fake_server: RunningServer, client: openai.OpenAI) -> None:
    """Nobody is answered and nothing breaks."""
    before = len(fake_server.log.read_text())
    with socket.create_connection(("127.0.0.1", fake_server.port)) as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        raw.sendall(head.encode() + b'{"model"')
    assert ask(client, "hello").choices
    assert "Traceback" not in fake_server.log.read_text()[before:]
