"""The official client for Python, async as in servers: what the endpoints' own tests do not ask of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from tests.support.inprocess import InProcess, openai_client, request, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import DATA, JFK, user, word_error_rate
from tests.support.waiting import until
from tests.test_tool_calls import CALLS, say

HELLO = "I heard nothing. You said: hello"


class Mood(BaseModel):
    mood: Literal["good", "bad"]


class Day(BaseModel):
    name: Literal["Monday", "Tuesday"]
    hours: list[int]


class GetWeather(BaseModel):
    """A model in a model, a choice, and what may be missing."""

    city: str
    days: list[Day]
    unit: str | None


GOOD = request('#say={"mood":"good"}', response_format=Mood)


async def test_parse_and_its_stream() -> None:
    """Give a pydantic model; an answer that was cut raises the client's own error."""
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.chat.completions.parse(**GOOD)
        assert answer.choices[0].message.parsed == Mood(mood="good")
        async with client.chat.completions.stream(**GOOD) as stream:
            events = [event.type async for event in stream]
            assert (await stream.get_final_completion()).choices[0].message.parsed == Mood(mood="good")
        assert {"content.delta", "content.done"} <= set(events)
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(**GOOD, max_tokens=3)


async def test_the_streaming_helper_of_the_async_client() -> None:
    """One role, all of the text, and the usage."""
    async with run_in_process() as server, openai_client(server) as client:
        options = {"stream_options": {"include_usage": True}}
        async with client.chat.completions.stream(**request("hello"), **options) as stream:
            answer = await stream.get_final_completion()
        assert (answer.choices[0].message.role, answer.choices[0].message.content) == ("assistant", HELLO)
        assert answer.usage.completion_tokens == len(HELLO)
        with pytest.raises(openai.APIError, match="The model failed"):
            async with client.chat.completions.stream(**request("#tokens=9 #fail=step")) as stream:
                await stream.until_done()


WEEK = GetWeather(city="Zürich", days=[Day(name="Monday", hours=[8, 9]), Day(name="Tuesday", hours=[])], unit=None)
WEATHER = pydantic_function_tool(GetWeather, name="get_weather")
CALLED = say(CALLS["hermes"] % WEEK.model_dump_json())


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_parse_and_its_stream_with_functions(choice: str) -> None:
    """Give the arguments as the function's pydantic model, while they are written, too."""
    asked = request(CALLED, tools=[WEATHER], tool_choice=choice)
    async with run_in_process() as server, openai_client(server) as client:
        whole = await client.chat.completions.parse(**asked)
        async with client.chat.completions.stream(**asked) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
    for answer in (whole, final):
        (call,) = answer.choices[0].message.tool_calls
        assert (call.type, call.function.name, call.function.parsed_arguments) == ("function", "get_weather", WEEK)
        assert answer.choices[0].finish_reason == "tool_calls"
    (done,) = (event for event in events if event.type == "tool_calls.function.arguments.done")
    assert (done.name, done.index, done.parsed_arguments) == ("get_weather", 0, WEEK)
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert any(event.parsed_arguments == {"city": "Zürich"} for event in deltas)


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_parse_and_its_stream_with_functions_in_responses(choice: str) -> None:
    """The same functions, in the other API."""
    asked = {"model": "fake", "input": CALLED, "tools": [WEATHER], "tool_choice": choice}
    async with run_in_process() as server, openai_client(server) as client:
        whole = await client.responses.parse(**asked)
        async with client.responses.stream(**asked) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_response()
    for answer in (whole, final):
        (item,) = answer.output
        assert (item.type, item.name, item.parsed_arguments) == ("function_call", "get_weather", WEEK)


async def test_raw_and_streaming_responses() -> None:
    """Their headers are there before the body, and the id of the request is the answer's."""
    async with run_in_process() as server, openai_client(server) as client:
        raw = await client.chat.completions.with_raw_response.create(**request("hello"))
        answer = raw.parse()
        assert raw.headers["x-request-id"] == raw.request_id == answer._request_id
        assert answer.choices[0].message.content == HELLO
        async with client.chat.completions.with_streaming_response.create(**request("hello"), stream=True) as opened:
            assert opened.headers["content-type"].startswith("text/event-stream")
            lines = [line async for line in opened.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"


async def test_an_error_has_the_request_id_that_was_sent() -> None:
    """So that a client's log and the server's can be held against each other."""
    async with run_in_process() as server, openai_client(server) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(
                **{**request("hello"), "model": "gpt-9"}, extra_headers={"x-request-id": "mine-7"}
            )
    assert caught.value.request_id == "mine-7"


class Patient(AsyncOpenAI):
    """Does something useful instead of waiting, and remembers how long it should have waited."""

    waited: list[float]
    meanwhile: Callable[[], Awaitable[None]]

    async def _sleep_for_retry(self, *, retries_taken, max_retries, options, response) -> None:
        headers = response.headers if response is not None else None
        self.waited.append(self._calculate_retry_timeout(max_retries - retries_taken, options, headers))
        await self.meanwhile()


def patient(server: InProcess, meanwhile: Callable[[], Awaitable[None]]) -> Patient:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app), base_url="http://test", timeout=30)
    client = Patient(base_url="http://test/v1", api_key="none", max_retries=2, http_client=http)
    client.waited, client.meanwhile = [], meanwhile
    return client


async def test_a_full_queue_is_asked_again_when_it_said() -> None:
    """The client waits as long as `Retry-After` tells, and its second try is answered."""
    async with run_in_process(running=False, queue_requests=1) as server, server.http() as http:
        waiting = asyncio.ensure_future(http.post("/v1/chat/completions", json=request("first")))
        await until(lambda: server.pending._num_waiting)
        told = server.pending.retry_after_s

        async def work() -> None:
            server.start()
            await waiting

        async with patient(server, work) as client:
            answer = await client.chat.completions.create(**request("hello"))
        assert answer.choices[0].message.content == HELLO
        assert client.waited == [told]


async def test_the_async_client_transcribes(whisper_server: RunningServer) -> None:
    """In every format, and as a stream."""
    async with whisper_server.async_client() as client:

        async def transcribe(**options: object) -> object:
            return await client.audio.transcriptions.create(model="my-model", file=DATA / "jfk.mp3", **options)

        assert word_error_rate(JFK, (await transcribe()).text) == 0
        verbose = await transcribe(response_format="verbose_json", timestamp_granularities=["segment"])
        assert (verbose.duration, verbose.segments[0].start) == (11.0, 0.0)
        assert (await transcribe(response_format="srt")).startswith("1\n00:00:00,000 --> ")
        assert (await transcribe(response_format="vtt")).startswith("WEBVTT\n\n00:00:00.000 --> ")
        assert word_error_rate(JFK, await transcribe(response_format="text")) == 0
        events = [event async for event in await transcribe(stream=True)]
        assert [event.type for event in events] == ["transcript.text.delta"] * (len(events) - 1) + [
            "transcript.text.done"
        ]
        assert word_error_rate(JFK, events[-1].text) == 0


async def test_models_are_listed_by_pages() -> None:
    """Of which there is one."""
    async with run_in_process(served_model_name="one,org/two") as server, openai_client(server) as client:
        assert [card.id async for card in client.models.list()] == ["one", "org/two"]
        assert (await client.models.retrieve("org/two")).object == "model"
        chat = await client.chat.completions.create(model="org/two", messages=user("hello"))
        assert chat.choices[0].message.content == HELLO
