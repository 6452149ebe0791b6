"""`python -m tests.fuzz.decoder --seconds 60`: broken recordings of every format, decoded as a worker decodes them.

Through the DecodePool, so that what crashes or hangs is contained, and counted. Ends with 1 where an input was answered
with an exception that no client may see, hung until it was killed, or left a file open. Such inputs are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from audio.decode import DecodeLimits, read_waveform
from audio.pool import DecodePool
from errors import AudioTooLong, BadAudio
from tests.fuzz.mutations import mutated
from tests.support.recordings import DATA, FORMS, recording

Decode = Callable[[str, str, int], Awaitable[int]]

RATE = 16_000
PROCESSES = 2
AT_ONCE = 4
SEED_SECONDS = 0.7
WARM_UP = 40  # inputs, until every process has imported and opened what it will
LIMITS = DecodeLimits(max_seconds=60, max_decoded_bytes=1 << 26, base_s=5, s_per_minute=1)
KEPT = Path(tempfile.gettempdir()) / "eardrum-fuzz"
FAILURES = ("other exception", "killed for time", "not audio")


@dataclass
class Size:
    """What this process and its decoders take together."""

    descriptors: int
    resident_mb: float

    @classmethod
    def now(cls) -> Size:
        family = [psutil.Process(), *psutil.Process().children()]
        return cls(sum(p.num_fds() for p in family), sum(p.memory_info().rss for p in family) / 1e6)


@dataclass
class Fuzz:
    """One run over numbered inputs."""

    decode: Decode
    seed: int
    goes_on: Callable[[int], bool]  # asked with the next input's number, once the warm-up is over
    kept: Path = KEPT
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    number: int = 0
    before: Size | None = None
    after: Size | None = None

    async def run(self, seeds: Sequence[bytes], directory: Path) -> None:
        await self._some(seeds, directory, lambda: self.number < WARM_UP)
        self.before = Size.now()
        await self._some(seeds, directory, lambda: self.goes_on(self.number))
        self.after = Size.now()
        if self.after.descriptors > self.before.descriptors:
            self.failures.append(f"{self.after.descriptors - self.before.descriptors} files were left open")

    async def _some(self, seeds: Sequence[bytes], directory: Path, more: Callable[[], bool]) -> None:
        async def follow(name: str) -> None:
            while more():
                number, self.number = self.number, self.number + 1
                await self._one(number, mutated(seeds, self.seed, number), directory / name)

        await asyncio.gather(*(follow(str(runner)) for runner in range(AT_ONCE)))

    async def _one(self, number: int, data: bytes, path: Path) -> None:
        target = path.with_suffix(".out")
        _write(path, data)
        _write(target, b"")
        outcome = await self._outcome(path, target)
        self.outcomes[outcome] += 1
        if outcome in FAILURES:
            self.kept.mkdir(exist_ok=True)
            _write(self.kept / f"{self.seed}-{number}", data)
            self.failures.append(f"input {number}: {outcome} ({self.seed}-{number} in {self.kept})")

    async def _outcome(self, source: Path, target: Path) -> str:
        try:
            samples = await self.decode(str(source), str(target), RATE)
        except AudioTooLong as refusal:
            return "killed for time" if refusal.message.endswith("longer than allowed.") else "too long"
        except BadAudio as refusal:
            return "decoder died" if "crashed" in refusal.message else "refused"
        except Exception:
            return "other exception"
        waveform = read_waveform(str(target))
        is_audio = len(waveform) == samples > 0 and np.isfinite(waveform).all()
        return "decoded" if is_audio else "not audio"


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def seeds() -> list[bytes]:
    """Each form, and other encoders' files."""
    return [
        *(recording(name, SEED_SECONDS) for name in FORMS),
        *(clip.read_bytes() for clip in sorted(DATA.glob("jfk.*"))),
    ]


async def fuzz_pool(goes_on: Callable[[int], bool], seed: int) -> Fuzz:
    """A run over a pool of its own, at least through the warm-up."""
    pool = DecodePool(PROCESSES, LIMITS)
    try:
        with tempfile.TemporaryDirectory() as directory:
            fuzz = Fuzz(pool.decode, seed, goes_on)
            await fuzz.run(seeds(), Path(directory))
            return fuzz
    finally:
        pool.close()


def table(fuzz: Fuzz) -> Table:
    assert fuzz.before is not None and fuzz.after is not None, "it has run"
    rows = Table("", "start", "end", title=f"seed {fuzz.seed}: {fuzz.number} inputs")
    for outcome in ("decoded", "refused", "too long", "decoder died", *FAILURES):
        rows.add_row(outcome, "", str(fuzz.outcomes[outcome]))
    rows.add_row("open files", str(fuzz.before.descriptors), str(fuzz.after.descriptors))
    rows.add_row("resident MB", f"{fuzz.before.resident_mb:.0f}", f"{fuzz.after.resident_mb:.0f}")
    return rows


def main() -> int:
    """The exit status: 0 where all is well."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.decoder", description="Broken audio for the decoder.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the inputs")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    fuzz = asyncio.run(fuzz_pool(lambda _: time.monotonic() < until, options.seed))
    console = Console()
    console.print(table(fuzz))
    for failure in fuzz.failures:
        console.print(failure)
    return 1 if fuzz.failures else 0


if __name__ == "__main__":
    sys.exit(main())
