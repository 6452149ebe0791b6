"""The benchmarks run, and tell what they promise. Their figures are nobody's test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_engines_benchmark_compares_answers_and_writes_its_section(tmp_path: Path) -> None:
    """In small: it ends with 0 only where every answer is that of `generate()`, and leaves other sections alone."""
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nsomebody else's section\n")
    command = [sys.executable, "-m", "benchmarks.engine", "--quick", "--results", str(results)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    text = results.read_text()
    assert "somebody else's section" in text
    assert "engine / one by one" in text
    assert "share of the step" in text


def test_the_benchmark_of_slow_addresses_writes_its_section(tmp_path: Path) -> None:
    """In small."""
    results = tmp_path / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks.slow_urls", "--quick", "--results", str(results)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "p95 with both / without" in results.read_text()


def test_the_decoders_benchmark_runs_and_leaves_other_sections_alone(tmp_path: Path) -> None:
    """In small, and also where nothing is installed that it compares with."""
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nsomebody else's section\n")
    command = [sys.executable, "-m", "benchmarks.audio", "--quick", "--results", str(results)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    text = results.read_text()
    assert "somebody else's section" in text
    for name in ("mp3", "ogg", "m4a"):
        assert sum(line.startswith(f"| {name} ") and "1.00x" in line for line in text.splitlines()) >= 1
