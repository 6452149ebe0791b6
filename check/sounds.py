"""What the checks let a model hear: sweeps and noise, or pieces of a recording, the same in each run."""

from __future__ import annotations

import io
import tempfile
import wave
from pathlib import Path

import numpy as np

from audio.decode import DecodeLimits, Waveform, decode_file, read_waveform

PIECE_S = 1.7  # how far apart in the recording two clips begin
LOUD = 0.5  # full scale is 1
INT16_SCALE = 32768
# The file is the operator's own, so these are generous.
LIMITS = DecodeLimits(max_seconds=3600, max_decoded_bytes=1 << 30, base_s=60, s_per_minute=10)


class Sounds:
    """Clips at one sampling rate, in hertz. With a `recording`, shape (samples,), they are its pieces."""

    def __init__(self, sampling_rate: int, recording: Waveform | None = None) -> None:
        self.sampling_rate = sampling_rate
        self._recording = recording

    def clip(self, seconds: float, number: int = 0) -> Waveform:
        """A clip of this length, shape (samples,). Those of other numbers sound otherwise."""
        samples = int(seconds * self.sampling_rate)
        if self._recording is None:
            return self._sweep(samples, number)
        offset = int(number * PIECE_S * self.sampling_rate)
        return np.resize(np.roll(self._recording, -offset), samples).astype(np.float32)

    def _sweep(self, samples: int, number: int) -> Waveform:
        """A tone that glides from one frequency to another, and a little noise."""
        low, high = 150.0 * (1 + number % 5), self.sampling_rate / (4 + number % 3)
        hz = np.linspace(low, high, samples) if number % 2 else np.linspace(high, low, samples)
        tone = np.sin(2 * np.pi * np.cumsum(hz) / self.sampling_rate)
        return (0.3 * tone + 0.01 * self._noise(samples, number)).astype(np.float32)

    def _noise(self, samples: int, number: int) -> Waveform:
        return np.random.default_rng(number).standard_normal(samples).astype(np.float32)

    def with_other_tails(self, waveform: Waveform, seconds: float) -> list[Waveform]:
        """The waveform with its last seconds replaced: by silence, by loud noise, by that noise backwards (whose mean,
        loudness and peak are the same), and by another clip."""
        samples = int(seconds * self.sampling_rate)
        noise = (LOUD * np.clip(self._noise(samples, 99) / 3, -1, 1)).astype(np.float32)
        tails = (np.zeros_like(noise), noise, noise[::-1], self.clip(seconds, 7)[:samples])
        return [np.concatenate((waveform[: len(waveform) - samples], tail)) for tail in tails]


def as_wav(waveform: Waveform, sampling_rate: int) -> bytes:
    """A WAV file of 16 bits, which rounds the samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, sampling_rate, 0, "NONE", ""))
        scaled = np.clip(np.round(waveform * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1)
        out.writeframes(scaled.astype("<i2").tobytes())
    return file.getvalue()


def decoded(data: bytes, sampling_rate: int) -> Waveform:
    """What the server hears of a file, shape (samples,). Raises `BadAudio` and `AudioTooLong`."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "source", Path(directory) / "target"
        source.write_bytes(data)
        target.touch()
        decode_file(str(source), str(target), sampling_rate, LIMITS)
        return read_waveform(str(target))
