"""Calls of tools and thoughts, as clients of the chat API see them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import openai
import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from api.blame import name_of
from tests.support.inprocess import openai_client, run_in_process
from tests.support.speech import input_audio, user
from wire import Job, JobId, Message, Sampling, TextPart, Tool, ToolCall, Tools


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str
    days: int


WEATHER = pydantic_function_tool(GetWeather, name="get_weather")
TIME = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, TIME]
PARIS = {"city": "Paris", "days": 2}
CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": %s}\n</tool_call>',
    "mistral": "[TOOL_CALLS]get_weather[ARGS]%s",
    "llama": '{"name": "get_weather", "parameters": %s}',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": %s}]',
}
TWO = (CALLS["hermes"] % json.dumps(PARIS)) + '\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def say(text: str) -> str:
    """What makes the fake model answer with a text."""
    return f"#text={quote(text)}"


def question(answer: str, **fields: object) -> dict[str, Any]:
    return {"model": "fake", "messages": user(say(answer)), "tools": TOOLS, **fields}


async def streamed(client: AsyncOpenAI, **fields: object) -> list[Any]:
    return [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]


def of_choice(chunks: list[Any], index: int = 0) -> list[dict[str, Any]]:
    """The choice's part of each chunk, as it was sent."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return [choice.model_dump(exclude_unset=True) for choice in choices]


@pytest.mark.parametrize("style", CALLS)
async def test_an_answer_that_is_a_call(style: str) -> None:
    """In each style: no content, a call, and its reason."""
    async with run_in_process(tool_call_parser=style) as server, openai_client(server) as client:
        answer = await client.chat.completions.create(**question(CALLS[style] % json.dumps(PARIS)))
        (choice,) = answer.choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
            "function",
            "get_weather",
            PARIS,
        )
        assert call.id.startswith("call_")


@pytest.mark.parametrize("style", CALLS)
async def test_a_call_in_a_stream(style: str) -> None:
    """The first delta names the call, later ones have arguments only, nothing is null."""
    async with run_in_process(tool_call_parser=style) as server, openai_client(server) as client:
        chunks = of_choice(await streamed(client, **question(CALLS[style] % json.dumps(PARIS))))
    first, begun, *rest, last = [chunk["delta"] for chunk in chunks]
    assert (first, last) == ({"role": "assistant", "content": ""}, {})
    (call,) = begun["tool_calls"]
    assert call == {
        "index": 0,
        "id": call["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": ""},
    }
    pieces = [delta["tool_calls"] for delta in rest]
    assert all(
        piece == [{"index": 0, "function": {"arguments": piece[0]["function"]["arguments"]}}] for piece in pieces
    )
    assert json.loads("".join(piece[0]["function"]["arguments"] for piece in pieces)) == PARIS
    assert len(pieces) > 10, "they come as they are written"
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["tool_calls"]


async def test_text_and_two_calls() -> None:
    """Beside each other; the SDK's own accumulator puts the stream together as the whole answer is."""
    async with run_in_process() as server, openai_client(server) as client:
        asked = question("Let me see.\n" + TWO)
        whole = (await client.chat.completions.create(**asked)).choices[0]
        async with client.chat.completions.stream(**asked) as stream:
            async for _ in stream:
                pass
            final = (await stream.get_final_completion()).choices[0]
    for choice in (whole, final):
        assert (choice.message.content, choice.finish_reason) == ("Let me see.", "tool_calls")
        assert [call.function.name for call in choice.message.tool_calls] == ["get_weather", "get_time"]
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [PARIS, {}]
        assert len({call.id for call in choice.message.tool_calls}) == 2


async def test_the_sdk_parses_arguments() -> None:
    """`parse` with a function made of a pydantic model."""
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.chat.completions.parse(**question(CALLS["hermes"] % json.dumps(PARIS), tools=[WEATHER]))
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.parsed_arguments == GetWeather(**PARIS)


async def test_each_choice_has_its_own_calls() -> None:
    """`n` answers, interleaved in a stream."""
    async with run_in_process() as server, openai_client(server) as client:
        chunks = await streamed(client, **question(TWO, n=2))
        whole = await client.chat.completions.create(**question(TWO, n=2))
    ids = {call.id for choice in whole.choices for call in choice.message.tool_calls}
    assert len(ids) == 4
    for index in range(2):
        deltas = [chunk["delta"] for chunk in of_choice(chunks, index)]
        names = [call["function"]["name"] for delta in deltas for call in delta.get("tool_calls", ()) if "id" in call]
        assert names == ["get_weather", "get_time"]


async def test_without_tools_nothing_is_read() -> None:
    """Neither where none are given, nor where the client wants no calls: then the model is not told of them either."""
    text = CALLS["llama"] % json.dumps(PARIS)
    async with run_in_process(tool_call_parser="llama") as server, openai_client(server) as client:
        for fields in ({"tools": None}, {"tools": []}, {"tool_choice": "none"}):
            (choice,) = (await client.chat.completions.create(**question(text, **fields))).choices
            assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
        asked = question("", tool_choice="none", messages=user("#tools"))
        told = await client.chat.completions.create(**asked)
        assert json.loads(told.choices[0].message.content)["tools"] is None


async def test_a_call_that_is_cut() -> None:
    """It breaks off where the limit of tokens is, and the reason says so."""
    async with run_in_process() as server, openai_client(server) as client:
        asked = question(CALLS["hermes"] % json.dumps(PARIS), max_tokens=50)
        (choice,) = (await client.chat.completions.create(**asked)).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "length"
    assert json.dumps(PARIS).startswith(call.function.arguments) and call.function.arguments


async def test_log_probabilities_of_a_call() -> None:
    """Of all tokens, markers included, also in a stream; none is lost where text is held back."""
    text = CALLS["hermes"] % json.dumps(PARIS)
    async with run_in_process() as server, openai_client(server) as client:
        (whole,) = (await client.chat.completions.create(**question(text, logprobs=True))).choices
        chunks = of_choice(await streamed(client, **question(text, logprobs=True)))
    tokens = [token["token"] for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
    assert tokens == [token.token for token in whole.logprobs.content]
    assert "".join(tokens) == text


async def test_the_model_is_told_of_tools_and_of_earlier_calls() -> None:
    """As transformers' templates expect: arguments as objects, results with their call's name."""
    history = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "é"}'}},
                {"id": "call_2", "type": "function", "function": {"name": "get_time", "arguments": ""}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        *user("#tools"),
    ]
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.chat.completions.create(**question("", messages=history))
    told = json.loads(answer.choices[0].message.content)
    functions = [tool["function"] for tool in told["tools"]]
    assert functions == [
        {key: WEATHER["function"][key] for key in ("name", "description", "parameters")},
        {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
    ]
    assert told["history"] == [
        {"role": "user"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "é"}}},
                {"id": "call_2", "type": "function", "function": {"name": "get_time", "arguments": {}}},
            ],
            "reasoning_content": "hm",
        },
        {"role": "tool", "tool_call_id": "call_1", "name": "get_weather"},
        {"role": "user"},
    ]


# ----------------------------------------------------------------------------------------------------------- enforced


@pytest.mark.parametrize("style", CALLS)
async def test_a_call_is_required(style: str) -> None:
    """Whatever the model wants to write: here letters without end."""
    async with run_in_process(tool_call_parser=style) as server, openai_client(server) as client:
        for seed in range(3):
            asked = question(
                "", tool_choice="required", messages=user("#tokens=400 #random"), seed=seed, max_tokens=400
            )
            (choice,) = (await client.chat.completions.create(**asked, parallel_tool_calls=False)).choices
            (call,) = choice.message.tool_calls
            assert choice.message.content is None
            assert call.function.name in ("get_weather", "get_time")


async def test_the_arguments_of_a_required_call_follow_their_schema() -> None:
    """What contradicts it is not written; what follows it is, in more calls than one."""
    wrong = CALLS["hermes"] % '{"town": "Paris"}'
    async with run_in_process() as server, openai_client(server) as client:
        (choice,) = (await client.chat.completions.create(**question(TWO, tool_choice="required"))).choices
        assert [call.function.name for call in choice.message.tool_calls] == ["get_weather", "get_time"]
        assert choice.finish_reason == "tool_calls"
        asked = question(wrong, tool_choice="required", max_tokens=80)
        (choice,) = (await client.chat.completions.create(**asked)).choices
        assert choice.message.tool_calls[0].function.arguments.startswith('{"city')


async def test_a_named_function_is_called_once() -> None:
    """And only it. The reason is `stop` then, as OpenAI has it."""
    named = {"type": "function", "function": {"name": "get_time"}}
    async with run_in_process() as server, openai_client(server) as client:
        for answer in (TWO, "no", '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>\n' + TWO):
            (choice,) = (await client.chat.completions.create(**question(answer, tool_choice=named))).choices
            (call,) = choice.message.tool_calls
            assert (call.function.name, call.function.arguments) == ("get_time", "{}")
            assert choice.finish_reason == "stop"


async def test_calls_that_are_not_parallel() -> None:
    """At most one."""
    async with run_in_process() as server, openai_client(server) as client:
        for choice in ("auto", "required"):
            asked = question(TWO, tool_choice=choice, parallel_tool_calls=False)
            (answer,) = (await client.chat.completions.create(**asked)).choices
            assert [call.function.name for call in answer.message.tool_calls] == ["get_weather"]


async def test_tools_that_are_allowed() -> None:
    """The others are not there for this answer."""
    only = {"type": "function", "function": {"name": "get_time"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [only]}}
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.chat.completions.create(**question("", messages=user("#tools"), tool_choice=allowed))
        told = json.loads(answer.choices[0].message.content)
        assert [tool["function"]["name"] for tool in told["tools"]] == ["get_time"]


async def test_a_schema_for_answers_beside_tools() -> None:
    """The model calls a tool, or its answer follows the schema."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    formats = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    async with run_in_process() as server, openai_client(server) as client:
        for answer, content, calls in (('{"ok": true}', '{"ok": true}', 0), (TWO, None, 2), ("no", None, None)):
            asked = question(answer, response_format=formats, max_tokens=200)
            (choice,) = (await client.chat.completions.create(**asked)).choices
            if calls is None:
                assert choice.message.tool_calls or json.loads(choice.message.content).keys() == {"ok"}
            else:
                assert (choice.message.content, len(choice.message.tool_calls or ())) == (content, calls)


# ------------------------------------------------------------------------------------------------------------ refused

F = {"name": "f"}


def earlier(arguments: str, role: str = "assistant") -> dict[str, Any]:
    """A history with a call in it."""
    call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [{"role": role, "content": "x", "tool_calls": [call]}]}


def function(**fields: object) -> dict[str, Any]:
    return {"type": "function", "function": {**F, **fields}}


REFUSED = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name"),
    ({"tools": [TIME, TIME]}, "tools"),
    ({"tools": [function(parameters={"type": "array"})]}, "tools[0].function.parameters"),
    ({"tools": [function(parameters=[])]}, "tools[0].function.parameters"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tool_choice": {"type": "custom"}}, "tool_choice.type"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"tools": None, "tool_choice": "required"}, "tool_choice"),
    ({"tools": None, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"functions": [F]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role"),
    (earlier("{}", role="user"), "messages[0].tool_calls"),
    (earlier("{"), "messages[0].tool_calls[0].function.arguments"),
    (earlier("[]"), "messages[0].tool_calls[0].function.arguments"),
    ({"extra_body": {"structured_outputs": {"regex": "a"}}}, "structured_outputs.regex"),
    ({"tools": [function(description="x" * 1_000_001)]}, "tools"),
    ({"tools": [function(parameters={"title": "x" * 100_001})], "tool_choice": "required"}, "tools"),
    ({"tools": [TIME, function(parameters={"properties": {"a": {"type": "string", "format": "nonsense"}}})],
      "tool_choice": "required"}, "tools[1].function.parameters"),
    ({"tools": [TIME, function(parameters={"properties": {"a": {"$ref": "#/nowhere"}}})], "tool_choice": "required"},
     "tools[1].function.parameters"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    """With its place, before anything runs."""
    async with run_in_process() as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await client.chat.completions.create(**{**question("x"), "max_tokens": 5, **fields})
        assert refusal.value.param == param


async def test_long_text_in_tools_and_history_counts() -> None:
    """Also what stands in calls."""
    call = {"id": "1", "function": {"name": "f", "arguments": json.dumps({"a": "x" * 99})}}
    async with run_in_process(max_text_chars=100) as server, openai_client(server) as client:
        for fields in ({"messages": [{"role": "assistant", "tool_calls": [call]}]}, {"tools": TOOLS}):
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**{"model": "fake", "messages": user("x"), **fields})


def test_tools_belong_to_what_a_request_is() -> None:
    """Their text counts for the bytes that it holds, and requests that differ in them are not the same."""
    tool = Tool("f", '{"name": "é"}', "{}", "tools[0].function.parameters")
    call = ToolCall("id", "f", "{}")
    bare = Job(JobId(0, "x"), (Message("user", (TextPart("hi"),)),), Sampling())
    called = Message("assistant", (), (call,), reasoning="hm")
    told = replace(bare, messages=(*bare.messages, called, Message("tool", (), call_id="id", name="f")))
    armed = replace(told, tools=Tools((tool,)))
    assert [job.text_bytes for job in (bare, told, armed)] == [2, 2 + 5 + 2 + 3, 12 + len(tool.text.encode())]
    assert len({name_of(job) for job in (bare, told, armed, replace(armed, tools=Tools((tool,), "required")))}) == 4


@pytest.mark.parametrize(
    "options",
    [{"tool_call_parser": "none"}, {"model": "whisper-tiny.en"}],
)
async def test_models_without_tools_say_so(options: dict[str, Any]) -> None:
    """Unless no call is wanted."""
    async with run_in_process(**options) as server, openai_client(server) as client:
        asked = {**question("x"), "model": options.get("model", "fake")}
        with pytest.raises(openai.BadRequestError, match="knows no tools") as refusal:
            await client.chat.completions.create(**asked)
        assert refusal.value.param == "tools"
        asked["messages"] = user("hello", input_audio("jfk.ogg"))
        assert (await client.chat.completions.create(**asked, tool_choice="none")).choices[0].message.content


async def test_a_cascade_calls_tools_as_its_llm_does() -> None:
    """What was heard stands in the LLM's prompt, tools beside it."""
    async with run_in_process(model="cascade:fake,fake") as server, openai_client(server) as client:
        asked = {**question(TWO), "model": "cascade:fake,fake"}
        asked["messages"][0]["content"] = [{"type": "text", "text": say(TWO)}, input_audio("jfk.ogg")]
        (choice,) = (await client.chat.completions.create(**asked)).choices
        assert len(choice.message.tool_calls) == 2


# ----------------------------------------------------------------------------------------------------------- thoughts

THINKS = {"reasoning_parser": "think"}


async def test_thoughts_are_told_apart() -> None:
    """Where the setting says so; whether the model or its template has opened them."""
    async with run_in_process(**THINKS) as server, openai_client(server) as client:
        for text, order in (("<think>\nhm\n</think>\n\nYes.", ""), ("\nhm\n</think>\n\nYes.", " #open")):
            asked = {"model": "fake", "messages": user(say(text) + order)}
            (whole,) = (await client.chat.completions.create(**asked)).choices
            assert (whole.message.content, whole.message.reasoning_content) == ("Yes.", "hm")
            deltas = [chunk["delta"] for chunk in of_choice(await streamed(client, **asked))]
            assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
            assert "".join(delta.get("content", "") for delta in deltas) == "Yes."


async def test_thoughts_without_the_setting() -> None:
    """The text stays as it is; special tokens are no text."""
    async with run_in_process() as server, openai_client(server) as client:
        asked = {"model": "fake", "messages": user(say("<think>hm</think>Yes."))}
        (choice,) = (await client.chat.completions.create(**asked)).choices
        assert choice.message.content == "hmYes."
        assert "reasoning_content" not in choice.message.model_dump(exclude_unset=True)


async def test_thoughts_and_then_a_call() -> None:
    """Both, each in its place."""
    async with run_in_process(**THINKS) as server, openai_client(server) as client:
        text = f"<think>hm</think>\n\n{TWO}"
        (choice,) = (await client.chat.completions.create(**question(text))).choices
        message = choice.message
        assert (message.content, message.reasoning_content, len(message.tool_calls)) == (None, "hm", 2)


async def test_an_answer_with_a_structure_has_no_thoughts() -> None:
    """It follows the structure from its first character on, also where the template has opened thoughts."""
    async with run_in_process(**THINKS) as server, openai_client(server) as client:
        asked = {
            "model": "fake",
            "messages": user(say("yes") + " #open"),
            "extra_body": {"guided_choice": ["yes", "no"]},
        }
        (choice,) = (await client.chat.completions.create(**asked)).choices
        assert choice.message.content == "yes"
