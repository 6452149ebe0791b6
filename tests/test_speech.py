"""Real speech, real weights, the whole stack, as users send it."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.support.origin import Origin
from tests.support.servers import RunningServer
from tests.support.speech import (
    CLIPS,
    DATA,
    JFK,
    LONG,
    RATE,
    Spoken,
    as_base64,
    audio_url,
    excerpt,
    input_audio,
    user,
    wav,
    word_error_rate,
)
from tests.support.waiting import until

MODEL = "my-model"
WER_MARGIN = 3.0  # percent points, for the rounding of other CPUs


def transcribe(client: openai.OpenAI, *parts: dict | str, **options: object) -> str:
    answer = client.chat.completions.create(model=MODEL, messages=user(*parts), **options)
    return answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def answers(whisper_server: RunningServer) -> dict[str, ChatCompletion]:
    """To each clip, by its name."""
    clips = [*CLIPS, LONG]
    with whisper_server.client() as client, ThreadPoolExecutor(4) as pool:

        def ask(clip: Spoken) -> ChatCompletion:
            return client.chat.completions.create(model=MODEL, messages=user(input_audio(clip.name)))

        return dict(zip((clip.name for clip in clips), pool.map(ask, clips), strict=True))


@pytest.mark.parametrize("clip", [*CLIPS, LONG], ids=lambda clip: clip.name)
def test_the_words_are_right(answers: dict[str, ChatCompletion], clip: Spoken) -> None:
    """Within a margin of the word error rate that the weights were measured to have; nothing of a long clip is lost."""
    answer = answers[clip.name]
    assert word_error_rate(clip.text, answer.choices[0].message.content) <= clip.wer + WER_MARGIN
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.audio["seconds_used"] == pytest.approx(clip.seconds, abs=0.1)
    assert answer.usage.prompt_tokens_details.audio_tokens == pytest.approx(50 * clip.seconds, abs=6)


def test_the_words_of_all_clips_together(answers: dict[str, ChatCompletion]) -> None:
    """The pooled rate: one clip's bad day must not hide in a margin of its own."""
    heard = [answers[clip.name].choices[0].message.content for clip in CLIPS]
    expected = sum(clip.wer * len(clip.text.split()) for clip in CLIPS) / sum(len(c.text.split()) for c in CLIPS)
    pooled = word_error_rate(" ".join(clip.text for clip in CLIPS), " ".join(heard))
    assert pooled == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("form", ["http", "data"])
def test_plain_json_by_an_http_library(whisper_server: RunningServer, origin: Origin, form: str) -> None:
    """A question beside an address or a data URI, to a model of the operator's name: a JSON answer with the words."""
    url = origin.url("clip/jfk.ogg") if form == "http" else f"data:audio/ogg;base64,{as_base64('jfk.ogg')}"
    body = {
        "model": MODEL,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What's in this audio?"},
                    {"type": "audio_url", "audio_url": {"url": url}},
                ],
            }
        ],
        "max_tokens": 64,
    }
    answer = httpx.post(f"{whisper_server.base_url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert word_error_rate(JFK, answer.json()["choices"][0]["message"]["content"]) == 0


def test_a_stream_says_the_same(whisper_server: RunningServer, answers: dict[str, ChatCompletion]) -> None:
    """Word by word, also over the joints of a long clip."""
    with whisper_server.client() as client:
        stream = client.chat.completions.create(model=MODEL, messages=user(input_audio(LONG.name)), stream=True)
        deltas = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(deltas) > 10
    assert "".join(deltas) == answers[LONG.name].choices[0].message.content


async def test_sixteen_at_once_are_answered_as_alone(whisper_server: RunningServer) -> None:
    """Different clips in one batch, joining and leaving, streamed and not: every answer equals the one got alone."""
    clips = [input_audio(clip.name) for clip in (*CLIPS, LONG)]
    clips += [excerpt("jfk.wav", 0, 5.5), excerpt("jfk.wav", 3, 11), excerpt("austen-0870.wav", 2, 7)]
    assert len(clips) == 16
    async with whisper_server.async_client() as client:

        async def one(clip: dict) -> str | None:
            answer = await client.chat.completions.create(model=MODEL, messages=user(clip))
            return answer.choices[0].message.content

        async def streamed(clip: dict) -> str:
            stream = await client.chat.completions.create(model=MODEL, messages=user(clip), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        alone = [await one(clip) for clip in clips]
        assert await asyncio.gather(*map(one, reversed(clips))) == alone[::-1]
        assert await asyncio.gather(*map(streamed, clips[:8]), *map(one, clips[8:])) == alone


async def test_a_slow_address_delays_nobodys_first_token(whisper_server: RunningServer, origin: Origin) -> None:
    """While a request waits 2 s for its audio, another that came later is answered."""
    async with whisper_server.async_client() as client:
        asked = len(origin.requested)
        origin.release.clear()
        slow = asyncio.ensure_future(
            client.chat.completions.create(
                model=MODEL, messages=user(audio_url(origin.url("clip/jfk.ogg?wait=2"))), stream=True
            )
        )
        await until(lambda: len(origin.requested) > asked)
        quick = await client.chat.completions.create(
            model=MODEL, messages=user(input_audio("cv-en-no.mp3")), stream=True
        )
        assert (await anext(aiter(quick))).choices[0].delta.role == "assistant"
        assert not slow.done(), "the quick one's first token came before the slow one's"
        origin.release.set()
        answer = "".join([chunk.choices[0].delta.content or "" async for chunk in await slow])
    assert word_error_rate(JFK, answer) == 0


def test_several_clips_are_transcribed_in_order(whisper_server: RunningServer) -> None:
    """One line for each, across blocks and turns; text steers nothing."""
    messages = [
        *user("Translate to French!", input_audio("cv-en-no.mp3"), input_audio("austen-0930.wav")),
        {"role": "assistant", "content": "Non."},
        *user(input_audio("librispeech-61-70968-0000.flac")),
    ]
    with whisper_server.client() as client:
        answer = client.chat.completions.create(model=MODEL, messages=messages)
    lines = answer.choices[0].message.content.split("\n")
    assert [line.split()[0] for line in lines] == ["No.", "He", "He"]
    assert lines[1].endswith("himself.")
    assert answer.usage.audio["parts"] == 3


def test_silence_is_answered_with_nothing(whisper_server: RunningServer) -> None:
    """And not with words that nobody said; streamed or not."""
    silence = user(wav(np.zeros(5 * RATE, dtype=np.float32)))
    with whisper_server.client() as client:
        answer = client.chat.completions.create(model=MODEL, messages=silence)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("", "stop")
        chunks = list(client.chat.completions.create(model=MODEL, messages=silence, stream=True))
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]


def test_text_alone_is_refused(whisper_server: RunningServer) -> None:
    """With a sentence that says what is missing."""
    with whisper_server.client() as client, pytest.raises(openai.BadRequestError, match="no audio"):
        transcribe(client, "What is said here?")


def test_samples_without_a_header_are_refused(whisper_server: RunningServer) -> None:
    """Raw PCM is no audio file: guessing its rate would be guessing its words."""
    raw = (DATA / "jfk.wav").read_bytes()[44:]
    part = {"type": "input_audio", "input_audio": {"data": b64encode(raw).decode(), "format": "wav"}}
    with whisper_server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        transcribe(client, part)
    assert caught.value.param == "messages[0].content[0].input_audio.data"


def test_a_limit_and_a_stop_string(whisper_server: RunningServer) -> None:
    """As for any model."""
    with whisper_server.client() as client:
        answer = client.chat.completions.create(model=MODEL, messages=user(input_audio("jfk.ogg")), max_tokens=3)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("And so my", "length")
        assert answer.usage.completion_tokens == 3
        assert transcribe(client, input_audio("jfk.ogg"), stop="Americans") == "And so my fellow "


def test_a_model_name_that_is_not_served(whisper_server: RunningServer) -> None:
    """The operator's name replaces the model's own."""
    with whisper_server.client() as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="whisper-tiny.en", messages=user(input_audio("jfk.ogg")))
