"""The segments of an answer: which text was said when. Pure.

Each window of the audio is a segment, as its times are known; timestamps that the model writes divide it further.
"""

from __future__ import annotations

from collections.abc import Sequence

from wire import Segment


def window_segments(windows: Sequence[float], num_answers: int) -> tuple[Segment, ...]:
    """One for each window, where each has an answer of its own, and a single one otherwise. `windows`: where each ends,
    in seconds."""
    ends = windows if len(windows) == num_answers else windows[-1:]
    return tuple(Segment(start, end) for start, end in zip((0.0, *ends), ends, strict=False))


class Spans:
    """The segments of one choice. Text belongs to the current one; a segment ends with its window, unless a timestamp
    ends it before."""

    def __init__(self, windows: Sequence[float], num_prompts: int) -> None:
        self._windows = window_segments(windows, num_prompts)
        self._window = 0
        self._told: list[Segment] = []
        self._open = self._windows[0]
        self._has_text = False

    @property
    def current(self) -> int:
        """The number of the segment that text belongs to now."""
        return len(self._told)

    def add_text(self) -> None:
        self._has_text = True

    def mark(self, seconds: float) -> None:
        """A timestamp, counted from the beginning of the window. The window's audio may be shorter than what the model
        takes for it."""
        window = self._windows[self._window]
        time_s, end = min(window.start_s + seconds, window.end_s), window.end_s
        if not self._has_text:
            self._open = Segment(time_s, end)
        else:
            self._close(Segment(self._open.start_s, time_s), Segment(time_s, end))

    def next_window(self) -> None:
        if len(self._windows) > 1:
            self._window += 1
            self._close(self._open, self._windows[self._window])

    def _close(self, told: Segment, following: Segment) -> None:
        self._told.append(told)
        self._open = following
        self._has_text = False

    def all(self) -> tuple[Segment, ...]:
        return (*self._told, self._open)
