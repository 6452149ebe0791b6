"""Any rate becomes 16 kHz as by a filter near to the perfect one, and the same samples however the file is cut up.

Limits are some decibels beside what was measured with av 18.1.0 (swresample 6.3), which stands behind them.
"""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from tests.support.decoding import RATE, decode
from tests.support.recordings import encode, speech

Signal = npt.NDArray[np.float64]

MIDDLE = slice(RATE // 50, -RATE // 50)  # without the filter's rise and fall
HALF_TAPS = 128  # of the reference, in periods of the lower rate


def tone(hertz: float, rate: int, seconds: float = 1.0) -> Signal:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def sweep(low: float, high: float, rate: int, seconds: float = 2.0) -> Signal:
    """From one frequency to another, evenly in time."""
    t = np.arange(int(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (low * t + (high - low) * t**2 / (2 * seconds)))


def level_db(signal: Signal) -> float:
    """Beside that of a tone of amplitude 0.5."""
    return float(20 * np.log10(np.sqrt(np.mean(signal**2)) / np.sqrt(0.125) + 1e-12))


def heard(signal: npt.NDArray[np.floating], rate: int, directory: Path) -> Signal:
    """As float WAV, which rounds at -150 dB."""
    return decode(encode(signal.astype(np.float32), rate, "wav", "pcm_f32le"), directory).astype(np.float64)


def reference(signal: Signal, rate: int) -> Signal:
    """The signal at 16 kHz by a windowed sinc in float64, computed anew for each sample."""
    lower = min(rate, RATE)
    half = HALF_TAPS * rate // lower
    padded = np.pad(signal, half)
    at = np.arange(int(len(signal) * RATE / rate)) * rate / RATE
    first = np.floor(at).astype(int)
    offsets = np.arange(-half + 1, half)
    distance = offsets[None, :] - (at - first)[:, None]
    taps = np.sinc(distance * lower / rate) * lower / rate * (0.5 + 0.5 * np.cos(np.pi * distance / half))
    return np.einsum("ij,ij->i", padded[first[:, None] + half + offsets[None, :]], taps)


@pytest.mark.parametrize(
    ("rate", "up_to", "limit_db"),
    [
        (8_000, 3_600, -80),  # measured: -86
        (16_000, 8_000, -140),  # -154: as it is
        (22_050, 7_200, -80),  # -86
        (44_100, 7_200, -80),  # -85
        (48_000, 7_200, -80),  # -86
        (44_099, 7_200, -80),  # -85: no ratio of small numbers
    ],
)
def test_speech_frequencies_are_kept(rate: int, up_to: int, limit_db: float, tmp_path: Path) -> None:
    """A sweep comes out as the sweep computed at 16 kHz, at the same time and level."""
    out, expected = heard(sweep(50, up_to, rate), rate, tmp_path), sweep(50, up_to, RATE)
    assert abs(len(out) - len(expected)) <= 1
    length = min(len(out), len(expected))
    assert level_db((out[:length] - expected[:length])[MIDDLE]) < limit_db


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_what_16_khz_cannot_hold_does_not_come_back_as_something_else(rate: int, tmp_path: Path) -> None:
    """A sweep above 8.4 kHz is silence: folded down it would be sound that nobody made. Measured: -83 to -94 dB."""
    assert level_db(heard(sweep(8_400, rate / 2, rate), rate, tmp_path)[MIDDLE]) < -78


def test_from_8_khz_nothing_is_made_up(tmp_path: Path) -> None:
    """Above 4.2 kHz there is nothing, as a telephone had nothing there. Measured: -95 dB."""
    out = heard(sweep(50, 3_600, 8_000), 8_000, tmp_path)[MIDDLE]
    spectrum = np.fft.rfft(out * np.hanning(len(out)))
    image = np.fft.irfft(np.where(np.fft.rfftfreq(len(out), 1 / RATE) > 4_200, spectrum, 0))
    assert level_db(image) < -90


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_speech_is_as_by_a_reference_in_float64(rate: int, tmp_path: Path) -> None:
    """Beside the loudness of the speech. Measured: -68 dB from 8 kHz, whose edge is full, -83 dB from the others."""
    signal = speech(rate, seconds=0.6)[0].astype(np.float64)
    out, expected = heard(signal, rate, tmp_path), reference(signal, rate)
    length = min(len(out), len(expected))
    assert abs(len(out) - len(expected)) <= 1
    assert level_db((out[:length] - expected[:length])[MIDDLE]) - level_db(expected[MIDDLE]) < -62


# ------------------------------------------------------------------------------------------------- however it is cut up


def with_frames_of(samples: int, signal: npt.NDArray[np.float32], rate: int, container: str, codec: str) -> bytes:
    """The file whose packets have so many samples."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="stereo")
        assert isinstance(stream, av.AudioStream)
        if codec == "flac":
            stream.codec_context.options = {"frame_size": str(samples)}
        for begin in range(0, signal.shape[1], samples):
            piece = np.ascontiguousarray((signal[:, begin : begin + samples].T * 32767).astype(np.int16)).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="stereo")
            frame.sample_rate, frame.pts = rate, begin
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_packets_of_any_size_give_the_same_samples(rate: int, tmp_path: Path) -> None:
    """Bit for bit: FLAC, Matroska and WAV, in frames from 100 samples to all of them."""
    signal = np.stack([speech(rate, seconds=1.5)[0], sweep(50, 7_000, rate, 1.5).astype(np.float32)])
    expected = decode(with_frames_of(signal.shape[1], signal, rate, "wav", "pcm_s16le"), tmp_path)
    for samples in (100, 1_000, 4_096, 20_000):
        assert np.array_equal(
            decode(with_frames_of(samples, signal, rate, "matroska", "pcm_s16le"), tmp_path), expected
        )
    for samples in (256, 4_608, 16_384):
        assert np.array_equal(decode(with_frames_of(samples, signal, rate, "flac", "flac"), tmp_path), expected)
