"""pydantic-ai, which validates every answer again, in strict form; by chat completions and by responses."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI
from places import (
    CLIPS,
    FAKE,
    GOOD,
    HELLO,
    LIMITED,
    PARIS,
    SPEECH,
    TELL,
    WHAT,
    WHISPER,
    Mood,
    check_told,
    is_jfk,
    to_call,
)
from pydantic_ai import Agent, BinaryContent, ModelHTTPError, NativeOutput, RunContext
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

APIS = [OpenAIChatModel, OpenAIResponsesModel]


def agent(
    api: type = OpenAIChatModel, url: str = FAKE, name: str = "fake", key: str = "none", **options: object
) -> Agent:
    client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
    return Agent(api(name, provider=OpenAIProvider(openai_client=client)), **options)


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_and_its_usage(api: type) -> None:
    """Once asked, once counted."""
    answer = await agent(api).run("hello")
    usage = answer.usage() if callable(answer.usage) else answer.usage
    assert answer.output == HELLO
    assert (usage.requests, usage.input_tokens, usage.output_tokens) == (1, 5, len(HELLO))


@pytest.mark.parametrize("api", APIS)
async def test_a_stream(api: type) -> None:
    """Its text, and a usage that is summed over the chunks."""
    async with agent(api).run_stream("hello") as stream:
        assert "".join([text async for text in stream.stream_text(delta=True)]) == HELLO
        usage = stream.usage() if callable(stream.usage) else stream.usage
    assert (usage.input_tokens, usage.output_tokens) == (5, len(HELLO))


@pytest.mark.parametrize(("name", "media_type"), [("jfk.mp3", "audio/mpeg"), ("jfk.wav", "audio/wav")])
async def test_audio_is_heard(name: str, media_type: str) -> None:
    """As its binary content."""
    content = BinaryContent((CLIPS / name).read_bytes(), media_type=media_type)
    assert is_jfk((await agent(OpenAIChatModel, WHISPER, SPEECH).run([WHAT, content])).output)


@pytest.mark.parametrize("api", APIS)
async def test_a_structure(api: type) -> None:
    """By JSON schema."""
    assert (await agent(api, output_type=NativeOutput(Mood)).run(GOOD)).output == Mood(mood="good")


def weather_agent(api: type) -> Agent:
    asked = agent(api)

    @asked.tool
    async def get_weather(_: RunContext, city: str, days: int) -> str:
        """The weather of a city."""
        assert (city, days) == tuple(PARIS.values())
        return TELL

    return asked


@pytest.mark.parametrize("api", APIS)
async def test_a_tool_is_called_and_answers(api: type) -> None:
    """Asked twice, and the second answer knows the result."""
    answer = await weather_agent(api).run(to_call("get_weather", PARIS))
    usage = answer.usage() if callable(answer.usage) else answer.usage
    check_told(answer.output, "get_weather")
    assert (usage.requests, usage.tool_calls) == (2, 1)


@pytest.mark.parametrize("api", APIS)
async def test_a_tool_in_a_stream(api: type) -> None:
    """The same; each usage is counted once."""
    whole = await weather_agent(api).run(to_call("get_weather", PARIS))
    async with weather_agent(api).run_stream(to_call("get_weather", PARIS)) as stream:
        check_told(await stream.get_output(), "get_weather")
    expected, usage = (each.usage() if callable(each.usage) else each.usage for each in (whole, stream))
    assert usage.input_tokens == expected.input_tokens


@pytest.mark.parametrize("api", APIS)
async def test_a_structure_by_a_tool(api: type) -> None:
    """Its own way where nothing is said: the output is what a tool is called with."""
    prompt = to_call("final_result", {"mood": "good"})
    assert (await agent(api, output_type=Mood).run(prompt)).output == Mood(mood="good")
    async with agent(api, output_type=Mood).run_stream(prompt) as stream:
        assert await stream.get_output() == Mood(mood="good")


async def test_errors_have_their_status_and_body() -> None:
    """In its own class."""
    await agent(OpenAIChatModel, LIMITED, key="pydantic-ai").run("hello")
    for asked, status, code in (
        (agent(name="gpt-9"), 404, "model_not_found"),
        (agent(OpenAIChatModel, LIMITED, key="wrong"), 401, "invalid_api_key"),
        (agent(OpenAIChatModel, LIMITED, key="pydantic-ai"), 429, "rate_limit_exceeded"),
    ):
        with pytest.raises(ModelHTTPError) as caught:
            await asked.run("hello")
        assert (caught.value.status_code, caught.value.body["code"]) == (status, code)


@pytest.mark.parametrize("api", APIS)
async def test_a_failure_in_a_stream_raises(api: type) -> None:
    """And does not end it as a short answer."""
    with pytest.raises(Exception, match="failed"):
        async with agent(api).run_stream("#tokens=20 #fail=step") as stream:
            [text async for text in stream.stream_text(delta=True)]
