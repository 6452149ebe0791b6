"""Measures decoding: ten minutes of speech as MP3, Ogg and M4A to 16 kHz mono float32, against what else does that.

Each run has a process of its own, so that its processor time and its memory are its own: imports and a first short clip
come before the measurement. The ways take turns, so that what else the machine does hits all of them. Seconds mean
little on another machine, ratios more. Knows nothing of models and requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time

import av
import numpy as np
import numpy.typing as npt
import psutil

from audio.decode import DecodeLimits, decode_file
from audio.pool import DecodePool
from benchmarks.results import RESULTS, Spread, filled, machine, sections, table, write_section

RATE = 16_000
SPEECH = Path(__file__).resolve().parents[1] / "tests" / "data" / "long-readings.ogg"
SECONDS, QUICK_SECONDS = 600.0, 20.0
WARM_UP_S = 1.0
REPEATS = 5
FILES = {"mp3": ("libmp3lame", 44_100), "ogg": ("libopus", 48_000), "m4a": ("aac", 44_100)}
LIMITS = DecodeLimits(max_seconds=3600, max_decoded_bytes=1 << 28, base_s=60, s_per_minute=10)
MAX_LENGTH_DIFFERENCE_S = 0.2  # encoders' padding, cut off by some and kept by others
CANNOT = 3  # exit status of a run whose way does not know the format
PACKAGES = ("av", "librosa", "soundfile", "soxr")

# ------------------------------------------------------------------------------------------------------------- the ways

Way = Callable[[str], int]  # a path to the number of samples at 16 kHz


def _ours(path: str) -> int:
    with tempfile.NamedTemporaryFile(dir=Path(path).parent) as target:
        return decode_file(path, target.name, RATE, LIMITS)


def _librosa(path: str) -> int:
    import librosa  # noqa: PLC0415 -- only where it is measured: it takes seconds, and 200 MB

    waveform, _ = librosa.load(path, sr=RATE, mono=True, res_type="soxr_hq")
    return len(waveform)


def _soundfile(path: str) -> int:
    import soundfile  # noqa: PLC0415 -- not where librosa is measured
    import soxr  # noqa: PLC0415

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono: npt.NDArray[np.float32] = samples.mean(axis=1)
    return len(soxr.resample(mono, rate, RATE, "HQ"))


OURS, POOL = "decode_file", "DecodePool"
WAYS: dict[str, Way] = {OURS: _ours, "librosa, soxr": _librosa, "soundfile, soxr": _soundfile}
ALL_WAYS = (OURS, POOL, *(way for way in WAYS if way != OURS))


@dataclass(frozen=True)
class Run:
    """One decoding, in its own process. `peak_mb`: the most memory that the process ever had, imports and all."""

    samples: int
    wall_s: float
    cpu_s: float
    peak_mb: float


def _measured(way: Way, path: str, short: str) -> Run:
    way(short)
    wall_s, cpu_s = perf_counter(), process_time()
    samples = way(path)
    return Run(samples, perf_counter() - wall_s, process_time() - cpu_s, _peak_mb(psutil.Process()))


async def _measured_in_pool(path: str, short: str) -> Run:
    """The processor time of both processes, the memory of the decoder."""
    pool = DecodePool(1, LIMITS)
    try:
        with tempfile.NamedTemporaryFile(dir=Path(path).parent) as target:
            await pool.decode(short, target.name, RATE)
            (decoder,) = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
            wall_s, cpu_s = perf_counter(), process_time() + _cpu_s(decoder)
            samples = await pool.decode(path, target.name, RATE)
            return Run(samples, perf_counter() - wall_s, process_time() + _cpu_s(decoder) - cpu_s, _peak_mb(decoder))
    finally:
        pool.close()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_mb(process: psutil.Process) -> float:
    """Of this program alone, where `ru_maxrss` begins with what its parent had."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def _run_alone(way: str, path: str, short: str) -> int:
    """In the child process: prints its `Run`."""
    try:
        run = asyncio.run(_measured_in_pool(path, short)) if way == POOL else _measured(WAYS[way], path, short)
    except Exception as error:
        print(error, file=sys.stderr)
        return CANNOT
    print(json.dumps(asdict(run)))
    return 0


# ------------------------------------------------------------------------------------------------------ the measurement


def _make(path: Path, codec: str, rate: int, seconds: float) -> None:
    """Real speech, again and again, until it is so long."""
    samples = 0
    resampler = None
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        while samples < seconds * rate:
            with av.open(str(SPEECH)) as source:
                for frame in source.decode(audio=0):
                    if resampler is None:
                        size = stream.codec_context.frame_size
                        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate, frame_size=size)
                    frame.pts = None
                    for piece in resampler.resample(frame) if samples < seconds * rate else ():
                        piece.pts, samples = samples, samples + piece.samples
                        out.mux(stream.encode(piece))
        out.mux(stream.encode(None))


def _child(way: str, path: Path, short: Path) -> Run | None:
    """None where the way does not know the format."""
    command = [sys.executable, "-m", "benchmarks.audio", "--child", way, str(path), str(short)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == CANNOT:
        return None
    done.check_returncode()
    return Run(**json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Measured:
    """The runs of each way with one format, round by round; none of a way that does not know it."""

    runs: dict[str, list[Run]]

    @classmethod
    def of(cls, path: Path, short: Path, repeats: int) -> Measured:
        runs = {way: [run] for way in ALL_WAYS if (run := _child(way, path, short)) is not None}
        for _ in range(repeats - 1):
            for way, own in runs.items():
                run = _child(way, path, short)
                assert run is not None, "it could before"
                own.append(run)
        return cls(runs)

    @property
    def is_right(self) -> bool:
        """Whether ours has as much audio as every other."""
        ours = self.runs[OURS][0].samples
        return all(abs(runs[0].samples - ours) / RATE < MAX_LENGTH_DIFFERENCE_S for runs in self.runs.values())

    def rows(self, name: str) -> list[tuple[str, ...]]:
        return [(name, *self._cells(way)) for way in ALL_WAYS]

    def _cells(self, way: str) -> tuple[str, ...]:
        if way not in self.runs:
            return way, "cannot", "", "", "", ""
        own, ours = self.runs[way], self.runs[OURS]
        wall = Spread.of([run.wall_s for run in own])
        cpu = Spread.of([run.cpu_s for run in own])
        ratio = Spread.of([run.wall_s / other.wall_s for run, other in zip(own, ours, strict=True)])
        cpu_ratio = Spread.of([run.cpu_s / other.cpu_s for run, other in zip(own, ours, strict=True)])
        peak = Spread.of([run.peak_mb for run in own])
        return way, wall.text(2), ratio.text(2, "x"), cpu.text(2), cpu_ratio.text(2, "x"), f"{peak.most:.0f}"


HEADER = ("format", "way", "wall, s", f"/ {OURS}", "CPU, s", f"CPU / {OURS}", "peak MB")


def _measure(seconds: float, repeats: int) -> tuple[str, bool]:
    """The table, and whether all ways heard as much."""
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (codec, rate) in FILES.items():
            path, short = Path(directory) / f"long.{name}", Path(directory) / f"short.{name}"
            _make(path, codec, rate, seconds)
            _make(short, codec, rate, WARM_UP_S)
            measured[name] = Measured.of(path, short, repeats)
    rows = [row for name, of_format in measured.items() for row in of_format.rows(name)]
    return table(HEADER, rows), all(of_format.is_right for of_format in measured.values())


# --------------------------------------------------------------------------------------------------------- command line


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.audio", description="Measure decoding.")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes, to see that it runs")
    parser.add_argument("--results", type=Path, help=f"where its section goes (default: {RESULTS}, none with --quick)")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "FILE", "SHORT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Print the table; 1 if some way heard more or less than ours."""
    arguments = _arguments()
    if arguments.child:
        return _run_alone(*arguments.child)
    seconds, repeats = (QUICK_SECONDS, 1) if arguments.quick else (SECONDS, REPEATS)
    command = shlex.join(["python", "-m", "benchmarks.audio", *sys.argv[1:]])
    head = f"## Audio\n\n- Command: `{command}`\n{machine(1, PACKAGES if not arguments.quick else ('av',))}"
    figures, is_right = _measure(seconds, repeats)
    text = sections(
        head,
        filled(
            f"""{seconds:.0f} s of read speech to {RATE // 1000} kHz mono float32, each run in a process of its own,
            after its imports and a clip of {WARM_UP_S:.0f} s. Rounds in which the ways take turns: {repeats}. Figures
            are the median and, in brackets, the least and the most; ratios are of one round, and more than 1 is slower
            than `{OURS}`. `{OURS}` writes a file as the decode process does, the others keep an array; `{POOL}` counts
            the processor time of both processes and the decoder's memory. torchaudio 2.11 decodes with torchcodec only,
            which needs FFmpeg's shared libraries and is left out."""
        ),
        figures,
    )
    print(text)
    path = arguments.results or (None if arguments.quick else RESULTS)
    if path is not None:
        write_section("audio", text, path)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
