"""What became of the files: told at the end, on stderr."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cli.transcript import Transcript


@dataclass
class Report:
    num_skipped: int = 0
    num_done: int = 0
    seconds: float = 0.0
    cut: list[Path] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add(self, file: Path, transcript: Transcript) -> None:
        self.num_done += 1
        self.seconds += transcript.seconds
        if transcript.is_cut:
            self.cut.append(file)

    def show(self) -> None:
        for file in self.cut:
            print(f"cut: {file}: the model had no room for all of it; its end may be missing.", file=sys.stderr)
        for file, sentence in self.failures.items():
            print(f"failed: {file}: {sentence}", file=sys.stderr)
        counts = f"{self.num_done} done, {self.num_skipped} skipped, {len(self.failures)} failed"
        took = duration(time.monotonic() - self.started)
        print(f"{counts}; {duration(self.seconds)} of audio in {took}", file=sys.stderr)


def duration(seconds: float) -> str:
    """`2 h 5 min`, `3 min 20 s`, `7.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
