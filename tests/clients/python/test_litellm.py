"""LiteLLM, the library, with this server as an OpenAI-compatible provider."""

from __future__ import annotations

import json

import litellm
import openai  # whose errors those of LiteLLM are
import pytest
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
    clip,
    is_jfk,
    to_call,
)


def ask(content: object, url: str = FAKE, model: str = "fake", key: str = "none", **options: object):
    messages = options.pop("messages", [{"role": "user", "content": content}])
    target = {"model": f"openai/{model}", "api_base": url, "api_key": key}
    return litellm.completion(**target, messages=messages, max_retries=0, **options)


def test_an_answer_and_its_usage() -> None:
    """The server's own numbers, none that LiteLLM counted."""
    answer = ask("hello")
    assert answer.choices[0].message.content == HELLO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(HELLO)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream() -> None:
    """Put together by LiteLLM it is the answer, with the server's usage."""
    chunks = list(ask("hello", stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    assert whole.choices[0].message.content == HELLO
    assert whole.choices[0].finish_reason == "stop"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, len(HELLO))


async def test_the_async_one() -> None:
    """Streamed."""
    messages = [{"role": "user", "content": "hello"}]
    stream = await litellm.acompletion("openai/fake", messages, api_base=FAKE, api_key="none", stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == HELLO


def test_audio_is_heard() -> None:
    """In a chat, and as a transcription."""
    parts = [{"type": "text", "text": WHAT}, clip("jfk.mp3")]
    assert is_jfk(ask(parts, WHISPER, SPEECH).choices[0].message.content)
    with (CLIPS / "jfk.wav").open("rb") as file:
        target = {"model": f"openai/{SPEECH}", "api_base": WHISPER, "api_key": "none"}
        assert is_jfk(litellm.transcription(**target, file=file).text)


def test_a_structure() -> None:
    """By a pydantic model."""
    assert Mood.model_validate_json(ask(GOOD, response_format=Mood).choices[0].message.content) == Mood(mood="good")


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
CALLED = to_call("get_weather", PARIS)


def check_called(choice) -> None:
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content or None, call.type) == ("tool_calls", None, "function")
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == PARIS
    assert call.id.startswith("call_")


def test_a_tool_is_called_and_answers() -> None:
    """Its result goes back beside the message that called it."""
    (choice,) = ask(CALLED, tools=[WEATHER]).choices
    check_called(choice)
    (call,) = choice.message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": TELL}
    messages = [{"role": "user", "content": CALLED}, choice.message, result]
    answer = ask(None, messages=messages, tools=[WEATHER], tool_choice="auto")
    check_told(answer.choices[0].message.content, "get_weather", call.id)


def test_a_call_in_a_stream() -> None:
    """Put together by LiteLLM it is the same."""
    chunks = list(ask(CALLED, tools=[WEATHER], stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    check_called(whole.choices[0])
    usage = ask(CALLED, tools=[WEATHER]).usage
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)


def test_a_call_that_is_required() -> None:
    """Comes, whatever the model wants to write."""
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        (call,) = ask(CALLED, tools=[WEATHER], tool_choice=choice).choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == PARIS


def test_errors_are_mapped_by_their_status() -> None:
    """To LiteLLM's classes; the message survives."""
    ask("hello", LIMITED, key="litellm")
    for options, expected, message in (
        ({"model": "gpt-9"}, litellm.NotFoundError, "does not exist here"),
        ({"url": LIMITED, "key": "wrong"}, litellm.AuthenticationError, "key"),
        ({"url": LIMITED, "key": "litellm"}, litellm.RateLimitError, "a minute"),
        ({"n": 99}, litellm.BadRequestError, "`n`"),
    ):
        with pytest.raises(expected, match=message):
            ask("hello", **options)


def test_a_failure_in_a_stream_raises() -> None:
    """And does not end it as a short answer."""
    with pytest.raises(openai.APIError, match="The model failed"):
        list(ask("#tokens=20 #fail=step", stream=True))
