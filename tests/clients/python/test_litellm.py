"""LiteLLM, the library, with this server as an OpenAI-compatible provider."""

from __future__ import annotations

import litellm
import openai  # whose errors those of LiteLLM are
import pytest
from places import CLIPS, FAKE, GOOD, HELLO, LIMITED, SPEECH, WHAT, WHISPER, Mood, clip, is_jfk


def ask(content: object, url: str = FAKE, model: str = "fake", key: str = "none", **options: object):
    messages = [{"role": "user", "content": content}]
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
