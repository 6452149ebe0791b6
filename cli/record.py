"""The microphone, where the package sounddevice is installed."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable

from cli.problem import Problem

SAMPLING_RATE = 16_000  # Hz: what models of speech hear
SAMPLE_BYTES = 2


def record(until: Callable[[], object]) -> bytes:
    """A WAV file of what is said until `until` returns. Raises `Problem`."""
    try:
        import sounddevice
    except ImportError:
        raise Problem("Recording needs the Python package sounddevice: `pip install sounddevice`.") from None
    except OSError:
        raise Problem("Recording needs the library PortAudio: `apt install libportaudio2`.") from None
    pieces: list[bytes] = []
    try:
        with sounddevice.RawInputStream(
            samplerate=SAMPLING_RATE, channels=1, dtype="int16", callback=lambda data, *_: pieces.append(bytes(data))
        ):
            until()
    except sounddevice.PortAudioError as error:
        raise Problem(f"The microphone cannot be used: {error}.") from None
    return as_wav(b"".join(pieces))


def as_wav(samples: bytes) -> bytes:
    """`samples`: 16-bit, mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(SAMPLE_BYTES)
        wav.setframerate(SAMPLING_RATE)
        wav.writeframes(samples)
    return file.getvalue()


def seconds(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        return float(file.getnframes() / file.getframerate())
