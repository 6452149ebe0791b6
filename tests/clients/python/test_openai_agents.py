"""openai-agents, by chat completions and by responses."""

from __future__ import annotations

import json

import openai
import pytest
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from places import FAKE, GOOD, HELLO, PARIS, SPEECH, TELL, WHAT, WHISPER, Mood, check_told, clip, is_jfk, to_call

APIS = [OpenAIChatCompletionsModel, OpenAIResponsesModel]


@pytest.fixture(autouse=True)
def no_tracing() -> None:
    """It would be sent to OpenAI."""
    set_tracing_disabled(True)


def agent(api: type, url: str = FAKE, name: str = "fake", **options: object) -> Agent:
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    return Agent(name="tester", model=api(name, openai_client=client), **options)


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_and_its_usage(api: type) -> None:
    """Once asked, once counted."""
    run = await Runner.run(agent(api), "hello")
    usage = run.context_wrapper.usage
    assert run.final_output == HELLO
    assert (usage.requests, usage.output_tokens) == (1, len(HELLO))
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.mark.parametrize("api", APIS)
async def test_a_stream(api: type) -> None:
    """Its deltas are the answer."""
    run = Runner.run_streamed(agent(api), "hello")
    events = [event.data async for event in run.stream_events() if event.type == "raw_response_event"]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == HELLO
    assert run.final_output == HELLO


async def test_audio_is_heard() -> None:
    """In OpenAI's part."""
    content = [{"type": "input_text", "text": WHAT}, clip("jfk.mp3")]
    run = await Runner.run(agent(OpenAIChatCompletionsModel, WHISPER, SPEECH), [{"role": "user", "content": content}])
    assert is_jfk(run.final_output)


@pytest.mark.parametrize("api", APIS)
async def test_a_structure(api: type) -> None:
    """By JSON schema."""
    assert (await Runner.run(agent(api, output_type=Mood), GOOD)).final_output == Mood(mood="good")


@function_tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    assert (city, days) == tuple(PARIS.values())
    return TELL


CALLED = to_call("get_weather", PARIS)


@pytest.mark.parametrize("api", APIS)
async def test_a_tool_is_called_and_answers(api: type) -> None:
    """In two turns; the items of the run can be told apart."""
    run = await Runner.run(agent(api, tools=[get_weather]), CALLED)
    check_told(run.final_output, "get_weather")
    assert [item.type for item in run.new_items] == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    assert run.context_wrapper.usage.requests == 2


@pytest.mark.parametrize("api", APIS)
async def test_a_tool_in_a_stream(api: type) -> None:
    """Its arguments come as they are written."""
    run = Runner.run_streamed(agent(api, tools=[get_weather]), CALLED)
    events = [event async for event in run.stream_events()]
    raw = [event.data for event in events if event.type == "raw_response_event"]
    deltas = [event.delta for event in raw if event.type == "response.function_call_arguments.delta"]
    assert len(deltas) > 10
    assert json.loads("".join(deltas)) == PARIS
    names = [event.name for event in events if event.type == "run_item_stream_event"]
    assert names == ["tool_called", "tool_output", "message_output_created"]
    check_told(run.final_output, "get_weather")


@pytest.mark.parametrize("api", APIS)
async def test_errors_keep_their_class(api: type) -> None:
    """Those of the official client; in a stream, too."""
    with pytest.raises(openai.NotFoundError):
        await Runner.run(agent(api, name="gpt-9"), "hello")
    with pytest.raises(Exception, match="failed"):
        [event async for event in Runner.run_streamed(agent(api), "#tokens=20 #fail=step").stream_events()]
