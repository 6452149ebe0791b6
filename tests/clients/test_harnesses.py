"""Requests as evaluation harnesses and Open WebUI send them, read from their source.

Read were AU-Harness (main, 2025-10: models/model.py, models/request_resp_handler.py), lmms-eval 0.7.3 (protocol.py,
models/chat/openai.py, models/chat/async_openai.py, models/simple/gpt4o_audio.py), VoiceBench (src/models/gpt4o.py),
UltraEval-Audio (audio_evals/models/openai.py), VLMEvalKit (vlmeval/api/gpt.py) and Open WebUI 0.12.4
(routers/openai.py, routers/audio). VLMEvalKit's own wrapper for OpenAI's API sends text and images, no audio.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import openai
import pytest

from tests.support.inprocess import openai_client, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import DATA, JFK, as_base64, audio_url, input_audio, user, word_error_rate
from tests.test_tool_calls import CALLS, say

TOLD = "Transcribe this audio. Answer with the transcription only."
RETRIED = {408, 429, 450, 500, 503, 504, 599}  # by AU-Harness, with growing pauses


def au_harness(server: RunningServer) -> openai.AsyncOpenAI:
    """Its client: no retries of the SDK's, and no connection is kept."""
    return server.async_client(timeout=30, default_headers={"Connection": "close"})


AU_HARNESS = {"temperature": 0.7, "max_completion_tokens": 4096, "tools": None}
AU_SYSTEM = {"role": "system", "content": "You are a careful listener."}


async def test_au_harness_asks_two_hundred_at_once(fake_server: RunningServer) -> None:
    """Each on a connection of its own, text before audio; all are answered, and none must be asked again."""
    messages = [AU_SYSTEM, *user("Who speaks?", input_audio("austen-0880.wav"))]

    async def ask() -> str | None:
        async with au_harness(fake_server) as client:
            answer = await client.chat.completions.create(model="fake", messages=messages, **AU_HARNESS)
            return answer.model_dump()["choices"][0]["message"]["content"]

    answers = await asyncio.gather(*(ask() for _ in range(200)))
    assert set(answers) == {"I heard 3.0 s. You said: Who speaks?"}


async def test_au_harness_asks_again_when_the_queue_is_full() -> None:
    """What is too much for now is a status that it retries, at once and not after its 30 s; so all are answered."""
    async with run_in_process(queue_requests=8, max_rows=4) as server, openai_client(server) as client:
        statuses = []

        async def ask() -> str:
            while True:
                try:
                    answer = await client.chat.completions.create(model="fake", messages=user("hello"), **AU_HARNESS)
                    return answer.choices[0].message.content
                except openai.APIStatusError as error:
                    statuses.append(error.status_code)
                    await server.settled()

        answers = await asyncio.gather(*(ask() for _ in range(60)))
    assert set(answers) == {"I heard nothing. You said: hello"}
    assert statuses
    assert set(statuses) <= RETRIED


async def test_au_harness_sends_all_audio_again_at_each_turn(fake_server: RunningServer) -> None:
    """A dialogue of several turns has the audio of them all."""
    messages = [AU_SYSTEM]
    async with au_harness(fake_server) as client:
        for turn, heard in enumerate(["3.0 s", "3.0 s, 3.3 s", "3.0 s, 3.3 s, 5.3 s"]):
            clip = input_audio(("austen-0880.wav", "austen-0930.wav", "austen-0890.wav")[turn])
            messages += user(f"Turn {turn}", clip)
            answer = await client.chat.completions.create(model="fake", messages=messages, **AU_HARNESS)
            assert answer.choices[0].message.content == f"I heard {heard}. You said: Turn {turn}"
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})


async def test_au_harness_transcribes_a_file(whisper_server: RunningServer) -> None:
    """With a model and a file, and nothing else."""
    async with au_harness(whisper_server) as client:
        with (DATA / "jfk.wav").open("rb") as file:
            answer = await client.audio.transcriptions.create(model="my-model", file=file)
    assert word_error_rate(JFK, answer.model_dump()["text"]) == 0


# As its preprocessor and `convert_to_tool` make them of BFCL's: a dot in a name becomes an underscore, a float a number
# with a format, a tuple an array.
AU_TOOL = {
    "type": "function",
    "function": {
        "name": "geometry_area_triangle",
        "description": "Calculate the area of a triangle.",
        "parameters": {
            "type": "object",
            "properties": {
                "base": {"type": "number", "format": "float", "description": "The base. This is a float type value."},
                "sides": {"type": "array", "items": {"type": "integer"}, "description": "All sides."},
                "unit": {"type": "string", "description": "The unit.", "default": "cm", "enum": ["cm", "m"]},
                "options": {"type": "object", "properties": {"exact": {"type": "boolean"}}},
            },
            "required": ["base", "sides"],
        },
    },
}


async def test_au_harness_asks_for_calls(fake_server: RunningServer) -> None:
    """It scores the names and arguments in the answer's plain form. Its schemas can be enforced, too."""
    arguments = {"base": 10.5, "sides": [3, 4], "unit": "m"}
    text = CALLS["hermes"].replace("get_weather", "geometry_area_triangle") % json.dumps(arguments)
    asked = {
        **AU_HARNESS,
        "tools": [AU_TOOL],
        "messages": [AU_SYSTEM, *user(say(text), input_audio("austen-0880.wav"))],
    }
    async with au_harness(fake_server) as client:
        for choice in ({}, {"tool_choice": "required"}):
            answer = await client.chat.completions.create(model="fake", **asked, **choice)
            message = answer.model_dump()["choices"][0]["message"]
            (call,) = message["tool_calls"]
            assert call["function"]["name"] == "geometry_area_triangle"
            assert json.loads(call["function"]["arguments"]) == arguments
            assert message["content"] is None  # it takes a blank instead


@pytest.fixture
def client(fake_server: RunningServer) -> Iterator[openai.OpenAI]:
    with fake_server.client() as client:
        yield client


@pytest.mark.parametrize("path", ["/data/clips/a.wav", "clips/a.wav", "file:///data/clips/a.wav"])
def test_lmms_eval_sends_a_path(client: openai.OpenAI, path: str) -> None:
    """Its chat protocol puts one where an address belongs: a 400 that says which addresses are taken."""
    with pytest.raises(openai.BadRequestError, match="http") as caught:
        client.chat.completions.create(
            model="fake", messages=user("Listen.", audio_url(path)), max_tokens=1024, temperature=0
        )
    assert caught.value.param == "messages[0].content[1].audio_url.url"
    assert caught.value.code == "invalid_audio_url"
    assert path not in caught.value.message


def test_lmms_eval_sends_a_data_uri(client: openai.OpenAI) -> None:
    """The same block, with what a dataset that knows better puts there."""
    part = audio_url(f"data:audio/wav;base64,{as_base64('austen-0880.wav')}")
    answer = client.chat.completions.create(
        model="fake", messages=user("Listen.", part), max_tokens=1024, temperature=0, top_p=1.0, seed=0, n=1
    )
    assert answer.choices[0].message.content == "I heard 3.0 s. You said: Listen."


async def test_lmms_evals_tools(fake_server: RunningServer) -> None:
    """Results have their function's name, contents in parts and no `tool_call_id`; templates that do without one get
    them so. The text and the calls of one answer are two messages."""
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    messages = user(say("Let me see.\n" + CALLS["hermes"] % "{}"), input_audio("austen-0880.wav"))
    async with fake_server.async_client() as client:
        asked = {"model": "fake", "max_tokens": 1024, "temperature": 0, "tools": [weather], "tool_choice": "auto"}
        answer = await client.chat.completions.create(**asked, messages=messages)
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
        messages += [{"role": "assistant", "content": choice.message.content}]
        messages += [{"role": "assistant", "tool_calls": choice.message.tool_calls}]
        result = {"role": "tool", "name": "get_weather", "content": [{"type": "text", "text": "#tools"}]}
        answer = await client.chat.completions.create(**asked, messages=[*messages, result])
    *_, said, calling, told = json.loads(answer.choices[0].message.content)["history"]
    assert (said["role"], calling["role"], told) == ("assistant", "assistant", {"role": "tool", "name": "get_weather"})
    assert calling["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {}}


def test_lmms_evals_audio_model(client: openai.OpenAI) -> None:
    """Audio before the text, `modalities` with text alone, and sampling that is greedy after all."""
    answer = client.chat.completions.create(
        model="fake",
        modalities=["text"],
        messages=user(input_audio("austen-0880.wav"), "Listen."),
        max_tokens=4096,
        temperature=0,
        top_p=0.95,
    )
    assert answer.choices[0].message.content == "I heard 3.0 s. You said: Listen."


def test_voicebench(client: openai.OpenAI) -> None:
    """A user's turn of nothing but audio."""
    answer = client.chat.completions.create(
        model="fake",
        modalities=["text"],
        max_tokens=1024,
        messages=[{"role": "system", "content": "You are a helpful assistant."}, *user(input_audio("austen-0880.wav"))],
    )
    assert answer.choices[0].message.content == "I heard 3.0 s. You said: "


def test_ultraeval_audio(client: openai.OpenAI) -> None:
    """The contents of a prompt are a list of parts, or one text."""
    for content in ("hello", user("hello", input_audio("austen-0880.wav"))[0]["content"]):
        messages = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(
            model="fake", messages=messages, modalities=["text"], max_tokens=2048, temperature=0.0
        )
        assert answer.choices[0].message.content.endswith("You said: hello")


def test_vlmevalkit(fake_server: RunningServer) -> None:
    """Plain HTTP; a picture is refused by its place."""
    body = {"model": "fake", "messages": user("hello"), "n": 1, "temperature": 0, "max_tokens": 2048}
    picture = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA", "detail": "low"}}
    with fake_server.http() as http:
        answer = http.post(
            "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert answer.json()["choices"][0]["message"]["content"] == "I heard nothing. You said: hello"
        refused = http.post("/v1/chat/completions", json={**body, "messages": user("hello", picture)})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[0].content[1]")


# --------------------------------------------------------------------------------------------------------- Open WebUI


def test_open_webui_lists_and_chats(fake_server: RunningServer) -> None:
    """Ids of the list, and lines of a stream with a delta each."""
    with fake_server.http() as http:
        (card,) = http.get("/v1/models").json()["data"]
        body = {"model": card["id"], "messages": [{"role": "user", "content": "hello"}], "stream": True}
        body["stream_options"] = {"include_usage": True}
        text, usage = "", {}
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for line in filter(None, answer.iter_lines()):
                assert line.startswith("data: ")
                if (data := line.removeprefix("data: ")) != "[DONE]":
                    chunk = json.loads(data)
                    usage.update(chunk["usage"] or {})
                    text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
    assert text == "I heard nothing. You said: hello"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize(("clip", "name"), [("jfk.webm", "recording.webm"), ("jfk.m4a", "audio.m4a"), ("jfk.wav", "a")])
def test_open_webui_transcribes_a_recording(whisper_server: RunningServer, clip: str, name: str) -> None:
    """A form in chunks of unknown length, its file without a type; a language that is refused is tried without."""

    def form(**fields: str) -> Iterator[bytes]:
        for field, value in fields.items():
            yield f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode()
        yield b"--x\r\nContent-Type: application/octet-stream\r\n"
        yield f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        data = (DATA / clip).read_bytes()
        yield from (data[start : start + 65_536] for start in range(0, len(data), 65_536))
        yield b"\r\n--x--\r\n"

    statuses = []
    with whisper_server.http() as http:
        for fields in ({"language": "de"}, {}):
            answer = http.post(
                "/v1/audio/transcriptions",
                content=form(model="my-model", **fields),
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
            assert "content-length" not in answer.request.headers
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
    assert statuses == [400, 200]
    assert word_error_rate(JFK, answer.json()["text"]) == 0


def test_open_webui_transcribes_by_a_chat(whisper_server: RunningServer) -> None:
    """Its way for Mistral's API, which writes the base64 where OpenAI has an object."""
    part = {"type": "input_audio", "input_audio": as_base64("jfk.mp3")}
    body = {"model": "my-model", "messages": user(part, "Transcribe this audio.")}
    with whisper_server.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert word_error_rate(JFK, answer.json()["choices"][0]["message"]["content"]) == 0
