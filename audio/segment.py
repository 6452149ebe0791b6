"""Long audio: where to cut. Windows end at the quietest place near their limit, so that no word is cut through."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from audio.decode import Waveform

FRAME_S = 0.02  # resolution of the search
PAUSE_S = 0.2  # loudness is averaged over about the length of a short pause between words
SEARCH_SHARE = 0.5  # the cut is looked for in the last half of a window
REST_SHARE = 0.1  # and leaves so much of a window at least: a rest of some milliseconds is nothing that can be heard


def split_at_quiet(waveform: Waveform, sampling_rate: int, max_seconds: float) -> list[Waveform]:
    """Views on `waveform`, in order and without a gap, none longer than `max_seconds`; one view where it fits. Of
    several, none is shorter than a tenth of that."""
    limit = int(max_seconds * sampling_rate)
    rest = int(limit * REST_SHARE)
    windows = []
    while len(waveform) > limit:
        cut = _quietest(waveform[: min(limit, len(waveform) - rest)], sampling_rate)
        windows.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*windows, waveform]


def _quietest(window: Waveform, sampling_rate: int) -> int:
    """The sample in the last part of `window` around which it is quietest; the last of several such places.

    |------- kept -------|~~~~~ search ~~~~~|
    0                  start     ^ cut     end
    """
    frame = int(FRAME_S * sampling_rate)
    start = int(len(window) * (1 - SEARCH_SHARE))
    loudness = _loudness(window[start:], frame, round(PAUSE_S / FRAME_S))
    last_of_quietest = len(loudness) - 1 - int(np.argmin(loudness[::-1]))
    return start + last_of_quietest * frame + frame // 2


def _loudness(window: Waveform, frame: int, frames_averaged: int) -> npt.NDArray[np.float64]:
    """Mean energy around each whole frame of `window`; the first and last one stand for what is outside."""
    frames = window[: len(window) // frame * frame].reshape(-1, frame)
    energy = np.square(frames, dtype=np.float64).mean(axis=1)
    padded = np.pad(energy, frames_averaged // 2, mode="edge")
    return np.convolve(padded, np.ones(frames_averaged) / frames_averaged, mode="same")[
        frames_averaged // 2 : frames_averaged // 2 + len(energy)
    ]
