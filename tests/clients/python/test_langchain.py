"""langchain-openai."""

from __future__ import annotations

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from places import FAKE, GOOD, HELLO, LIMITED, SPEECH, WHAT, WHISPER, Mood, clip, is_jfk


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
