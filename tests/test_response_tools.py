"""Calls of functions and thoughts in the Responses API, through the official client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types import responses as types

from tests.support.inprocess import openai_client, run_in_process
from tests.test_responses import EVENTS, job_of, said
from tests.test_tool_calls import PARIS, TWO, WEATHER, say
from wire import Message, TextPart, ToolCall

TOOLS = [
    {"type": "function", "name": "get_weather", "parameters": WEATHER["function"]["parameters"], "strict": True},
    {"type": "function", "name": "get_time"},
]
MORE_EVENTS = {
    **EVENTS,
    "response.function_call_arguments.delta": types.ResponseFunctionCallArgumentsDeltaEvent,
    "response.function_call_arguments.done": types.ResponseFunctionCallArgumentsDoneEvent,
    "response.reasoning_text.delta": types.ResponseReasoningTextDeltaEvent,
    "response.reasoning_text.done": types.ResponseReasoningTextDoneEvent,
}
TEXT = f"<think>hm</think>\n\nLet me see.\n{TWO}"


def question(answer: str, **fields: object) -> dict[str, Any]:
    return {"model": "fake", "input": say(answer), "tools": TOOLS, **fields}


async def test_an_answer_that_calls_functions() -> None:
    """Thoughts, text and calls are items in the order in which they were written; the tools are told again."""
    async with run_in_process(reasoning_parser="think") as server, openai_client(server) as client:
        answer = await client.responses.create(**question(TEXT))
    thoughts, message, weather, time = answer.output
    assert thoughts.content[0].text == "hm"
    assert (message.content[0].text, answer.output_text) == ("Let me see.", "Let me see.")
    assert (weather.type, weather.name, json.loads(weather.arguments)) == ("function_call", "get_weather", PARIS)
    assert (time.name, json.loads(time.arguments)) == ("get_time", {})
    assert weather.call_id.startswith("call_") and weather.call_id != time.call_id
    assert len({item.id for item in answer.output}) == 4
    assert (answer.status, {item.status for item in answer.output}) == ("completed", {"completed"})
    assert ([tool.name for tool in answer.tools], answer.tool_choice) == (["get_weather", "get_time"], "auto")


async def test_the_events_of_a_stream() -> None:
    """Strictly of their types, numbered, each item begun and ended before the next, and its deltas add up to it."""
    async with run_in_process(reasoning_parser="think") as server, openai_client(server) as client:
        stream = await client.responses.create(**question(TEXT), stream=True)
        events = [event async for event in stream]
    for number, event in enumerate(events):
        read = MORE_EVENTS[event.type].model_validate_json(event.model_dump_json(exclude_unset=True, by_alias=True))
        assert read.sequence_number == number
    kinds = [event.type.removeprefix("response.") for event in events]
    once = [kind for i, kind in enumerate(kinds) if kinds[i - 1] != kind]
    begin, end = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert once == [
        *("created", "in_progress"),
        *(*begin, "reasoning_text.delta", "reasoning_text.done", *end),
        *(*begin, "output_text.delta", "output_text.done", *end),
        *(*call, *call),
        "completed",
    ]
    whole = events[-1].response
    for index, item in enumerate(whole.output):
        deltas = [each.delta for each in events if each.type.endswith(".delta") and each.output_index == index]
        assert "".join(deltas) == (item.arguments if item.type == "function_call" else item.content[0].text)
    added = [event.item for event in events if event.type == "response.output_item.added"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in added] == [item.id for item in done] == [item.id for item in whole.output]
    assert {item.status for item in added} == {"in_progress"} and done == whole.output
    assert (added[2].call_id, added[2].name, added[2].arguments) == (done[2].call_id, "get_weather", "")


async def test_the_sdk_gathers_a_stream_and_parses_arguments() -> None:
    """Its own helper."""
    async with run_in_process() as server, openai_client(server) as client:
        flat = {"type": "function", **WEATHER["function"]}
        async with client.responses.stream(**question(TWO, tools=[flat, TOOLS[1]])) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_response()
    assert [item.name for item in final.output] == ["get_weather", "get_time"]
    assert json.loads(final.output[0].arguments) == PARIS


async def test_choices_of_tools() -> None:
    """Named, required, none; and one call at most."""
    async with run_in_process() as server, openai_client(server) as client:
        named = await client.responses.create(
            **question("no", tool_choice={"type": "function", "name": "get_time"}, max_output_tokens=200)
        )
        assert [(item.name, item.arguments) for item in named.output] == [("get_time", "{}")]
        assert named.tool_choice.name == "get_time"
        required = await client.responses.create(**question(TWO, tool_choice="required", parallel_tool_calls=False))
        assert [item.name for item in required.output] == ["get_weather"]
        none = await client.responses.create(**question("Yes.", tool_choice="none"))
        assert none.output_text == "Yes."


async def test_a_call_that_is_cut() -> None:
    """The answer is incomplete, and so is its last item."""
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.responses.create(**question(TWO, max_output_tokens=50))
    assert (answer.status, answer.output[-1].status) == ("incomplete", "incomplete")


def test_items_become_messages() -> None:
    """Thoughts, text and calls that follow each other are one turn of the assistant; results are a tool's."""
    job = job_of(
        input=[
            said("Weather?"),
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"role": "assistant", "content": "Let me see."},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}', "id": "fc_1"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
            {"type": "function_call", "call_id": "c3", "name": "f", "arguments": "{}"},
            {"role": "assistant", "content": "Done."},
            {"role": "assistant", "content": "Really."},
            said("Thanks"),
        ]
    )
    calls = (ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", "{}"))
    assert job.messages == (
        Message("user", (TextPart("Weather?"),)),
        Message("assistant", (TextPart("Let me see."),), calls, reasoning="hm"),
        Message("tool", (TextPart("rain"),), call_id="c1", name="f"),
        Message("tool", (TextPart("noon"),), call_id="c2", name="g"),
        Message("assistant", (), (ToolCall("c3", "f", "{}"),)),
        Message("assistant", (TextPart("Done."),)),
        Message("assistant", (TextPart("Really."),)),
        Message("user", (TextPart("Thanks"),)),
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": 1}]}, "tools[0].parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "x"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    """As the client wrote it."""
    with pytest.raises(Exception, match="`") as caught:
        job_of(**fields)
    assert caught.value.param == param


async def test_a_schema_that_cannot_be_enforced() -> None:
    """Is named where it stands in this API."""
    wrong = {"type": "function", "name": "f", "parameters": {"properties": {"a": {"$ref": "#/nowhere"}}}}
    async with run_in_process() as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.responses.create(**question("x", tools=[TOOLS[1], wrong], tool_choice="required"))
    assert refusal.value.param == "tools[1].parameters"
