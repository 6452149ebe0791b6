"""langchain-openai."""

from __future__ import annotations

import json

import openai
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from places import (
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


def chat(url: str = FAKE, model: str = "fake", key: str = "none", **options: object) -> ChatOpenAI:
    return ChatOpenAI(base_url=url, model=model, api_key=key, max_retries=0, **options)


def test_an_answer_and_its_usage() -> None:
    """As a message, with the reason why it ended."""
    answer = chat().invoke("hello")
    assert answer.content == HELLO
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["output_tokens"] == len(HELLO)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


async def test_a_stream_adds_up_to_the_answer() -> None:
    """LangChain sums chunks: text, and a usage that must come once."""
    chunks = [chunk async for chunk in chat(stream_usage=True).astream("hello")]
    total = sum(chunks[1:], chunks[0])
    assert len(chunks) > 10
    assert total.content == HELLO
    assert total.usage_metadata == chat().invoke("hello").usage_metadata


def test_audio_is_heard() -> None:
    """OpenAI's part, and LangChain's own."""
    own = {"type": "audio", "base64": clip("jfk.wav")["input_audio"]["data"], "mime_type": "audio/wav"}
    for part in (clip("jfk.mp3"), own):
        answer = chat(WHISPER, SPEECH).invoke([HumanMessage([{"type": "text", "text": WHAT}, part])])
        assert is_jfk(answer.content)


def test_a_structure() -> None:
    """By JSON schema; a limit that cuts it raises the client's own error."""
    assert chat().with_structured_output(Mood, method="json_schema").invoke(GOOD) == Mood(mood="good")
    with pytest.raises(openai.LengthFinishReasonError):
        chat(max_completion_tokens=4).with_structured_output(Mood, method="json_schema").invoke(GOOD)


def test_the_responses_api() -> None:
    """Whole and streamed."""
    model = chat(use_responses_api=True)
    assert model.invoke("hello").text == HELLO
    chunks = list(model.stream("hello"))
    total = sum(chunks[1:], chunks[0])
    assert total.text == HELLO
    assert total.usage_metadata["output_tokens"] == len(HELLO)


@tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    assert (city, days) == tuple(PARIS.values())
    return TELL


CALLED = to_call("get_weather", PARIS)


@pytest.mark.parametrize("responses", [False, True])
def test_a_tool_is_called_and_answers(responses: bool) -> None:
    """In chat and in responses; LangChain runs it by the call it has read."""
    model = chat(use_responses_api=responses).bind_tools([get_weather])
    answer = model.invoke(CALLED)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"], answer.invalid_tool_calls) == ("get_weather", PARIS, [])
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    check_told(model.invoke([HumanMessage(CALLED), answer, result]).text, "get_weather", call["id"])


def test_why_an_answer_with_a_call_ended() -> None:
    """As OpenAI says it."""
    answer = chat().bind_tools([get_weather]).invoke(CALLED)
    assert (answer.content, answer.response_metadata["finish_reason"]) == ("", "tool_calls")


@pytest.mark.parametrize("responses", [False, True])
def test_a_call_in_a_stream(responses: bool) -> None:
    """Named once; its chunks add up, and so does the usage."""
    model = chat(use_responses_api=responses, stream_usage=True).bind_tools([get_weather])
    chunks = list(model.stream(CALLED))
    pieces = [piece for chunk in chunks if isinstance(chunk, AIMessageChunk) for piece in chunk.tool_call_chunks]
    assert [piece["name"] for piece in pieces if piece["name"]] == ["get_weather"]
    assert len([piece["id"] for piece in pieces if piece["id"]]) == 1
    assert json.loads("".join(piece["args"] or "" for piece in pieces)) == PARIS
    assert len(pieces) > 10, "they come as they are written"
    total = sum(chunks[1:], chunks[0])
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [("get_weather", PARIS)]
    assert total.usage_metadata == model.invoke(CALLED).usage_metadata


def test_a_structure_by_a_tool() -> None:
    """Which must be called then, whatever the model wants to write."""
    model = chat().with_structured_output(Mood, method="function_calling")
    assert model.invoke(to_call("Mood", {"mood": "good"})) == Mood(mood="good")
    strict = chat().with_structured_output(Mood, method="function_calling", strict=True)
    assert strict.invoke("#random").mood in ("good", "bad")
    assert list(model.stream(to_call("Mood", {"mood": "good"})))[-1] == Mood(mood="good")


def test_errors_keep_their_class() -> None:
    """Those of the official client, with status, code and message."""
    chat(LIMITED, key="langchain").invoke("hello")
    for model, expected, code in (
        (chat(model="gpt-9"), openai.NotFoundError, "model_not_found"),
        (chat(LIMITED, key="wrong"), openai.AuthenticationError, "invalid_api_key"),
        (chat(LIMITED, key="langchain"), openai.RateLimitError, "rate_limit_exceeded"),
        (chat(n=99), openai.BadRequestError, None),
    ):
        with pytest.raises(expected) as caught:
            model.invoke("hello")
        assert caught.value.code == code


def test_a_failure_in_a_stream_raises() -> None:
    """And does not end it as a short answer."""
    with pytest.raises(openai.APIError, match="failed"):
        list(chat().stream("#tokens=20 #fail=step"))
