"""The clips of tests/data, what is said in them, and how to send them."""

from __future__ import annotations

import base64
import io
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jiwer
import numpy as np
import numpy.typing as npt
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

DATA = Path(__file__).resolve().parents[1] / "data"

RATE = 16_000

JFK = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


@dataclass(frozen=True)
class Spoken:
    """A clip, its transcript, its length, and the word error rate of tiny.en measured on it in one piece (percent)."""

    name: str
    text: str
    seconds: float
    wer: float


CLIPS = (
    Spoken("jfk.wav", JFK, 11.0, 0.0),
    Spoken("jfk.mp3", JFK, 11.0, 0.0),
    Spoken("jfk.ogg", JFK, 11.0, 0.0),
    Spoken("jfk.m4a", JFK, 11.0, 0.0),
    Spoken("jfk.webm", JFK, 11.0, 0.0),
    Spoken(
        "librispeech-61-70968-0000.flac",
        "He began a confused complaint against the wizard who had vanished behind the curtain on the left",
        4.9,
        0.0,
    ),
    Spoken("cv-en-no.mp3", "no", 4.1, 0.0),
    Spoken(
        "austen-0870.wav",
        "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for "
        "them.",
        7.1,
        0.0,
    ),
    Spoken("austen-0880.wav", "He was not an ill-disposed young man,", 3.0, 25.0),
    Spoken(
        "austen-0890.wav",
        "unless to be rather cold-hearted and rather selfish is to be ill-disposed.",
        5.3,
        0.0,
    ),
    Spoken(
        "austen-0920.wav",
        "Had he married a more amiable woman, he might have been made still more respectable than he was;",
        6.05,
        0.0,
    ),
    Spoken("austen-0930.wav", "he might even have been made amiable himself.", 3.3, 0.0),
)

LONG = Spoken(
    "long-readings.ogg",
    "1 From fairest creatures we desire increase, That thereby beauty's rose might never die, But as the riper should "
    "by time decease, His tender heir might bear his memory: But thou contracted to thine own bright eyes, Feed'st thy "
    "light's flame with self-substantial fuel, Making a famine where abundance lies, Thy self thy foe, to thy sweet "
    "self too cruel: Thou that art now the world's fresh ornament, And only herald to the gaudy spring, Within thine "
    "own bud buriest thy content, And tender churl mak'st waste in niggarding: Pity the world, or else this glutton "
    "be, To eat the world's due, by the grave and thee. And Mr. John Dashwood had then leisure to consider how much "
    "there might be prudently in his power to do for them. He was not an ill-disposed young man, unless to be rather "
    "cold-hearted and rather selfish is to be ill-disposed. Had he married a more amiable woman, he might have been "
    "made still more respectable than he was; he might even have been made amiable himself.",
    81.0,
    9.2,
)


def word_error_rate(expected: str, answer: str) -> float:
    """Percent of words, after Whisper's English normaliser."""
    normalise = EnglishTextNormalizer({})
    return 100 * float(jiwer.wer(normalise(expected), normalise(answer)))


@cache
def as_base64(name: str) -> str:
    return base64.b64encode((DATA / name).read_bytes()).decode()


def input_audio(name: str) -> dict:
    """OpenAI's content part with a clip."""
    return {"type": "input_audio", "input_audio": {"data": as_base64(name), "format": Path(name).suffix[1:]}}


def wav(samples: npt.NDArray[np.float32]) -> dict:
    """OpenAI's content part with mono samples at 16 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def spoken(name: str) -> npt.NDArray[np.float32]:
    """The samples of a 16 kHz WAV clip."""
    with wave.open(str(DATA / name)) as clip:
        assert clip.getframerate() == RATE
        return np.frombuffer(clip.readframes(clip.getnframes()), "<i2").astype(np.float32) / 32768


def silence(seconds: float) -> npt.NDArray[np.float32]:
    return np.zeros(int(seconds * RATE), np.float32)


def excerpt(name: str, start_s: float, end_s: float) -> dict:
    """A part of a 16 kHz WAV clip as a clip of its own."""
    return wav(spoken(name)[int(start_s * RATE) : int(end_s * RATE)])


def audio_url(url: str) -> dict:
    """vLLM's content part."""
    return {"type": "audio_url", "audio_url": {"url": url}}


def user(*parts: dict | str) -> list[dict]:
    """Messages of one user turn; a plain string is a text part."""
    blocks = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": blocks}]
