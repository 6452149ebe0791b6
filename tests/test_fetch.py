"""Audio is fetched within bounds, from checked addresses only, and a refusal says why and tells nothing else."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import cast

import httpcore
import pytest

from audio.budget import AudioBudget
from audio.pool import DecodePool
from audio.source import AudioSource
from audio.transport import KEPT_CONNECTIONS, MAX_READ_BYTES, MeteredStream
from errors import AudioTooLong, BadAudioUrl, Overloaded
from tests.support.fetching import LIMIT, fetching
from tests.support.origin import Origin, Talk, answer, saying, talking
from tests.support.speech import DATA
from tests.support.waiting import until
from wire import AudioPart

PUBLIC, PRIVATE, LINK_LOCAL = "93.184.216.34", "127.0.0.1", "169.254.169.254"
LOOPBACK = (ip_network("127.0.0.1/32"),)
SECRET = "hunter2"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NO_DECODERS = cast("DecodePool", None)  # nothing comes so far


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lets names resolve to what a test says: one answer after another, the last one for ever. Gives what was asked."""

    def names(*answers: tuple[str, ...] | str) -> list[str]:
        left, asked = list(answers), []

        def getaddrinfo(host: str, port: int, **_: object) -> list:
            asked.append(host)
            ips = left.pop(0) if len(left) > 1 else left[0]
            ips = (ips,) if isinstance(ips, str) else ips
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return names


async def refusal(url: str, error: type[Exception] = BadAudioUrl, **rules: object) -> str:
    """What a client is told, where it is told no addresses, headers or bodies."""
    async with fetching(**rules) as fetch:
        with pytest.raises(error) as caught:
            await fetch.get(url)
    for inner in (SECRET, PRIVATE, LINK_LOCAL, "10.0.0.1", "::1"):
        assert inner not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ what is fetched


async def test_a_clip_comes_as_it_is(origin: Origin) -> None:
    """Byte for byte, also behind a redirect."""
    async with fetching() as fetch:
        for path in ("clip/jfk.ogg", "redirect/clip/jfk.ogg", "redirect/redirect/clip/jfk.ogg"):
            assert await fetch.get(origin.url(path)) == (DATA / "jfk.ogg").read_bytes()


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("status/404", BadAudioUrl, "status 404"),
        ("status/500", BadAudioUrl, "status 500"),
        ("loop/", BadAudioUrl, "redirects more than 2 times"),
        ("astray/http:%2F%2F[::1]:port%2F", BadAudioUrl, "URL"),
        ("astray/http:%2F%2Fxn--a-.invalid%2F", BadAudioUrl, "URL"),
        ("astray/file:%2F%2F%2Fetc%2Fpasswd", BadAudioUrl, "http"),
        ("astray/" + "a" * 20_000, BadAudioUrl, "URL"),
        ("gzip/jfk.ogg", BadAudioUrl, "content-encoding"),
        ("endless/", AudioTooLong, "1000000 bytes"),
    ],
)
async def test_what_an_origin_does_wrong_is_told(path, error, message, origin: Origin) -> None:
    """The client learns what was wrong, within the bounds."""
    assert message in await refusal(origin.url(path), error)


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        (saying(answer(b"half", length=8), close=True), "broke off"),
        (saying(CHUNKED + b"4\r\nhalf\r\n", close=True), "broke off"),
        (saying(CHUNKED + b"4\r\nhalf\r\nzz\r\n"), "broke off"),
        (saying(CHUNKED + b"1\r\nx\r\n" * 1001), "too many small pieces"),
        (saying(b"", close=True), "connection failed"),
        (saying(f"{SECRET} is not HTTP\r\n\r\n".encode()), "connection failed"),
        (saying(answer(b"", length=10**30)), "connection failed"),
        (saying(answer(b"", "101 Switching Protocols", Upgrade="x", Connection="Upgrade")), "connection failed"),
        (saying(answer(SECRET.encode(), "403 Forbidden", X_Inner=SECRET)), "status 403"),
        (saying(answer(b"a part", "206 Partial Content", Content_Range="bytes 0-5/100")), "status 206"),
        (saying(answer(b"", "304 Not Modified")), "status 304"),
        (saying(answer(b"", "302 Found")), "without saying where"),
        (saying(answer(b"", "302 Found", Location=f"http://me:{SECRET}@10.0.0.1/")), "user name or password"),
        (saying(answer(gzip.compress(b"\0" * 10_000_000), Content_Encoding="gzip")), "content-encoding"),
        (saying(answer(b"", X_Large="x" * 70_000)), "head of the host's answer is too large"),
        (
            saying(b"HTTP/1.1 200 OK\r\n" + b"x-more: y\r\n" * 10_000 + b"\r\n"),
            "head of the host's answer is too large",
        ),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000), "head of the host's answer is too large"),
    ],
)
async def test_what_an_origin_says_wrong_is_told(talk: Talk, message: str) -> None:
    """Whatever bytes it sends."""
    async with talking(talk) as origin:
        assert message in await refusal(origin.url(SECRET))


async def test_a_few_early_hints_do_no_harm() -> None:
    """A 1xx is no answer yet."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3
    async with talking(saying(hints + answer(b"audio"))) as origin, fetching() as fetch:
        assert await fetch.get(origin.url("a")) == b"audio"


async def test_redirects_are_followed_as_often_as_allowed() -> None:
    """Here twice; and what refuses an answer leaves no connection behind."""
    async with talking(saying(answer(b"", "302 Found", Location="/again"))) as origin, fetching() as fetch:
        with pytest.raises(BadAudioUrl, match="more than 2 times"):
            await fetch.get(origin.url("a"))
        assert len(origin.heads) == 3
        await until(lambda: not origin.open)


async def test_a_declared_length_over_the_limit_is_refused_at_once() -> None:
    """Before the body is read: here it never comes."""
    async with talking(saying(answer(b"", length=LIMIT + 1))) as origin:
        assert "limit" in await refusal(origin.url("a"), AudioTooLong)


async def test_bytes_are_counted_while_they_come() -> None:
    """Up to the limit, whatever the head says."""
    async with talking(saying(CHUNKED + b"64\r\n" + b"a" * 100 + b"\r\n0\r\n\r\n")) as origin:
        assert "99 bytes" in await refusal(origin.url("a"), AudioTooLong, max_bytes=99)
        async with fetching(max_bytes=100) as fetch:
            assert await fetch.get(origin.url("a")) == b"a" * 100


async def test_small_pieces_are_well_where_they_are_few() -> None:
    """Or not so small."""
    for pieces in (b"1\r\nx\r\n" * 1000, (b"28\r\n" + b"x" * 40 + b"\r\n") * 2000):
        async with talking(saying(CHUNKED + pieces + b"0\r\n\r\n")) as origin, fetching() as fetch:
            assert set(await fetch.get(origin.url("a"))) == set(b"x")


# ----------------------------------------------------------------------------------------------------------------- time


async def silent(_: asyncio.StreamWriter, __: str) -> None:
    await asyncio.Event().wait()


async def hinting(writer: asyncio.StreamWriter, _: str) -> None:
    """Never silent, and never says anything."""
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)


def dripping(size: int, times: int) -> Talk:
    """So many bytes every 50 ms."""

    async def talk(writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(answer(length=size * times))
        for _ in range(times):
            writer.write(b"a" * size)
            await writer.drain()
            await asyncio.sleep(0.05)

    return talk


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        *((silent, "did not answer in time"), (hinting, "did not answer in time")),
        *((dripping(1, 1000), "too slowly"), (saying(answer(b"", length=5)), "too slowly")),
    ],
)
async def test_who_keeps_us_waiting_is_given_up(talk: Talk, message: str) -> None:
    """Long before the time of a request is over, and its connection is closed."""
    async with talking(talk) as origin:
        assert message in await refusal(origin.url("a"), first_byte_s=0.3, pace_s=0.3)
        origin.stop_talking()
        await until(lambda: not origin.open)


async def test_who_is_given_up_in_the_handshake_is_let_go() -> None:
    """Here a host that never says a word of TLS; its connection is closed at once."""
    async with talking(silent) as origin, fetching(first_byte_s=0.3) as fetch:
        with pytest.raises(BadAudioUrl, match="did not answer in time"):
            await fetch.get(origin.url("a").replace("http:", "https:"))
        assert origin.connections == 1
        await until(lambda: not origin.open)


async def test_only_so_many_connections_are_kept() -> None:
    """However many there were at once."""
    together = asyncio.Barrier(KEPT_CONNECTIONS + 4)

    async def talk(writer: asyncio.StreamWriter, _: str) -> None:
        await together.wait()
        writer.write(answer(b"audio"))

    async with talking(talk) as origin, fetching() as fetch:
        await asyncio.gather(*(fetch.get(origin.url(f"{i}")) for i in range(together.parties)))
        await until(lambda: origin.open == KEPT_CONNECTIONS)


async def test_who_sends_steadily_has_time() -> None:
    """A long audio takes as long as it takes."""
    async with talking(dripping(1000, 20)) as origin, fetching(pace_s=0.2) as fetch:
        assert len(await fetch.get(origin.url("a"))) == 20_000


async def test_all_audio_of_a_request_has_one_deadline() -> None:
    """`--fetch-timeout`, for hosts that are steady, but slow."""
    async with talking(dripping(1000, 1000)) as origin, fetching() as fetch:
        source = AudioSource(fetch.spool, fetch.fetcher, fetch.held, NO_DECODERS, AudioBudget(10), 16_000, 0.3, 60, 60)
        parts = [AudioPart("first", url=origin.url("a")), AudioPart("second", url=origin.url("b"))]
        with pytest.raises(BadAudioUrl, match=r"`first`: .* within 0.3 seconds"):
            await source.load("job", parts)


async def test_what_comes_at_once_is_bounded() -> None:
    """By all fetches together."""
    async with talking(dripping(50_000, 16)) as origin, fetching(max_held=1_500_000) as fetch:
        gets = [fetch.get(origin.url(name)) for name in "ab"]
        results = await asyncio.gather(*gets, return_exceptions=True)
        assert [type(result) for result in results if isinstance(result, Exception)] == [Overloaded]


async def test_a_fetch_that_is_given_up_leaves_nothing() -> None:
    """No connection, and no file."""
    async with talking(dripping(1, 1000)) as origin, fetching() as fetch:
        task = asyncio.create_task(fetch.get(origin.url("a")))
        await until(lambda: fetch.files())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not fetch.files()
        origin.stop_talking()
        await until(lambda: not origin.open)


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    "name",
    [
        *("127.0.0.1", "localhost", "localhost.", "[::1]", "0.0.0.0", "127.1", "2130706433", "0x7f.1", "0177.0.0.1"),
        *("0x7f000001", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]"),
        *("[2002:7f00:1::]", "[fe80::1]", "169.254.169.254", "0xA9FEA9FE", "100.64.0.1", "10.0.0.1", "①②⑦.0.0.1"),
    ],
)
async def test_private_addresses_are_refused_unless_allowed(name: str, origin: Origin) -> None:
    """By whatever name; the origin is never asked."""
    before = len(origin.requested)
    url = origin.url("clip/jfk.ogg").replace("127.0.0.1", name)
    told = await refusal(url, allow_private=False)
    assert "not a public one" in told or "not a valid URL" in told
    assert len(origin.requested) == before


async def test_an_allowed_network_and_no_other(origin: Origin) -> None:
    """`--allow-networks` opens that one."""
    async with fetching(allow_private=False, allow_networks=LOOPBACK) as fetch:
        assert await fetch.get(origin.url("clip/jfk.ogg"))
    assert "not a public one" in await refusal("http://10.0.0.1/", allow_private=False, allow_networks=LOOPBACK)


async def test_one_private_address_among_several_is_enough(resolves) -> None:
    """Which of them would be dialled is nobody's to say."""
    for answers in ((PUBLIC, PRIVATE), (PRIVATE, PUBLIC), (PUBLIC, PUBLIC, LINK_LOCAL)):
        resolves(answers)
        assert "not a public one" in await refusal("http://two.invalid/a", allow_private=False)


async def test_a_name_is_resolved_once_and_that_address_dialled(resolves) -> None:
    """A second answer, a private one, is never asked for: what was checked is what is connected to."""
    asked = resolves(PRIVATE, LINK_LOCAL)
    async with talking(saying(answer(b"audio", Connection="close"))) as origin:
        async with fetching(allow_private=False, allow_networks=LOOPBACK) as fetch:
            assert await fetch.get(origin.url("a", "twice.invalid")) == b"audio"
            assert asked == ["twice.invalid"]
            with pytest.raises(BadAudioUrl, match="not a public one"):  # a new connection, checked anew
                await fetch.get(origin.url("a", "twice.invalid"))
        assert origin.connections == 1
        assert "Host: twice.invalid:" in origin.heads[0]


@pytest.mark.parametrize(
    ("location", "message", "rules"),
    [
        ("http://127.0.0.9/", "not a public one", {}),
        ("http://169.254.169.254/latest/meta-data", "not a public one", {}),
        ("http://127.0.0.1:22/", "port", {"allow_ports": (range(1024, 65536),)}),
        ("http://elsewhere.invalid/", "domain", {"allow_domains": ("127.0.0.1",)}),
        ("ftp://127.0.0.1/", "only http", {}),
    ],
)
async def test_every_hop_is_checked(location: str, message: str, rules: dict) -> None:
    """A redirect is an address like any other."""
    async with talking(saying(answer(b"", "302 Found", Location=location))) as origin:
        told = await refusal(origin.url("a"), allow_private=False, allow_networks=LOOPBACK, **rules)
        assert message in told
        assert len(origin.heads) == 1


async def test_rules_hold_for_the_first_address() -> None:
    """Before anything is resolved."""
    assert "https" in await refusal("http://a.invalid/", allow_http=False)
    assert "domain" in await refusal("http://a.invalid/", allow_domains=("b.invalid",))
    assert "port" in await refusal("http://a.invalid:22/", allow_ports=(range(80, 81),))


async def test_a_name_that_does_not_resolve_and_a_port_that_nobody_serves() -> None:
    """Both are the client's to mend."""
    assert "resolved" in await refusal("http://no-such-host.invalid/a.ogg")
    assert "connection failed" in await refusal("http://127.0.0.1:1/a.ogg")


async def test_a_name_without_addresses(resolves) -> None:
    """Some resolvers have an answer with nothing in it."""
    resolves(())
    assert "resolved" in await refusal("http://nothing.invalid/a.ogg")


async def test_slow_name_servers_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are resolved in threads of their own, not in those that the event loop lends to everybody."""
    released, asked = threading.Event(), []

    def stuck(host: str, *_: object, **__: object) -> list:
        asked.append(host)
        released.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    async with fetching() as fetch:
        waiting = [asyncio.ensure_future(fetch.get(f"http://host{i}.invalid/")) for i in range(16)]
        try:
            await until(lambda: len(asked) >= 4)
            async with asyncio.timeout(5):
                await asyncio.to_thread(lambda: None)
        finally:
            released.set()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_all_addresses_of_a_name_are_tried(origin: Origin, resolves) -> None:
    """A name whose first address does not answer is not lost."""
    resolves(("127.0.0.9", "127.0.0.1"))
    async with fetching() as fetch:
        assert await fetch.get(origin.url("clip/jfk.ogg").replace("127.0.0.1", "two.invalid"))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of audio.test, with its key, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    path = tmp_path_factory.mktemp("tls") / "audio.test.pem"
    names = ["-subj", "/CN=audio.test", "-addext", "subjectAltName=DNS:audio.test"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", path, "-out", f"{path}.crt"]
    subprocess.run(make, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


async def test_certificates_are_held_against_names(certificate: Path, resolves) -> None:
    """Though an address is dialled that was resolved before."""
    trusting = ssl.create_default_context(cafile=certificate)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(certificate)
    resolves(PRIVATE)
    async with talking(saying(answer(b"audio")), theirs) as origin:
        url = origin.url("a", "audio.test").replace("http:", "https:")
        async with fetching(ssl_context=trusting) as fetch:
            for _ in range(2):
                assert await fetch.get(url) == b"audio"
            assert origin.connections == 1
            with pytest.raises(BadAudioUrl, match="connection failed"):
                await fetch.get(url.replace("audio.test", "other.test"))
        async with fetching() as fetch:
            with pytest.raises(BadAudioUrl, match="connection failed"):
                await fetch.get(url)


# ---------------------------------------------------------------------------------------------------------- connections


async def test_cookies_are_not_kept(origin: Origin) -> None:
    """What one user's origin sets must not be sent for another user."""
    async with fetching() as fetch:
        for _ in range(2):
            assert await fetch.get(origin.url("cookie/")) == b"none"


async def test_a_connection_is_used_again() -> None:
    """The second clip from a host costs no second handshake, nor a second look-up."""
    async with talking(saying(answer(b"audio"))) as origin, fetching() as fetch:
        for i in range(3):
            assert await fetch.get(origin.url(f"{i}")) == b"audio"
        assert origin.connections == 1


async def test_kept_connections_that_their_host_closes_are_no_failure() -> None:
    """Hosts close idle ones when they like, at times in the moment of the next request; here all of them."""
    together = asyncio.Barrier(3)

    async def once(writer: asyncio.StreamWriter, head: str) -> None:
        if writer in served:
            writer.close()  # read the request, and went
            return
        if "last" not in head:
            await together.wait()
        served.append(writer)
        writer.write(answer(b"audio"))

    served: list[asyncio.StreamWriter] = []
    async with talking(once) as origin, fetching() as fetch:
        assert await asyncio.gather(*(fetch.get(origin.url(f"{i}")) for i in range(3))) == [b"audio"] * 3
        assert await fetch.get(origin.url("last")) == b"audio"
        assert (origin.connections, len(origin.heads)) == (4, 3 + 4)


async def test_a_new_connection_that_fails_is_not_tried_again() -> None:
    """Once is enough."""
    async with talking(saying(b"", close=True)) as origin:
        await refusal(origin.url("a"))
        assert origin.connections == 1


async def test_what_stands_behind_an_answer_is_no_answer() -> None:
    """A body longer than its length says, here with a whole second answer in it: the length holds."""
    async with (
        talking(saying(answer(b"first") + answer(b"smuggled"), answer(b"second"))) as origin,
        fetching() as fetch,
    ):
        assert await fetch.get(origin.url("1")) == b"first"
        assert await fetch.get(origin.url("2")) == b"second"
        await until(lambda: origin.open == 1)  # where the two were mixed up is closed


async def test_what_comes_unasked_is_no_answer() -> None:
    """A second answer that arrives on a connection while it is kept."""
    writers = []

    async def talk(writer: asyncio.StreamWriter, head: str) -> None:
        writers.append(writer)
        writer.write(answer(head.split()[1].encode()))

    async with talking(talk) as origin, fetching() as fetch:
        assert await fetch.get(origin.url("1")) == b"/1"
        writers[0].write(answer(b"smuggled"))
        (line,) = fetch.fetcher._client._transport._kept
        await until(line.connection.has_expired)
        assert await fetch.get(origin.url("2")) == b"/2"


async def test_slow_hosts_take_nobodys_connection() -> None:
    """However many of their clips are waited for."""
    async with talking(silent) as slow, talking(saying(answer(b"audio"))) as quick, fetching() as fetch:
        waiting = [asyncio.create_task(fetch.get(slow.url(f"{i}"))) for i in range(120)]
        await until(lambda: slow.open == 120)
        assert await fetch.get(quick.url("a")) == b"audio"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_environment_proxies_are_not_used(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would dial what was not checked."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    async with fetching() as fetch:
        assert await fetch.get(origin.url("clip/jfk.ogg"))


async def test_only_so_much_is_read_at_once() -> None:
    """What is read is parsed without a pause, and nobody else's fetch goes on meanwhile."""
    asked = []

    class Stream(httpcore.AsyncMockStream):
        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- httpcore's
            asked.append(max_bytes)
            return await super().read(max_bytes, timeout)

    stream = MeteredStream(Stream([b"head", b"body"]))
    await stream.write(b"GET")
    assert await stream.read(1 << 20) == b"head"
    stream.begin_body()
    assert await stream.read(1 << 20) == b"body"
    assert asked == [MAX_READ_BYTES, MAX_READ_BYTES]
