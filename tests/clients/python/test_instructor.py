"""instructor, by JSON schema and by calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import instructor
import openai
import pytest
from instructor.core.exceptions import InstructorRetryException
from instructor.processing.multimodal import Audio
from places import CLIPS, FAKE, GOOD, LIMITED, SPEECH, WHAT, WHISPER, Mood, is_jfk, to_call
from pydantic import BaseModel

SCHEMA = instructor.Mode.JSON_SCHEMA
MODES = {SCHEMA: GOOD, instructor.Mode.TOOLS: to_call("Mood", {"mood": "good"})}  # and what makes the model follow


def open_client(url: str = FAKE, key: str = "none", mode: instructor.Mode = SCHEMA) -> instructor.Instructor:
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    return instructor.from_openai(client, mode=mode)


def ask(client: instructor.Instructor, content: object, model: str = "fake", **options: object) -> object:
    messages = [{"role": "user", "content": content}]
    options = {"response_model": Mood, "max_retries": 0, **options}
    return client.chat.completions.create(model=model, messages=messages, **options)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_and_its_usage(mode: instructor.Mode) -> None:
    """A pydantic model, beside the raw completion."""
    messages = [{"role": "user", "content": MODES[mode]}]
    create = open_client(mode=mode).chat.completions.create_with_completion
    mood, raw = create(model="fake", response_model=Mood, messages=messages)
    assert isinstance(mood, Mood)
    assert mood.mood == "good"
    assert raw.usage.total_tokens == raw.usage.prompt_tokens + raw.usage.completion_tokens


class Song(BaseModel):
    title: str
    words: str


SONG = {"title": "Rain", "words": "It rains, and rains, and rains."}
SONGS = {
    SCHEMA: f"#text={quote(json.dumps(SONG))}",
    instructor.Mode.TOOLS: to_call("PartialSong", SONG),  # instructor's name for it
}


@pytest.mark.parametrize("mode", MODES)
def test_a_stream(mode: instructor.Mode) -> None:
    """Of partial models, which grow; the last is whole."""
    messages = [{"role": "user", "content": SONGS[mode]}]
    create = open_client(mode=mode).chat.completions.create_partial
    partial = list(create(model="fake", response_model=Song, messages=messages))
    assert partial[-1].model_dump() == SONG
    assert len({(song.title, song.words) for song in partial}) > 10
    assert all(song.title is None or SONG["title"].startswith(song.title) for song in partial)


def test_audio_is_heard() -> None:
    """By instructor's own class for it; without a model the answer is plain text."""
    content = [WHAT, Audio.from_path(CLIPS / "jfk.mp3")]
    answer = ask(open_client(WHISPER), content, SPEECH, response_model=None)
    assert is_jfk(answer.choices[0].message.content)


def reasons(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_errors_name_what_is_wrong() -> None:
    """The official client's error is what instructor gave up at."""
    ask(open_client(LIMITED, "instructor"), GOOD)
    for client, model, expected in (
        (open_client(), "gpt-9", openai.NotFoundError),
        (open_client(LIMITED, "wrong"), "fake", openai.AuthenticationError),
        (open_client(LIMITED, "instructor"), "fake", openai.RateLimitError),
    ):
        with pytest.raises(InstructorRetryException) as caught:
            ask(client, GOOD, model)
        assert any(isinstance(error, expected) for error in reasons(caught.value)), repr(caught.value)
