"""What a benchmark tells: tables in Markdown, the machine that it ran on, and its section of RESULTS.md.

Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import platform
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "# Results\n\nEach section is the output of one run of one command, which it names.\n"
CPU_INFO = Path("/proc/cpuinfo")
LINE = 120  # characters


@dataclass(frozen=True)
class Spread:
    """The median of a few measurements, and between what they lie."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def scaled(self, factor: float) -> Spread:
        return Spread(factor * self.median, factor * self.least, factor * self.most)

    def text(self, digits: int = 0, unit: str = "") -> str:
        """As "203 (198-210)"; the median alone where there was but one measurement."""
        median = f"{self.median:.{digits}f}{unit}"
        return median if self.least == self.most else f"{median} ({self.least:.{digits}f}-{self.most:.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that lines up in a terminal, too; the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in (header, rule, *rows))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])} |"


def filled(text: str) -> str:
    """A paragraph, its lines broken anew."""
    return textwrap.fill(" ".join(text.split()), LINE)


def sections(*parts: str) -> str:
    return "\n\n".join(parts)


def machine(num_threads: int, packages: Sequence[str]) -> str:
    """Where and when it runs, as a Markdown list. To be called before the run, as it tells how busy the machine is."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return "\n".join(
        [
            f"- Machine: {_cpu_model()}, {os.cpu_count()} cores, of which {num_threads} used; load {load} at the start",
            f"- Versions: Python {platform.python_version()}, {versions}",
            f"- Date: {datetime.now(UTC):%Y-%m-%d}",
        ]
    )


def _cpu_model() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_section(name: str, text: str, path: Path = RESULTS) -> None:
    """Put `text` between the section's markers, at the end where they are missing; all else stays as it is."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before = path.read_text() if path.exists() else TITLE
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in before and end in before:
        head, _, rest = before.partition(begin)
        path.write_text(head + section + rest.partition(end)[2])
    else:
        path.write_text(f"{before.rstrip()}\n\n{section}\n")
