"""What may be asked and dialled is told from the address alone; a refusal says why, and nothing more."""

from __future__ import annotations

from ipaddress import ip_network

import httpx
import pytest

from audio.addresses import FetchRules, checked, domain, is_public, port_range, redirected
from config import Settings
from errors import BadAudioUrl

ANY = FetchRules()


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
    assert not ANY.allows_address(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_ordinary_addresses_are_public(address: str) -> None:
    """Those are what users mean."""
    assert is_public(address)
    assert ANY.allows_address(address)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        *(("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("fd00::5", True), ("fd00::5%eth0", True), ("8.8.8.8", True)),
        *(("10.2.2.3", False), ("fd01::5", False), ("127.0.0.1", False), ("::ffff:127.0.0.1", False)),
        *(("::10.1.2.3", False), ("64:ff9b::a01:203", False), ("2002:a01:203::", False)),
    ],
)
def test_a_private_network_may_be_allowed(address: str, allowed: bool) -> None:
    """It alone, beside the public addresses; not by the detours that carry an address inside another."""
    rules = FetchRules(allow_networks=(ip_network("10.1.0.0/16"), ip_network("fd00::/16")))
    assert rules.allows_address(address) is allowed
    assert FetchRules(allow_private=True).allows_address(address)


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com/a.ogg", "/etc/passwd", "jfk.ogg", "", "http://", "https:///a"),
        *("http://user:secret@example.com/a", "http://exa\nmple.com/", "http://example.com\\@127.0.0.1/", "gopher://x"),
        *("http://example.com/" + "a" * 9000, "http://example.com:99999/", "http://example.com:0/", "http://./"),
        *("http://:80/", "http://[::1", "http://xn--a-.invalid/"),
        "http://example.com/\u202egpj.live",
    ],
)
def test_what_is_not_an_address_is_refused(url: str) -> None:
    """Other schemes, paths, credentials, tricks with separators."""
    with pytest.raises(BadAudioUrl) as caught:
        checked(url, ANY)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "fetched"),
    [
        ("http://EXAMPLE.com./a?b=c#part", "http://example.com/a?b=c"),
        ("https://example.com:443/", "https://example.com/"),
        ("https://example.com:8443", "https://example.com:8443"),
        ("http://bücher.example/ü", "http://xn--bcher-kva.example/%C3%BC"),
        ("http://[2606:4700::1111]/a", "http://[2606:4700::1111]/a"),
    ],
)
def test_an_address_is_fetched_in_one_form(url: str, fetched: str) -> None:
    """Whatever says the same is the same: to the rules, the connections and the cache."""
    assert str(checked(url, ANY)) == fetched


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        *(("http://example.org/a", True), ("https://EXAMPLE.org./a", True), ("http://example.org:8080/", True)),
        *(("http://a.cdn.example/", True), ("http://a.b.cdn.example/", True), ("http://xn--bcher-kva.de/", True)),
        *(("http://cdn.example/", False), ("http://evilcdn.example/", False), ("http://www.example.org/", False)),
        *(("http://example.org.evil.com/", False), ("http://evil.com/example.org", False), ("http://1.1.1.1/", False)),
    ],
)
def test_domains_may_be_all_that_is_allowed(url: str, allowed: bool) -> None:
    """Whole names, or all names below one."""
    rules = FetchRules(allow_domains=tuple(map(domain, ("Example.ORG.", ".cdn.example", "bücher.de"))))
    if allowed:
        checked(url, rules)
    else:
        with pytest.raises(BadAudioUrl, match="domain"):
            checked(url, rules)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        *(("http://a.example/", True), ("https://a.example/", True), ("http://a.example:443/", True)),
        *(("http://a.example:8000/", True), ("http://a.example:8101/", False), ("http://a.example:22/", False)),
    ],
)
def test_ports_may_be_all_that_is_allowed(url: str, allowed: bool) -> None:
    """Those of the schemes count where none is written."""
    rules = FetchRules(allow_ports=tuple(map(port_range, ("80", "443", "8000-8100"))))
    if allowed:
        checked(url, rules)
    else:
        with pytest.raises(BadAudioUrl, match="port"):
            checked(url, rules)


def test_http_may_be_off() -> None:
    """Then https is all there is."""
    rules = FetchRules(allow_http=False)
    checked("https://a.example/", rules)
    with pytest.raises(BadAudioUrl, match="https addresses only"):
        checked("http://a.example/", rules)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        *(("http://a.example/", "from https to http"), ("//b.example:22/", "port"), ("//other.com/", "domain")),
        *(("file:///etc/passwd", "http"), ("//u:secret@a.example/", "password"), ("", "where"), (None, "where")),
        *(
            ("//[::1]:port/", "valid"),
            ("/" + "a" * 9000, "valid"),
            ("\\\\b.example", "valid"),
            ("//xn--a-.a/", "valid"),
        ),
    ],
)
def test_where_a_redirect_leads_is_checked(location: str | None, message: str) -> None:
    """Like the address that the client gave, and never back to where others can read along."""
    rules = FetchRules(allow_domains=("a.example", "b.example"), allow_ports=(range(80, 81), range(443, 444)))
    with pytest.raises(BadAudioUrl, match=message) as caught:
        redirected(httpx.URL("https://a.example/dir/x"), location, rules)
    assert "secret" not in str(caught.value)
    assert str(redirected(httpx.URL("https://a.example/dir/x"), "y", rules)) == "https://a.example/dir/y"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"allow_domains": "https://a.example"}, {"allow_domains": "*.example"}, {"allow_domains": "a.example:80"}),
        *(
            {"allow_networks": "10.0.0.1/8"},
            {"allow_networks": "ten"},
            {"allow_ports": "http"},
            {"allow_ports": "1-2-3"},
        ),
    ],
)
def test_rules_that_would_never_hold_are_refused_at_the_start(wrong: dict[str, str]) -> None:
    """Rather than refuse every address later."""
    with pytest.raises(ValueError, match="allow_"):
        Settings(_env_file=None, **wrong)
