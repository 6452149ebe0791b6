"""The Responses API, through the official client, and held against all types of the `openai` package."""

from __future__ import annotations

import json
import time
from typing import Literal

import openai
import pytest
from openai.types import responses as types
from pydantic import BaseModel

from api.answers import Reply
from api.form import parse_as
from api.responses_events import Frame, ResponseBody, ResponseEvents
from api.responses_schema import ResponsesRequest, build_job, check_limits
from config import Settings
from errors import BadRequest
from tests.support.inprocess import openai_client, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import audio_url, input_audio
from tests.test_schema import FakeIntake
from wire import (
    AudioPart,
    Delta,
    Finished,
    Heard,
    Job,
    JobId,
    Message,
    Sampling,
    Structure,
    TextPart,
    TokenLogprob,
    Usage,
)

RESPONSES = "/v1/responses"
SETTINGS = Settings(_env_file=None)
JOB_ID = JobId(0, "x")
REPLY = Reply("resp_x", 1, "m")
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"const": "ok"}},
    "required": ["mood"],
    "additionalProperties": False,
}

EVENTS = {
    "response.created": types.ResponseCreatedEvent,
    "response.in_progress": types.ResponseInProgressEvent,
    "response.output_item.added": types.ResponseOutputItemAddedEvent,
    "response.content_part.added": types.ResponseContentPartAddedEvent,
    "response.output_text.delta": types.ResponseTextDeltaEvent,
    "response.output_text.done": types.ResponseTextDoneEvent,
    "response.content_part.done": types.ResponseContentPartDoneEvent,
    "response.output_item.done": types.ResponseOutputItemDoneEvent,
    "response.completed": types.ResponseCompletedEvent,
    "response.incomplete": types.ResponseIncompleteEvent,
    "error": types.ResponseErrorEvent,
}
JSON_OBJECT = {"format": {"type": "json_object"}}
BEGIN = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def said(*parts: dict | str, role: str = "user") -> dict:
    """One item of `input`."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {
        "role": role,
        "content": [{"type": kind, "text": part} if isinstance(part, str) else part for part in parts],
    }


def events_of(stream: str) -> list[BaseModel]:
    """The events of a stream, each strictly of its type, under its name and numbered."""
    *blocks, rest = stream.split("\n\n")
    assert rest == ""
    events = []
    for i, block in enumerate(blocks):
        name, data = block.split("\n")
        kind = name.removeprefix("event: ")
        events.append(EVENTS[kind].model_validate_json(data.removeprefix("data: "), strict=True))
        assert (events[-1].type, events[-1].sequence_number) == (kind, i)
    return events


# ------------------------------------------------------------------------------------------------------------- answers


def test_an_answer(fake_server: RunningServer) -> None:
    """The sync client's, with instructions and turns; and the same as the chat API's."""
    turns = [said("hello"), said("yes?", role="assistant"), {"role": "user", "content": "#say=hello"}]
    with fake_server.client() as client:
        answer = client.responses.create(model="fake", input=turns, instructions="be brief")
        chat = client.chat.completions.create(
            model="fake",
            messages=[
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": "yes?"},
                {"role": "user", "content": "#say=hello"},
            ],
        )
    assert answer.output_text == chat.choices[0].message.content == "hello"
    assert (answer.status, answer.model, answer.instructions) == ("completed", "fake", "be brief")
    assert abs(answer.created_at - time.time()) < 60
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_the_shape_of_an_answer() -> None:
    """All of OpenAI's fields, strictly by type; what the request asked is told again, nothing is stored."""
    body = {
        "model": "fake",
        "input": "hello",
        "temperature": 0.5,
        "top_p": 1,
        "max_output_tokens": 100,
        "metadata": {"a": "b"},
        "store": True,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
    }
    async with run_in_process() as server, server.http() as http:
        raw = await http.post(RESPONSES, json=body)
    read = types.Response.model_validate_json(raw.content, strict=True)
    assert set(types.Response.model_fields) - set(raw.json()) <= OPTIONAL
    assert (read.temperature, read.top_p, read.max_output_tokens, read.metadata) == (0.5, 1, 100, {"a": "b"})
    assert (raw.json()["store"], read.tools, read.tool_choice, read.text.format.type) == (False, [], "auto", "text")
    (item,) = read.output
    (part,) = item.content
    assert (item.role, item.status, part.annotations) == ("assistant", "completed", [])
    assert part.text == "I heard nothing. You said: hello"
    assert bytes(byte for token in part.logprobs for byte in token.bytes).decode() == part.text
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}


# Fields of OpenAI's type that stand for things which do not exist here.
OPTIONAL = {
    *("access_programs", "conversation", "image", "input_transformations", "max_tool_calls", "moderation", "prompt"),
    *("prompt_cache_diagnostics", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "service_tier", "tool_usage", "user"),
}


async def test_audio_is_heard() -> None:
    """In OpenAI's part and in vLLM's, and `usage` tells how much."""
    clip = input_audio("cv-en-no.mp3")
    data = "data:audio/ogg;base64," + input_audio("jfk.ogg")["input_audio"]["data"]
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.responses.create(model="fake", input=[said(clip, "and"), said(audio_url(data), "well?")])
    assert answer.output_text == "I heard 4.1 s, 11.0 s. You said: well?"
    assert answer.usage.audio == {
        "seconds_received": 15.104,
        "seconds_used": 15.104,
        "seconds_dropped": 0.0,
        "parts": 2,
    }
    assert answer.usage.input_tokens_details.audio_tokens == 15


async def test_a_limit_makes_it_incomplete() -> None:
    """As it really was, in the item too; a stop string does not."""
    async with run_in_process() as server, openai_client(server) as client:
        cut = await client.responses.create(model="fake", input="#tokens=50", max_output_tokens=4)
        stopped = await client.responses.create(model="fake", input="#tokens=50", extra_body={"stop": "e"})
    assert (cut.output_text, cut.status, cut.incomplete_details.reason) == ("abcd", "incomplete", "max_output_tokens")
    assert cut.output[0].status == "incomplete"
    assert (stopped.output_text, stopped.status, stopped.incomplete_details) == ("abcd", "completed", None)


# ------------------------------------------------------------------------------------------------------------- streams


async def test_a_stream_has_its_events_in_order() -> None:
    """Each strictly of its type, numbered, with the same ids; the last one is the whole response."""
    body = {"model": "fake", "input": [said(input_audio("cv-en-no.mp3"), "hello")], "stream": True}
    async with run_in_process() as server, server.http() as http:
        raw = await http.post(RESPONSES, json=body)
        whole = types.Response.model_validate((await http.post(RESPONSES, json={**body, "stream": False})).json())
    assert raw.headers["content-type"].startswith("text/event-stream")
    events = events_of(raw.text)
    kinds = [event.type for event in events]
    num_deltas = kinds.count("response.output_text.delta")
    assert num_deltas > 3
    assert kinds == [*BEGIN, *["response.output_text.delta"] * num_deltas, *END, "response.completed"]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    done, part, item, last = events[-4:]
    assert text == done.text == part.part.text == item.item.content[0].text == last.response.output_text
    assert text == whole.output_text
    assert last.response.usage == whole.usage
    assert (events[0].response.status, events[0].response.output, events[0].response.usage) == ("in_progress", [], None)
    assert len({event.response.id for event in events if hasattr(event, "response")}) == 1
    ids = {event.item_id for event in events if hasattr(event, "item_id")}
    assert ids == {events[2].item.id} == {item.item.id} == {last.response.output[0].id}


async def test_a_stream_that_is_cut() -> None:
    """Ends with `response.incomplete`; logprobs come with the text they belong to."""
    options = {"max_output_tokens": 4, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    async with run_in_process() as server, server.http() as http:
        raw = await http.post(RESPONSES, json={"model": "fake", "input": "#tokens=50", "stream": True, **options})
    events = events_of(raw.text)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-2].item.status == "incomplete"
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(token.token for event in deltas for token in event.logprobs) == "abcd"
    assert [token.token for token in events[-4].logprobs] == list("abcd")


def test_the_streaming_helper_of_the_sync_client(fake_server: RunningServer) -> None:
    """It follows the events and puts the response together; so does the plain iterator."""
    with fake_server.client() as client:
        with client.responses.stream(model="fake", input="hello") as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert stream.get_final_response().output_text == "".join(texts) == "I heard nothing. You said: hello"
        with client.responses.stream(model="fake", input="#tokens=50", max_output_tokens=4) as stream:
            assert [event.type for event in stream][-1] == "response.incomplete"
        plain = client.responses.create(model="fake", input="hello", stream=True)
        assert [event.type for event in plain][-1] == "response.completed"


async def test_the_streaming_helper_of_the_async_client() -> None:
    """The same."""
    async with (
        run_in_process() as server,
        openai_client(server) as client,
        client.responses.stream(model="fake", input="hello") as stream,
    ):
        final = await stream.get_final_response()
    assert final.output_text == "I heard nothing. You said: hello"


async def test_a_failure_in_the_middle_of_a_stream_raises() -> None:
    """The last event is OpenAI's `error`, and the client raises at it; one before the first token has its status."""
    body = {"model": "fake", "input": "#tokens=20 #fail=step", "stream": True}
    async with run_in_process() as server, openai_client(server) as client, server.http() as http:
        last = events_of((await http.post(RESPONSES, json=body)).text)[-1]
        assert (last.type, last.code, last.param) == ("error", "internal_error", None)
        got = []
        with pytest.raises(openai.APIError, match="failed while it answered"):
            async for event in await client.responses.create(**body):
                got.append(event.type)  # noqa: PERF401 -- a comprehension would lose what came before the error
        assert got[: len(BEGIN)] == BEGIN
        assert "response.completed" not in got
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(**{**body, "input": "#fail=prefill"})
        await server.settled()


# ----------------------------------------------------------------------------------------------------------- structure


class Mood(BaseModel):
    mood: Literal["good", "bad"]


async def test_a_structure_is_followed() -> None:
    """A pydantic model with `.parse`, in a stream too, and vLLM's way; the response tells the format again."""
    async with run_in_process() as server, openai_client(server) as client:
        parsed = await client.responses.parse(model="fake", input="#random", text_format=Mood)
        assert isinstance(parsed.output_parsed, Mood)
        assert parsed.text.format.schema_["properties"]["mood"]["enum"] == ["good", "bad"]
        async with client.responses.stream(model="fake", input="#tokens=9", text_format=Mood) as stream:
            assert isinstance((await stream.get_final_response()).output_parsed, Mood)
        text = {"format": {"type": "json_schema", "name": "m", "schema": SCHEMA, "strict": True}}
        answer = await client.responses.create(model="fake", input="hello", text=text)
        assert json.loads(answer.output_text) == {"mood": "ok"}
        choice = {"structured_outputs": {"choice": ["yes", "no"]}}
        answer = await client.responses.create(
            model="fake", input="hello", extra_body=choice, include=["message.output_text.logprobs"]
        )
        part = answer.output[0].content[0]
        assert part.text in ("yes", "no")
        assert sum(part.label_probabilities.values()) == pytest.approx(1)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": []}, "input"),
        ({"input": ["hello"]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [said({"type": "input_image", "image_url": "x"})]}, "input[0].content[0]"),
        ({"input": [said("x", {"type": "input_text"})]}, "input[0].content[1].text"),
        ({"input": [said({"type": "input_audio", "input_audio": {}})]}, "input[0].content[0].input_audio.data"),
        (
            {"input": [said("x"), said("y", {"type": "input_audio", "input_audio": {"data": "!!"}})]},
            "input[1].content[1].input_audio.data",
        ),
        ({"input": [said(*[audio_url("http://x/")] * 17)]}, "input"),
        ({"instructions": "x" * 600_000, "input": "x" * 600_000}, "input"),
        ({"instructions": 5}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"min_tokens": 5, "max_output_tokens": 4}, "min_tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": JSON_OBJECT, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"text": {"format": {"type": "json_schema", "schema": {"const": "x" * 100_000}}}}, "text.format.schema"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"bad_words": ["x"]}, "bad_words"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict, param: str) -> None:
    """As the client wrote it, and what does not exist here is refused."""
    with pytest.raises(BadRequest) as caught:
        job_of(**fields)
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message or "hold" in caught.value.message


async def test_errors_raise_as_everywhere() -> None:
    """Through the client: what is not served, not stored, or no audio."""
    async with run_in_process() as server, openai_client(server) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.responses.create(model="gpt-9", input="hello")
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as stateful:
            await client.responses.create(model="fake", input="hello", previous_response_id="resp_1")
        assert stateful.value.param == "previous_response_id"
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as bad:
                no_audio = {"type": "input_audio", "input_audio": {"data": "bm9wZQ==", "format": "wav"}}
                await client.responses.create(model="fake", input=[said("listen", no_audio)], stream=stream)
            assert (bad.value.code, bad.value.param) == ("invalid_audio", "input[0].content[1].input_audio.data")
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_1")
        await server.settled()


# ------------------------------------------------------------------------------------------------- requests, by the way


def job_of(**fields: object) -> Job:
    """What a request becomes, past all checks."""
    asked = parse_as(ResponsesRequest, json.dumps({"model": "m", "input": "hello", **fields}).encode())
    check_limits(asked, SETTINGS)
    return build_job(asked, JOB_ID, FakeIntake(), 100)


def test_explicit_nulls_and_unknown_fields_are_accepted() -> None:
    """They ask for nothing."""
    optional = set(ResponsesRequest.model_fields) - {"model", "input"}
    ignored = {"store": True, "tools": [], "tool_choice": "auto", "reasoning": {"effort": "low"}, "truncation": "auto"}
    for fields in (dict.fromkeys(optional), ignored):
        job = job_of(**fields)
        assert (job.sampling, job.structure) == (Sampling(), None)
        assert job.messages == (Message("user", (TextPart("hello"),)),)


def test_items_become_messages() -> None:
    """What the model said comes back with the history as OpenAI's client sends it; each part has its place."""
    before = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "yes", "annotations": []}, {"type": "refusal", "refusal": "no"}],
    }
    clip = {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "wav"}}
    job = job_of(instructions="brief", input=[said("be kind", role="developer"), before, said("and", clip)])
    assert job.messages == (
        Message("system", (TextPart("brief"),)),
        Message("system", (TextPart("be kind"),)),
        Message("assistant", (TextPart("yes"), TextPart("no"))),
        Message("user", (TextPart("and"), AudioPart("input[2].content[1].input_audio.data", path="path1"))),
    )
    assert job.spool_bytes == 3


def test_fields_reach_the_job() -> None:
    """OpenAI's, vLLM's and ours."""
    job = job_of(
        max_output_tokens=5,
        temperature=0.5,
        top_k=40,
        seed=1,
        stop="x",
        priority=2,
        long_audio="chunk",
        include=["message.output_text.logprobs"],
        text=JSON_OBJECT,
    )
    assert job.sampling == Sampling(max_tokens=5, temperature=0.5, top_k=40, seed=1, stop=("x",), top_logprobs=0)
    assert (job.priority, job.long_audio) == (2, "chunk")
    assert job.structure == Structure("json_object", "text.format")
    assert job_of(top_logprobs=3).sampling == Sampling()


def test_an_answer_without_a_word() -> None:
    """Has an empty text and no deltas, as an answer and as a stream."""
    end = Finished(JOB_ID, 0, "stop", Usage(3, 0, cached_tokens=2, audio_tokens=1, heard=Heard(1, 2.0, 1.0)))
    frame = Frame(REPLY, {})
    body = ResponseBody(frame)
    body.add(end)
    read = types.Response.model_validate_json(json.dumps(body.body(2)), strict=True)
    assert (read.output_text, read.usage.input_tokens_details.cached_tokens) == ("", 2)
    assert read.usage.audio["seconds_dropped"] == 1.0
    told = ResponseEvents(frame)
    kinds = [event["type"] for event in (*told.first(), *told.of(end), *told.last(2))]
    assert kinds == [*BEGIN, *END, "response.completed"]


def test_half_a_character_is_told_with_its_tokens() -> None:
    """A token that completes no text comes in a delta of its own, where tokens were asked for."""
    told = ResponseEvents(Frame(REPLY, {}, logprobs=True))
    half = TokenLogprob("€".encode()[:1], -0.5)
    *_, event = told.of(Delta(JOB_ID, 0, "", (half,)))
    assert (event["delta"], event["logprobs"][0]["bytes"]) == ("", [226])
    assert list(told.of(Delta(JOB_ID, 0, ""))) == []
