"""One download for all who want the same, and none for what its host lets us keep."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, closing
from email.utils import formatdate
from pathlib import Path

import pytest

from audio.fetch_cache import ENTRY_BYTES, FetchCache, freshness_s
from audio.flights import Flights
from audio.spool import Spool, SpoolFiles, open_spool
from errors import BadAudioUrl
from tests.support.fetching import Fetching, fetching
from tests.support.origin import answer, saying, talking
from tests.support.waiting import until

MB = 1_000_000
DATE = "Sat, 28 Nov 2026 08:00:00 GMT"


# ------------------------------------------------------------------------------------------------------ what is allowed


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"cache-control": "max-age=60"}, 60),
        ({"cache-control": "Public, Max-Age=60"}, 60),
        ({"cache-control": 'max-age="60"'}, 60),
        ({"cache-control": "max-age=60, s-maxage=5"}, 5),
        ({"cache-control": "max-age=60, max-age=9"}, 60),
        ({"cache-control": "max-age=60", "age": "50"}, 10),
        ({"cache-control": "max-age=60", "age": "70"}, 0),
        ({"cache-control": "max-age=60", "expires": "0"}, 60),
        ({"cache-control": "max-age=" + "9" * 5000, "age": "9" * 5000}, 0),
        ({"cache-control": "max-age=-1"}, 0),
        ({"cache-control": "max-age=soon"}, 0),
        ({"cache-control": "max-age=60, no-cache"}, 0),
        ({"cache-control": "max-age=60, no-store"}, None),
        ({"cache-control": "max-age=60, private"}, None),
        ({"cache-control": "max-age=60", "vary": "*"}, None),
        ({"cache-control": "max-age=60", "vary": "Accept-Encoding, Origin"}, 60),
        ({"expires": "Sat, 28 Nov 2026 08:01:00 GMT", "date": DATE}, 60),
        ({"expires": "Sat, 28 Nov 2026 07:00:00 GMT", "date": DATE}, 0),
        ({"expires": "0", "date": DATE}, 0),
        ({"expires": "Sat, 28 Nov 2026 08:01:00 GMT", "date": "yesterday"}, 0),
        ({"last-modified": "Sat, 28 Nov 2020 08:00:00 GMT", "date": DATE}, 0),
        ({}, 0),
    ],
)
def test_how_long_an_answer_is_fresh(headers: dict[str, str], seconds: float | None) -> None:
    """As its host says, and no guess where it says nothing."""
    assert freshness_s(headers) == seconds


def test_a_far_expiry_is_far() -> None:
    """Whatever number it is, and by our clock where the host tells none."""
    assert freshness_s({"cache-control": "max-age=" + "9" * 5000}) >= 1e8
    assert 50 < freshness_s({"expires": formatdate(usegmt=True, timeval=time.time() + 60)}) <= 60


# ------------------------------------------------------------------------------------------------------ what is kept


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spool() -> Iterator[Spool]:
    with open_spool(None, 0) as spool:
        yield spool


def audio_files(spool: Spool) -> list[bytes]:
    return sorted(path.read_bytes() for path in spool.directory.glob("*.audio"))


def put(cache: FetchCache, spool: Spool, url: str, data: bytes, status: int = 200, **headers: str) -> None:
    """What was fetched; its own file goes as its request ends."""
    with closing(spool.files()) as files:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        cache.put(url, files.write(data), status, told, cache.clock())


def test_the_bytes_of_all_that_is_kept_are_bounded(spool: Spool) -> None:
    """The least used goes first; what is too large alone is not kept."""
    cache = FetchCache(spool, 3 * (ENTRY_BYTES + 1100), Clock())
    for name in "abc":
        put(cache, spool, name, name.encode() * 1000, cache_control="max-age=9")
    with closing(spool.files()) as files:
        assert cache.take("a", files)
    put(cache, spool, "d", b"d" * 1000, cache_control="max-age=9")
    assert audio_files(spool) == [b"a" * 1000, b"c" * 1000, b"d" * 1000]
    put(cache, spool, "e", b"e" * 20_000, cache_control="max-age=9")
    assert audio_files(spool) == [b"a" * 1000, b"c" * 1000, b"d" * 1000]
    for i in range(50):
        put(cache, spool, "x" * 2000 + str(i), b"", cache_control="max-age=9")
    assert len(audio_files(spool)) == 2  # long addresses and small files count, too


def test_what_is_kept_twice_counts_once(spool: Spool) -> None:
    """The later answer takes the place of the earlier, also where it must not be kept."""
    cache = FetchCache(spool, MB, Clock())
    for data in (b"1", b"2"):
        put(cache, spool, "a", data, cache_control="max-age=9")
    assert audio_files(spool) == [b"2"]
    put(cache, spool, "a", b"3", cache_control="no-store")
    assert audio_files(spool) == []
    assert cache._bytes == 0


@pytest.mark.parametrize("status", [203, 404])
def test_only_whole_and_plain_answers_are_kept(spool: Spool, status: int) -> None:
    """A 200."""
    cache = FetchCache(spool, MB, Clock())
    put(cache, spool, "a", b"1", status, cache_control="max-age=9")
    assert audio_files(spool) == []


def test_what_is_taken_outlives_the_cache(spool: Spool) -> None:
    """A request's audio does not vanish when its entry must go."""
    cache = FetchCache(spool, ENTRY_BYTES + 100, Clock())
    put(cache, spool, "a", b"a", cache_control="max-age=9")
    with closing(spool.files()) as files:
        kept = cache.take("a", files)
        assert kept is not None
        put(cache, spool, "b", b"b", cache_control="max-age=9")
        assert Path(kept.path).read_bytes() == b"a"
        assert cache.take("a", files) is None
    assert audio_files(spool) == [b"b"]


def test_an_answer_ages_from_when_it_was_asked_for(spool: Spool) -> None:
    """And not from when its last byte came."""
    cache = FetchCache(spool, MB, clock := Clock())
    with closing(spool.files()) as files:
        clock.now = 5.0
        cache.put("a", files.write(b"a"), 200, {"cache-control": "max-age=10"}, asked_at=0.0)
        for clock.now, fresh in ((9.9, True), (10.0, False)):
            kept = cache.take("a", files)
            assert kept is not None
            assert cache.is_fresh(kept) is fresh


# ---------------------------------------------------------------------------------------------------- over a connection


def keeping(**rules: object) -> AbstractAsyncContextManager[Fetching]:
    """With a cache."""
    return fetching(**{"cache_bytes": MB, **rules})


async def test_what_is_fresh_is_not_fetched_again() -> None:
    """Nor is its host asked; the part behind the # makes no difference."""
    async with talking(saying(answer(b"audio", Cache_Control="max-age=60"))) as origin, keeping() as fetch:
        for path in ("a", "a#t=1", "a#t=2"):
            assert await fetch.get(origin.url(path)) == b"audio"
        assert len(origin.heads) == 1
        await fetch.get(origin.url("a?b"))
        assert len(origin.heads) == 2


@pytest.mark.parametrize(
    ("headers", "question"),
    [
        ({"ETag": '"v1"'}, 'if-none-match: "v1"'),
        ({"ETag": '"v1"', "Cache_Control": "no-cache"}, 'if-none-match: "v1"'),
        ({"Last_Modified": DATE}, f"if-modified-since: {DATE}"),
    ],
)
async def test_what_may_have_changed_is_asked_about(headers: dict[str, str], question: str) -> None:
    """Not fetched again where its host says that it is the same, over the connection that is there."""
    same = answer(b"", "304 Not Modified")
    talk = saying(answer(b"old", **headers), same, same, answer(b"new", ETag='"v2"'), same)
    async with talking(talk) as origin, keeping() as fetch:
        assert [await fetch.get(origin.url("a")) for _ in range(5)] == [b"old"] * 3 + [b"new"] * 2
        asked = [[line for line in head.splitlines() if line.lower().startswith("if-")] for head in origin.heads]
        assert asked == [[], *[[question]] * 3, ['if-none-match: "v2"']]
        assert origin.connections == 1


async def test_what_is_confirmed_is_fresh_again() -> None:
    """For as long as the confirmation says."""
    still = answer(b"", "304 Not Modified", Cache_Control="max-age=60")
    talk = saying(answer(b"audio", Cache_Control="max-age=60", Age="60", ETag='"v1"'), still)
    async with talking(talk) as origin, keeping() as fetch:
        for _ in range(4):
            assert await fetch.get(origin.url("a")) == b"audio"
        assert len(origin.heads) == 2


async def test_what_nobody_asked_is_no_confirmation() -> None:
    """A 304 for an audio that went stale and had no validator."""
    talk = saying(answer(b"audio", Cache_Control="max-age=60"), answer(b"", "304 Not Modified"))
    async with talking(talk) as origin, keeping() as fetch:
        assert await fetch.get(origin.url("a")) == b"audio"
        fetch.fetcher._cache.clock = lambda: time.monotonic() + 60
        with pytest.raises(BadAudioUrl, match="304"):
            await fetch.get(origin.url("a"))


async def test_what_must_not_be_kept_any_more_is_dropped() -> None:
    """Its host changed its mind."""
    talk = saying(answer(b"audio", ETag='"v1"'), answer(b"", "304 Not Modified", Cache_Control="no-store"), answer(b""))
    async with talking(talk) as origin, keeping() as fetch:
        for _ in range(2):
            assert await fetch.get(origin.url("a")) == b"audio"
        assert fetch.files() == []


@pytest.mark.parametrize(
    "told",
    [
        *({"Cache_Control": "no-store"}, {"Cache_Control": "private, max-age=60"}, {}),
        {"Cache_Control": "max-age=60", "Vary": "*"},
    ],
)
async def test_what_must_not_be_kept_is_fetched_again(told: dict[str, str]) -> None:
    """The cache is everybody's."""
    async with talking(saying(answer(b"audio", **told))) as origin, keeping() as fetch:
        for _ in range(2):
            assert await fetch.get(origin.url("a")) == b"audio"
        assert fetch.files() == []
        assert len(origin.heads) == 2


async def test_nothing_is_kept_where_the_cache_is_off() -> None:
    """`--fetch-cache-mb 0`."""
    async with talking(saying(answer(b"audio", Cache_Control="max-age=60"))) as origin, keeping(cache_bytes=0) as fetch:
        for _ in range(2):
            await fetch.get(origin.url("a"))
        assert len(origin.heads) == 2


async def test_a_failure_is_not_kept() -> None:
    """Also one that broke off in the middle, whatever its head allowed."""
    half = answer(b"half", length=8, Cache_Control="max-age=60")

    async def talk(writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(half if len(origin.heads) == 1 else answer(b"audio"))
        if len(origin.heads) == 1:
            writer.close()

    async with talking(talk) as origin, keeping() as fetch:
        with pytest.raises(BadAudioUrl, match="broke off"):
            await fetch.get(origin.url("a"))
        assert fetch.files() == []
        assert await fetch.get(origin.url("a")) == b"audio"


async def test_redirects_are_followed_anew_to_what_is_kept() -> None:
    """The audio is kept under the address where it stands."""

    async def talk(writer: asyncio.StreamWriter, head: str) -> None:
        there = answer(b"audio", Cache_Control="max-age=60")
        here = answer(b"", "302 Found", Location="/there", Cache_Control="max-age=60")
        writer.write(there if "/there" in head else here)

    async with talking(talk) as origin, keeping() as fetch:
        for path in ("here", "here", "there"):
            assert await fetch.get(origin.url(path)) == b"audio"
        assert [head.split()[1] for head in origin.heads] == ["/here", "/there", "/here"]


async def test_headers_that_are_no_text_are_not_sent_back() -> None:
    """Such a validator is none."""
    talk = saying(b'HTTP/1.1 200 OK\r\nETag: "\xfc"\r\nContent-Length: 1\r\n\r\na')
    async with talking(talk) as origin, keeping() as fetch:
        for _ in range(2):
            assert await fetch.get(origin.url("a")) == b"a"
        assert "if-none-match" not in origin.heads[1].lower()


# ----------------------------------------------------------------------------------------------------- who waits for it


class Gate:
    """An origin that answers once it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def talk(self, writer: asyncio.StreamWriter, _: str) -> None:
        await self.open.wait()
        writer.write(answer(b"audio"))


def asking(fetch: Fetching, url: str, times: int) -> list[asyncio.Task[bytes]]:
    return [asyncio.create_task(fetch.get(url)) for _ in range(times)]


async def test_who_asks_for_the_same_at_once_shares_one_download() -> None:
    """Each has a file of its own of it. Later ones fetch anew."""
    gate = Gate()
    async with talking(gate.talk) as origin, fetching() as fetch:
        tasks = asking(fetch, origin.url("a#1"), 3) + asking(fetch, origin.url("a#2"), 3)
        other = asking(fetch, origin.url("b"), 1)
        await until(lambda: len(origin.heads) == 2)
        gate.open.set()
        assert await asyncio.gather(*tasks, *other) == [b"audio"] * 7
        assert len(origin.heads) == 2
        assert await fetch.get(origin.url("a")) == b"audio"
        assert len(origin.heads) == 3


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    """Not even the one who came first."""
    gate = Gate()
    async with talking(gate.talk) as origin, fetching() as fetch:
        first, second, third = asking(fetch, origin.url("a"), 3)
        await until(lambda: origin.heads)
        first.cancel()
        third.cancel()
        await asyncio.wait([first, third])
        gate.open.set()
        assert await second == b"audio"
        assert len(origin.heads) == 1


async def test_when_all_have_left_the_fetch_ends() -> None:
    """And the next one starts anew."""
    gate = Gate()
    async with talking(gate.talk) as origin, fetching(first_byte_s=60.0) as fetch:
        tasks = asking(fetch, origin.url("a"), 3)
        await until(lambda: origin.heads)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await until(lambda: not fetch.fetcher._flights._tasks)
        (again,) = asking(fetch, origin.url("a"), 1)
        await until(lambda: len(origin.heads) == 2)
        gate.open.set()
        assert await again == b"audio"


async def test_all_who_wait_learn_of_a_failure() -> None:
    """The same one, and their files are gone."""
    gate = Gate()

    async def talk(writer: asyncio.StreamWriter, _: str) -> None:
        await gate.open.wait()
        writer.write(answer(b"", "404 Not Found"))

    async with talking(talk) as origin, fetching() as fetch:
        tasks = asking(fetch, origin.url("a"), 3)
        await until(lambda: origin.heads)
        gate.open.set()
        failures = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(failure) for failure in failures] == ["the host answered with status 404."] * 3
        assert len(origin.heads) == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_nobodys_trouble(spool: Spool) -> None:
    """The last one leaves in its moment: asyncio would complain of an error that nobody looked at."""
    flights, complaints = Flights(spool), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def fail(_: SpoolFiles) -> str:
        waiting[0].cancel()
        raise BadAudioUrl("too late")

    with closing(spool.files()) as files:
        waiting = [asyncio.create_task(flights.join("a", fail, files))]
        await asyncio.wait(waiting)
        assert waiting.pop().cancelled()
    gc.collect()
    assert complaints == []


async def test_closing_ends_what_is_under_way() -> None:
    """No task outlives its fetcher."""
    gate = Gate()
    async with talking(gate.talk) as origin, fetching() as fetch:
        (task,) = asking(fetch, origin.url("a"), 1)
        await until(lambda: origin.heads)
        await fetch.fetcher.aclose()
        assert not fetch.fetcher._flights._tasks
        with pytest.raises(asyncio.CancelledError):
            await task
