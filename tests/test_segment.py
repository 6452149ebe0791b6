"""Long audio is cut where it is quiet, and nothing of it is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.segment import split_at_quiet

RATE = 16_000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32) * 0.1


@given(st.floats(0.0, 8.0), st.floats(0.5, 3.0))
def test_the_windows_are_the_whole_audio_in_order(seconds: float, limit: float) -> None:
    """None is longer than the limit or too short to be heard, and joined they are what came in."""
    waveform = noise(seconds)
    windows = split_at_quiet(waveform, RATE, limit)
    assert all(len(window) <= limit * RATE for window in windows)
    assert np.array_equal(np.concatenate(windows), waveform)
    assert len(windows) == 1 or min(map(len, windows)) >= limit * RATE // 10


def test_audio_that_fits_is_one_window() -> None:
    """Exactly the limit fits."""
    assert len(split_at_quiet(noise(30), RATE, 30)) == 1
    assert len(split_at_quiet(np.append(noise(30), np.float32(0)), RATE, 30)) == 2


@pytest.mark.parametrize("pause_at", [16.0, 22.5, 29.5])
def test_the_cut_is_in_the_pause(pause_at: float) -> None:
    """A pause of 300 ms in the last half of the window is found."""
    waveform = noise(40)
    start, end = int(pause_at * RATE), int((pause_at + 0.3) * RATE)
    waveform[start:end] *= 0.001
    cut = len(split_at_quiet(waveform, RATE, 30)[0])
    assert start <= cut <= end


def test_silence_is_cut_as_late_as_possible() -> None:
    """Of equally quiet places the last is taken, so that there are few windows."""
    windows = split_at_quiet(np.zeros(65 * RATE, dtype=np.float32), RATE, 30)
    assert len(windows) == 3
    assert len(windows[0]) > 29 * RATE


def test_what_is_a_little_too_long_leaves_no_crumb() -> None:
    """Silence at the very end of a window would leave some milliseconds to the next, in which nobody hears a thing."""
    waveform = noise(30.02)
    waveform[-RATE // 2 :] = 0
    assert [len(window) / RATE for window in split_at_quiet(waveform, RATE, 30)][-1] >= 3
