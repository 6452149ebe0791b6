"""Of a worker's jobs, only so many hold decoded audio as its budget has seconds; the others wait their turn."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.addresses import FetchRules
from audio.budget import AudioBudget
from audio.decode import DecodeLimits, decode_file
from audio.fetch import Fetcher
from audio.room import Room
from audio.source import AudioSource
from audio.spool import Spool, open_spool
from config import Settings
from errors import AudioTooLong, BadAudio, BadAudioUrl, Overloaded
from tests.support.fetching import too_much
from tests.support.origin import Origin
from tests.support.speech import DATA, LONG
from tests.support.waiting import until
from wire import AudioPart, Job, JobId, Message, Sampling, TextPart
from worker.prepare import Preparer
from worker.serving import load

RATE = 16_000
LONG_RESERVES_S = 330  # for 81 seconds of Opus, by its bytes
GUARD_S = 20


async def turn() -> None:
    """Lets everything that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Asking:
    """Jobs that ask a budget, and what became of them."""

    def __init__(self, max_seconds: float) -> None:
        self.budget = AudioBudget(max_seconds)
        self.tasks: dict[object, asyncio.Task] = {}

    async def ask(self, key: object, seconds: float) -> bool:
        """Whether it is let in at once."""
        self.tasks[key] = asyncio.create_task(self.budget.reserve(key, seconds))
        await turn()
        return self.let_in(key)

    def let_in(self, key: object) -> bool:
        task = self.tasks[key]
        return task.done() and not task.cancelled()

    async def cancel(self, key: object) -> None:
        self.tasks[key].cancel()
        await turn()

    async def release(self, key: object) -> None:
        self.budget.release(key)
        await turn()


async def test_first_come_first_served() -> None:
    """A small one does not pass a large one that came before it; both go on once there is room for both."""
    jobs = Asking(100)
    assert await jobs.ask("a", 60)
    assert not await jobs.ask("large", 50)
    assert not await jobs.ask("small", 10)
    await jobs.release("a")
    assert jobs.let_in("large")
    assert jobs.let_in("small")
    assert jobs.budget.held_s == 60


async def test_what_is_larger_than_all_goes_alone() -> None:
    """When nobody else holds anything, and then nobody else is let in."""
    jobs = Asking(100)
    assert await jobs.ask("a", 1)
    assert not await jobs.ask("huge", 500)
    await jobs.release("a")
    assert jobs.let_in("huge")
    assert not await jobs.ask("b", 1)
    await jobs.release("huge")
    assert jobs.let_in("b")


async def test_settling_for_less_lets_others_in() -> None:
    """What was reserved was an estimate."""
    jobs = Asking(100)
    assert await jobs.ask("a", 90)
    assert not await jobs.ask("b", 50)
    jobs.budget.settle("a", 20)
    await turn()
    assert jobs.let_in("b")
    assert jobs.budget.held_s == 70


async def test_who_is_unknown_changes_nothing() -> None:
    """A job without audio has ended, or one that ended while its audio was decoded."""
    jobs = Asking(100)
    await jobs.release("nobody")
    jobs.budget.settle("nobody", 50)
    assert jobs.budget.held_s == 0


async def test_a_waiter_that_is_cancelled_lets_those_behind_go_on() -> None:
    """And may ask again."""
    jobs = Asking(100)
    assert await jobs.ask("a", 60)
    assert not await jobs.ask("large", 90)
    assert not await jobs.ask("b", 40)
    await jobs.cancel("large")
    assert jobs.let_in("b")
    await jobs.release("a")
    assert await jobs.ask("large", 60)


async def test_who_is_cancelled_when_let_in_holds_nothing() -> None:
    """Its turn came, and it was cancelled before it ran; and the other way round."""
    for cancel_first in (True, False):
        jobs = Asking(100)
        assert await jobs.ask("a", 100)
        assert not await jobs.ask("b", 100)
        assert not await jobs.ask("c", 100)
        if cancel_first:
            jobs.tasks["b"].cancel()
        jobs.budget.release("a")
        await jobs.cancel("b")
        assert jobs.tasks["b"].cancelled()
        assert jobs.let_in("c")
        assert jobs.budget.held_s == 100


STEPS = st.lists(st.tuples(st.sampled_from(["ask", "settle", "end"]), st.integers(1, 150), st.integers(0, 9)))


@given(STEPS)
def test_any_order_of_events_keeps_the_rules(steps: list[tuple[str, int, int]]) -> None:
    """Never more than the budget, but for one alone; in the order of asking; and at the end everybody had a turn."""
    asyncio.run(_keeps_the_rules(steps))


async def _keeps_the_rules(steps: list[tuple[str, int, int]]) -> None:
    jobs = Asking(100)
    alive: dict[int, int] = {}  # what each asked for, in order
    for number, (step, seconds, which) in enumerate(steps):
        key = list(alive)[which % len(alive)] if alive else None
        if step == "ask":
            alive[number] = seconds
            await jobs.ask(number, seconds)
        elif key is not None and step == "settle" and jobs.let_in(key):
            alive[key] = min(alive[key], seconds)
            jobs.budget.settle(key, alive[key])
            await turn()
        elif key is not None and step == "end":
            del alive[key]
            await jobs.cancel(key)
            await jobs.release(key)
        inside = [jobs.let_in(each) for each in alive]
        held = [each for each, is_in in zip(alive.values(), inside, strict=True) if is_in]
        assert jobs.budget.held_s == sum(held)
        assert sum(held) <= 100 or len(held) == 1
        assert inside == sorted(inside, reverse=True)
        if len(held) < len(alive):  # nobody waits for nothing
            first = list(alive.values())[len(held)]
            assert held
            assert sum(held) + first > 100
    for key in alive:
        assert jobs.let_in(key)
        await jobs.release(key)
    assert jobs.budget.held_s == 0


class Decoders:
    """The pool's work in threads; remembers what was decoded, and waits for `gate` before."""

    def __init__(self) -> None:
        self.decoded: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def decode(self, source: str, target: str, sampling_rate: int) -> int:
        self.decoded.append(Path(source).name)
        await self.gate.wait()
        limits = DecodeLimits(max_seconds=100, max_decoded_bytes=1 << 28, base_s=50, s_per_minute=1)
        return await asyncio.to_thread(decode_file, source, target, sampling_rate, limits)


class Loading:
    """An audio source under a budget, and the jobs that it loads."""

    def __init__(self, spool: Spool, fetcher: Fetcher, held: Room, budget_s: float) -> None:
        self.spool = spool
        self.decoders = Decoders()
        self.budget = AudioBudget(budget_s)
        times = (5.0, 100.0, 200.0)
        self.source = AudioSource(spool, fetcher, held, self.decoders, self.budget, RATE, *times)  # type: ignore[arg-type]
        self.tasks: dict[object, asyncio.Task] = {}

    def start(self, key: object, *paths_or_urls: str | Path) -> None:
        parts = [
            AudioPart(f"part[{i}]", url=str(each)) if "://" in str(each) else AudioPart(f"part[{i}]", path=str(each))
            for i, each in enumerate(paths_or_urls)
        ]
        self.tasks[key] = asyncio.create_task(self.source.load(key, parts))

    async def seconds(self, key: object) -> list[float]:
        async with asyncio.timeout(GUARD_S):
            return [len(waveform) / RATE for waveform in await self.tasks[key]]

    def loaded(self) -> set[object]:
        return {key for key, task in self.tasks.items() if task.done()}

    def files(self) -> list[str]:
        return [path.name for path in self.spool.directory.glob("*.audio")]


@asynccontextmanager
async def loading(budget_s: float, max_fetched: int = 10**9) -> AsyncIterator[Loading]:
    with open_spool(None, 0) as spool:
        held = Room(max_fetched, too_much)
        fetcher = Fetcher(FetchRules(allow_private=True), spool, held)
        running = Loading(spool, fetcher, held, budget_s)
        try:
            yield running
            assert running.files() == []
            assert held.held == 0
        finally:
            for task in running.tasks.values():
                task.cancel()
            await asyncio.gather(*running.tasks.values(), return_exceptions=True)
            await fetcher.aclose()


async def test_only_as_much_is_decoded_as_fits() -> None:
    """One long recording here; the next when it has ended."""
    async with loading(170) as jobs:  # a reading of 81 seconds reserves 100, the most that one audio may have
        for key in range(4):
            jobs.start(key, DATA / LONG.name)
        assert await jobs.seconds(0) == pytest.approx([LONG.seconds], abs=0.1)
        for key in range(3):
            await turn()
            assert jobs.loaded() == set(range(key + 1))
            assert jobs.decoders.decoded == [LONG.name] * (key + 1)
            assert jobs.budget.held_s == pytest.approx(LONG.seconds, abs=0.1)
            jobs.budget.release(key)
            assert await jobs.seconds(key + 1) == pytest.approx([LONG.seconds], abs=0.1)


async def test_what_was_fetched_and_waits_is_bounded(origin: Origin) -> None:
    """In bytes: who comes with more is refused, and nobody waits for him."""
    async with loading(100, max_fetched=100_000) as jobs:
        jobs.decoders.gate.clear()
        jobs.start("first", origin.url("clip/jfk.ogg"))
        await until(lambda: jobs.decoders.decoded)
        jobs.start("second", origin.url("clip/jfk.webm"))
        with pytest.raises(Overloaded):
            await jobs.seconds("second")
        jobs.decoders.gate.set()
        assert await jobs.seconds("first") == pytest.approx([11.0], abs=0.1)
        jobs.budget.release("first")
        jobs.start("third", origin.url("clip/jfk.webm"))
        assert await jobs.seconds("third") == pytest.approx([11.0], abs=0.1)


async def test_jobs_with_many_clips_never_wait_for_one_another() -> None:
    """Each reserves for all of its clips at once, or waits with none."""
    names = ("jfk.wav", "jfk.mp3", "jfk.ogg", "jfk.webm")
    async with loading(200) as jobs:
        for key in range(6):
            jobs.start(key, *(DATA / name for name in names))
        for key in range(6):
            assert await jobs.seconds(key) == pytest.approx([11.0] * 4, abs=0.1)
            assert jobs.budget.held_s <= 200
            jobs.budget.release(key)
        assert jobs.budget.held_s == 0


async def test_slow_hosts_hold_nothing_up(origin: Origin) -> None:
    """A job that fetches holds none of the budget, and one without audio does not wait for any."""
    async with loading(10) as jobs:
        asked = len(origin.requested)
        origin.release.clear()
        jobs.start("slow", origin.url("clip/jfk.ogg?wait=0"), DATA / "jfk.ogg")
        await until(lambda: len(origin.requested) > asked)
        jobs.start("quick", DATA / "jfk.ogg")
        assert await jobs.seconds("quick") == pytest.approx([11.0], abs=0.1)
        jobs.start("text")
        assert await jobs.seconds("text") == []
        assert jobs.loaded() == {"quick", "text"}
        jobs.budget.release("quick")
        origin.release.set()
        assert await jobs.seconds("slow") == pytest.approx([11.0, 11.0], abs=0.1)


@pytest.fixture
def silence(tmp_path: Path) -> Path:
    """Ninety seconds in a few thousand bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as out:
        stream = out.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 90 * RATE), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        fifo = av.AudioFifo()
        fifo.write(frame)
        while (piece := fifo.read(stream.codec_context.frame_size, partial=True)) is not None:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    path = tmp_path / "silence.flac"
    path.write_bytes(buffer.getvalue())
    assert path.stat().st_size < 40_000
    return path


async def test_what_is_longer_than_its_bytes_say_waits_for_its_true_length(silence: Path) -> None:
    """It is let in by its estimate, and not read into memory before there is room for all of it."""
    async with loading(110) as jobs:
        jobs.start("a", DATA / "jfk.wav")
        await jobs.seconds("a")
        for key in ("b", "c"):
            jobs.start(key, silence)
        await until(lambda: len(jobs.loaded()) == 2)
        (first,) = jobs.loaded() - {"a"}
        (second,) = {"b", "c"} - {first}
        assert await jobs.seconds(first) == pytest.approx([90.0])
        assert jobs.budget.held_s == pytest.approx(101.0, abs=0.1)
        assert jobs.decoders.decoded == ["jfk.wav", *[silence.name] * 3]  # both by their estimates, then one
        jobs.budget.release(first)
        assert await jobs.seconds(second) == pytest.approx([90.0])


async def test_a_wav_reserves_what_it_says() -> None:
    """Uncompressed audio is not taken for many minutes."""
    async with loading(100) as jobs:
        jobs.decoders.gate.clear()
        jobs.start("a", DATA / "jfk.wav")
        await until(lambda: jobs.decoders.decoded)
        assert jobs.budget.held_s == pytest.approx(11.0, abs=0.2)
        jobs.decoders.gate.set()
        await jobs.seconds("a")
        assert jobs.decoders.decoded == ["jfk.wav"]


async def test_a_job_that_is_cancelled_while_it_waits_leaves_nothing(origin: Origin) -> None:
    """No file of what was fetched, no place in the queue."""
    async with loading(100) as jobs:
        jobs.start("a", DATA / "jfk.ogg")
        await jobs.seconds("a")
        jobs.start("b", origin.url("clip/long-readings.ogg"))
        await until(lambda: "b" in jobs.budget._claims)
        jobs.start("c", DATA / "jfk.ogg")
        await turn()
        assert len(jobs.files()) == 1
        assert jobs.loaded() == {"a"}
        jobs.tasks["b"].cancel()
        assert await jobs.seconds("c") == pytest.approx([11.0], abs=0.1)


async def test_a_job_that_fails_leaves_no_file_and_names_the_part(origin: Origin, tmp_path: Path) -> None:
    """Wherever it fails: at its host, in its decoder, or over its bound."""
    (tmp_path / "text").write_text("no audio")
    url = origin.url("clip/jfk.ogg")
    failing = {
        "host": ((url, origin.url("status/404")), BadAudioUrl, "part\\[1\\].*404"),
        "decoder": ((url, DATA / "jfk.ogg", tmp_path / "text"), BadAudio, "part\\[2\\].*FFmpeg"),
        "gone": ((url, tmp_path / "gone"), BadAudio, "part\\[1\\].*gone"),
        "bound": ((url, *[DATA / LONG.name] * 3), AudioTooLong, "all messages.*200"),
    }
    async with loading(1000) as jobs:
        for key, (parts, error, message) in failing.items():
            jobs.start(key, *parts)
            with pytest.raises(error, match=message):
                await jobs.seconds(key)
            assert jobs.files() == []
            jobs.budget.release(key)


@pytest.fixture
def preparer() -> Iterator[Preparer]:
    """A worker's, for the fake model, with room for three of our long readings: one of them as an estimate."""
    settings = Settings(_env_file=None, model="fake", prepare_ahead_s=2 * LONG.seconds + LONG_RESERVES_S + 1)
    with open_spool(None, 0) as spool:
        preparer = Preparer(settings, spool)
        served = load(settings, "cpu")
        preparer.start(served.engine.requests, served.capabilities)
        yield preparer
        preparer.close()


async def test_a_worker_prepares_as_much_audio_as_it_may_hold(preparer: Preparer) -> None:
    """Jobs beyond that wait until others are forgotten; those without audio do not."""

    def job(key: int, *parts: AudioPart | TextPart) -> Job:
        return Job(JobId(0, str(key)), (Message("user", parts),), Sampling())

    jobs = [job(key, AudioPart("part", path=str(DATA / LONG.name))) for key in range(5)]
    tasks = [asyncio.create_task(preparer.prepare(each)) for each in jobs]
    async with asyncio.timeout(GUARD_S):
        await asyncio.gather(*tasks[:3])
        await preparer.prepare(job(9, TextPart("hi")))
        for ended, waiting in ((0, 3), (1, 4)):
            assert not tasks[waiting].done()
            preparer.forget(jobs[ended].id)
            await tasks[waiting]
