"""A clip that is longer than the model hears at once is refused, cut off or heard in pieces: as the client says, else
as the operator says, else as the model does. Nobody is left to guess which."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import AudioTooLong
from models.registry import create
from tests.support.servers import RunningServer, run_server
from tests.support.speech import LONG, RATE, input_audio, user, wav
from wire import Capabilities
from worker.clips import fitted

WINDOW_S = 30
PLACE = "messages[0].content[1].input_audio.data"
PLAYED = input_audio(LONG.name)  # 81 s
SHORT = input_audio("cv-en-no.mp3")  # 4.1 s


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """To a fake model that hears 30 seconds of two clips at most, and refuses what is longer."""
    with run_server("--model", "fake:30:2") as server, server.client() as client:
        yield client


@pytest.fixture(scope="module")
def truncating() -> Iterator[openai.OpenAI]:
    """The same, of an operator who has longer clips cut off, and takes a minute of one at most."""
    flags = ("--long-audio", "truncate", "--max-audio-seconds", "60", "--max-clips", "1")
    with run_server("--model", "fake:30:2", *flags) as server, server.client() as client:
        yield client


def ask(client: openai.OpenAI, *parts: dict | str, long_audio: str | None = None, extra: dict | None = None, **options):
    return client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=user(*parts),
        extra_body={"long_audio": long_audio, **(extra or {})},
        **options,
    )


def refusal(client: openai.OpenAI, *parts: dict | str, **options) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, *parts, **options)
    return caught.value


def heard(answer) -> list[float]:
    """The seconds of each piece that the fake model was given."""
    return [float(seconds) for seconds in re.findall(r"I heard ([\d.]+) s", answer.choices[0].message.content)]


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).standard_normal(samples).astype(np.float32) * 0.05


def with_pauses(seconds: float, *pauses_at: float) -> np.ndarray:
    """Noise with a silence of 0.4 s around each of these seconds."""
    waveform = noise(int(seconds * RATE))
    for second in pauses_at:
        waveform[int((second - 0.2) * RATE) : int((second + 0.2) * RATE)] = 0
    return waveform


# ----------------------------------------------------------------------------------------------------------- one clip


def takes(window_s: float | None = WINDOW_S) -> Capabilities:
    return Capabilities(RATE, window_s, long_audio="error", batching="continuous")


@pytest.mark.parametrize("policy", ["error", "truncate", "chunk"])
@pytest.mark.parametrize("samples", [1, RATE, WINDOW_S * RATE - 1, WINDOW_S * RATE])
def test_a_clip_that_fits_is_whole(policy: str, samples: int) -> None:
    """Exactly the limit fits, whatever is to become of longer ones."""
    waveform = noise(samples)
    (window,) = fitted(waveform, PLACE, policy, takes()).windows
    assert window is waveform


@pytest.mark.parametrize("policy", ["error", "truncate", "chunk"])
def test_a_model_without_a_window_hears_everything(policy: str) -> None:
    """However long it is."""
    waveform = noise(100 * RATE)
    (window,) = fitted(waveform, PLACE, policy, takes(None)).windows
    assert window is waveform


def test_one_sample_more_is_too_long() -> None:
    """It is refused with a length that is more than the limit, cut off, or makes a second piece."""
    waveform = noise(WINDOW_S * RATE + 1)
    with pytest.raises(AudioTooLong, match=r"has 30\.1 seconds, and this model hears at most 30 at once") as caught:
        fitted(waveform, PLACE, "error", takes())
    assert caught.value.param == PLACE
    (window,) = fitted(waveform, PLACE, "truncate", takes()).windows
    assert np.array_equal(window, waveform[:-1])
    assert len(fitted(waveform, PLACE, "chunk", takes()).windows) == 2


@given(st.integers(0, 40_000), st.floats(0.1, 1.0), st.booleans())
def test_pieces_are_the_whole_clip(more: int, window_s: float, silent: bool) -> None:
    """In order and without a gap; each can be heard at once, and is long enough for any front end."""
    limit = int(window_s * RATE)
    waveform = noise(limit + 1 + more) * (not silent)
    windows = fitted(waveform, PLACE, "chunk", takes(window_s)).windows
    assert np.array_equal(np.concatenate(windows), waveform)
    assert all(limit // 10 <= len(window) <= limit for window in windows)


# --------------------------------------------------------------------------------------------- as a client asks for it


@pytest.mark.parametrize("options", [{}, {"long_audio": "error"}, {"stream": True}])
def test_error_names_the_place_the_length_and_the_limit(client: openai.OpenAI, options: dict) -> None:
    """This model's own way; before a stream begins."""
    error = refusal(client, SHORT, PLAYED, **options)
    assert (error.status_code, error.code, error.param) == (400, "audio_too_long", PLACE)
    assert f"`{PLACE}`: the audio has 81.0 seconds, and this model hears at most 30 at once" in error.message
    assert "`long_audio`" in error.message


def test_truncate_tells_what_it_dropped(client: openai.OpenAI) -> None:
    """In the usage, streamed or not; what was used and what was dropped are what came."""
    answer = ask(client, SHORT, PLAYED, long_audio="truncate")
    assert answer.choices[0].message.content.startswith("I heard 4.1 s, 30.0 s. ")
    audio = answer.usage.audio
    assert (audio["parts"], audio["seconds_used"]) == (2, 34.104)
    assert audio["seconds_received"] == pytest.approx(4.1 + LONG.seconds, abs=0.1)
    assert audio["seconds_dropped"] == pytest.approx(audio["seconds_received"] - 34.104)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = ask(client, SHORT, PLAYED, long_audio="truncate", **options)
    assert last.usage.audio == audio


def test_chunk_answers_piece_by_piece(client: openai.OpenAI) -> None:
    """In the order of the clip, cut where it is quiet, joined by blanks; every second is used."""
    clip = wav(with_pauses(66, 25, 42))
    answer = ask(client, clip, "and?", long_audio="chunk")
    first, second, rest = heard(answer)
    assert (first, second, rest) == pytest.approx((25, 17, 24), abs=0.2)
    assert answer.choices[0].message.content == " ".join(
        f"I heard {seconds} s. You said: and?" for seconds in (first, second, rest)
    )
    assert answer.usage.audio == {"seconds_received": 66, "seconds_used": 66, "seconds_dropped": 0, "parts": 1}


def test_chunk_uses_all_of_real_speech(client: openai.OpenAI) -> None:
    """A short clip beside it is heard with each piece."""
    answer = ask(client, PLAYED, SHORT, long_audio="chunk")
    pieces = heard(answer)
    assert len(pieces) >= 3
    assert max(pieces) <= WINDOW_S
    assert sum(pieces) == pytest.approx(LONG.seconds, abs=0.2)
    assert answer.choices[0].message.content.count(", 4.1 s.") == len(pieces)
    assert answer.usage.audio["seconds_dropped"] == 0


def test_chunk_streams_the_same(client: openai.OpenAI) -> None:
    """Over the joints."""
    stream = ask(client, PLAYED, long_audio="chunk", stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert streamed == ask(client, PLAYED, long_audio="chunk").choices[0].message.content


@pytest.mark.parametrize("long_audio", [None, "error", "truncate", "chunk"])
def test_a_short_clip_is_heard_as_ever(client: openai.OpenAI, long_audio: str | None) -> None:
    """Whatever becomes of long ones."""
    answer = ask(client, SHORT, "and?", long_audio=long_audio)
    assert answer.choices[0].message.content == "I heard 4.1 s. You said: and?"
    assert answer.usage.audio["seconds_used"] == answer.usage.audio["seconds_received"] == 4.104


def test_two_long_clips_have_no_order_of_pieces(client: openai.OpenAI) -> None:
    """So they are refused in pieces; cut off, they are two clips as any."""
    error = refusal(client, PLAYED, PLAYED, long_audio="chunk")
    assert (error.status_code, error.param) == (400, "messages")
    assert "one long audio" in error.message
    answer = ask(client, PLAYED, PLAYED, long_audio="truncate")
    assert answer.choices[0].message.content.startswith("I heard 30.0 s, 30.0 s. ")


@pytest.mark.parametrize(
    ("extra", "place"),
    [
        ({"structured_outputs": {"regex": "[a-z]+"}}, "structured_outputs.regex"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"choice": ["yes", "no"]}, "logprobs": True}, "structured_outputs.choice"),
    ],
)
def test_a_structure_needs_one_piece(client: openai.OpenAI, extra: dict, place: str) -> None:
    """And so do the probabilities of labels; a clip that was cut off is one."""
    error = refusal(client, PLAYED, long_audio="chunk", extra=extra)
    assert (error.status_code, error.param) == (400, place)
    assert ask(client, PLAYED, "#say=no", long_audio="truncate", extra=extra, max_tokens=5).choices


def test_more_clips_than_the_model_hears(client: openai.OpenAI) -> None:
    """The first that is too many is named."""
    error = refusal(client, SHORT, "or", SHORT, SHORT, SHORT)
    assert (error.status_code, error.param) == (400, "messages[0].content[3].input_audio.data")
    assert "4 audio parts, and this model hears at most 2" in error.message


def test_another_word_is_refused(client: openai.OpenAI) -> None:
    """With those that there are."""
    error = refusal(client, SHORT, long_audio="split")
    assert (error.status_code, error.param) == (400, "long_audio")
    assert "'error', 'truncate' or 'chunk'" in error.message


# ---------------------------------------------------------------------------------------------- as the operator sets it


def test_the_operators_way_stands_in_for_the_models(truncating: openai.OpenAI) -> None:
    """Where the client says nothing; what the client says goes first."""
    clip = wav(with_pauses(40, 25))
    answer = ask(truncating, clip)
    assert heard(answer) == [30.0]
    assert answer.usage.audio == {"seconds_received": 40, "seconds_used": 30, "seconds_dropped": 10, "parts": 1}
    assert heard(ask(truncating, clip, long_audio="chunk")) == pytest.approx([25, 15], abs=0.2)
    assert refusal(truncating, clip, long_audio="error").code == "audio_too_long"
    assert refusal(truncating, PLAYED).code == "audio_too_long", "longer than the operator takes at all"


def test_the_card_tells_what_is_taken(client: openai.OpenAI, truncating: openai.OpenAI) -> None:
    """Of the model's limits and the operator's the tighter; a clip has a limit of its own where longer ones are cut."""
    (card,) = (model.audio for model in client.models.list().data)
    assert (card["sampling_rate"], card["max_seconds_per_window"], card["max_seconds_per_clip"]) == (16_000, 30, 30)
    assert (card["max_clips"], card["long_audio"], card["batching"]) == (2, "error", "continuous")
    assert {"wav", "flac", "mp3"} <= set(card["formats"])
    assert isinstance(card["why"], str)
    (card,) = (model.audio for model in truncating.models.list().data)
    assert (card["max_seconds_per_window"], card["max_seconds_per_clip"]) == (30, 60)
    assert (card["max_clips"], card["long_audio"]) == (1, "truncate")


def test_a_model_that_hears_in_pieces_can_be_told_not_to(whisper_server: RunningServer) -> None:
    """The embedded Whisper transcribes long clips whole, unless the client wants it otherwise."""
    clip = wav(with_pauses(40, 25))
    with whisper_server.client() as client:
        error = refusal(client, "What is said?", clip, long_audio="error")
        assert (error.code, error.param) == ("audio_too_long", PLACE)
        for long_audio, seconds in ((None, 40), ("chunk", 40), ("truncate", 30)):
            audio = ask(client, clip, long_audio=long_audio, max_tokens=5).usage.audio
            assert (audio["seconds_received"], audio["seconds_used"]) == (40, seconds)
        assert client.models.list().data[0].audio["long_audio"] == "chunk"


# ----------------------------------------------------------------------------------------------------- the fake's names


@pytest.mark.parametrize(("name", "limits"), [("fake", (None, None)), ("fake:30", (30, None)), ("fake:5:1", (5, 1))])
def test_the_fake_models_name_holds_its_limits(name: str, limits: tuple) -> None:
    """Seconds at once, then clips."""
    capabilities = create(name).capabilities
    assert (capabilities.max_seconds_per_window, capabilities.max_clips) == limits


@pytest.mark.parametrize("name", ["fake:", "fake:0", "fake:x", "fake:30:", "fake:30:0", "fake:-1", "fake:30:2:1"])
def test_other_names_of_the_fake_model_are_explained(name: str) -> None:
    """To the operator."""
    with pytest.raises(ValueError, match="write fake, fake:30"):
        create(name)
