"""Audio is fetched from public addresses only, within bounds, and a refusal says why."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from audio.fetch import Fetcher, is_public
from errors import AudioTooLong, BadAudioUrl
from tests.support.origin import Origin
from tests.support.speech import DATA
from tests.support.waiting import until

LIMIT = 1_000_000


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("192.0.0.8", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "3fff::1", "5f00::1"),
    ],
)
def test_private_and_special_addresses_are_not_public(address: str) -> None:
    """Also those that carry a private IPv4 address inside, and those that Python's `is_global` lets pass."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_ordinary_addresses_are_public(address: str) -> None:
    """Those are what users mean."""
    assert is_public(address)


async def fetch(url: str, target: Path, allow_private: bool = True, max_bytes: int = LIMIT) -> None:
    target.write_bytes(b"")  # noqa: ASYNC240
    fetcher = Fetcher(max_bytes, 2, allow_private)
    try:
        async with asyncio.timeout(20):
            await fetcher.fetch(url, target)
    finally:
        await fetcher.aclose()


async def test_a_clip_comes_as_it_is(origin: Origin, tmp_path: Path) -> None:
    """Byte for byte, also behind a redirect."""
    for path in ("clip/jfk.ogg", "redirect/clip/jfk.ogg", "redirect/redirect/clip/jfk.ogg"):
        await fetch(origin.url(path), tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == (DATA / "jfk.ogg").read_bytes()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "127.1", "2130706433"])
async def test_loopback_is_refused_unless_allowed(name: str, origin: Origin, tmp_path: Path) -> None:
    """By whatever name; the origin is never asked."""
    before = len(origin.requested)
    url = origin.url("clip/jfk.ogg").replace("127.0.0.1", name)
    with pytest.raises(BadAudioUrl):
        await fetch(url, tmp_path / "out", allow_private=False)
    assert len(origin.requested) == before


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("status/404", BadAudioUrl, "status 404"),
        ("status/500", BadAudioUrl, "status 500"),
        ("loop/", BadAudioUrl, "redirects more than 2 times"),
        ("astray/http:%2F%2F[::1]:port%2F", BadAudioUrl, "connection|URL"),
        ("astray/http:%2F%2Fxn--a-.invalid%2F", BadAudioUrl, "connection|URL"),
        ("astray/file:%2F%2F%2Fetc%2Fpasswd", BadAudioUrl, "http"),
        ("astray/" + "a" * 20_000, BadAudioUrl, "connection|URL"),
        ("gzip/jfk.ogg", BadAudioUrl, "content-encoding"),
        ("endless/", AudioTooLong, "1000000 bytes"),
    ],
)
async def test_what_an_origin_does_wrong_is_told(path, error, message, origin: Origin, tmp_path: Path) -> None:
    """The client learns what was wrong, within the bounds."""
    with pytest.raises(error, match=message):
        await fetch(origin.url(path), tmp_path / "out")


async def test_a_declared_length_over_the_limit_is_refused_at_once(origin: Origin, tmp_path: Path) -> None:
    """Before the body is read."""
    with pytest.raises(AudioTooLong):
        await fetch(origin.url("clip/jfk.ogg"), tmp_path / "out", max_bytes=1000)
    assert (tmp_path / "out").stat().st_size == 0


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com/a.ogg", "/etc/passwd", "jfk.ogg", "", "http://", "https:///a"),
        *("http://user:secret@example.com/a", "http://exa\nmple.com/", "http://example.com\\@127.0.0.1/", "gopher://x"),
        "http://example.com/" + "a" * 9000,
        "http://example.com:99999/",
    ],
)
async def test_what_is_not_an_address_is_refused(url: str, tmp_path: Path) -> None:
    """Other schemes, paths, credentials, tricks with separators."""
    with pytest.raises(BadAudioUrl) as caught:
        await fetch(url, tmp_path / "out")
    assert "secret" not in str(caught.value)


async def test_a_name_that_does_not_resolve_and_a_port_that_nobody_serves(tmp_path: Path) -> None:
    """Both are the client's to mend."""
    with pytest.raises(BadAudioUrl, match="resolved"):
        await fetch("http://no-such-host.invalid/a.ogg", tmp_path / "out")
    with pytest.raises(BadAudioUrl, match="connection failed"):
        await fetch("http://127.0.0.1:1/a.ogg", tmp_path / "out")


async def test_cookies_are_not_kept(origin: Origin, tmp_path: Path) -> None:
    """What one user's origin sets must not be sent for another user."""
    (tmp_path / "out").touch()
    fetcher = Fetcher(LIMIT, 2, allow_private=True)
    try:
        for _ in range(2):
            await fetcher.fetch(origin.url("cookie/"), tmp_path / "out")
            assert (tmp_path / "out").read_bytes() == b"none"
    finally:
        await fetcher.aclose()


async def test_slow_name_servers_hold_up_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are resolved in threads of their own, not in those that the event loop lends to everybody."""
    released, asked = threading.Event(), []

    def stuck(host: str, *_: object, **__: object) -> list:
        asked.append(host)
        released.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", stuck)
    waiting = [asyncio.ensure_future(fetch(f"http://host{i}.invalid/", tmp_path / "out")) for i in range(16)]
    try:
        await until(lambda: len(asked) >= 4)
        async with asyncio.timeout(5):
            await asyncio.to_thread(lambda: None)
    finally:
        released.set()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_all_addresses_of_a_name_are_tried(origin: Origin, tmp_path: Path, monkeypatch) -> None:
    """A name whose first address does not answer is not lost."""
    port = int(origin.base_url.rpartition(":")[2])
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    await fetch(f"http://two.invalid:{port}/clip/jfk.ogg", tmp_path / "out")
    assert (tmp_path / "out").stat().st_size > 0
