"""Which addresses may be fetched from: pure rules over URLs, names, ports and IP addresses. No I/O.

What a URL says is checked here before anything is looked up, on every redirect anew; what a name resolves to is
checked with `FetchRules.allows_address` by the connection that dials it (`transport.py`).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import httpx

from errors import BadAudioUrl

MAX_URL_CHARS = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Ranges that `ipaddress` takes for global on some supported Python versions although nothing public answers there,
# or that carry a private IPv4 address inside (RFC 6052, 3056, 4380; IANA's special-purpose registries).
_NOT_PUBLIC = [
    ipaddress.ip_network(block)
    for block in (
        *("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24"),
        *("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/23", "2002::/16"),
        *("3fff::/20", "5f00::/16", "fec0::/10"),
    )
]


@dataclass(frozen=True)
class FetchRules:
    """What a worker fetches, and within which bounds.

    `allow_domains`: names as `domain` gives them, with a leading dot for all names below; none: every name.
    `allow_networks`: beside the public addresses; `allow_private`: all others, too.
    `first_byte_s`: until the head of each answer is there. `min_bytes_per_s`: of its body from then on, taken over
    `pace_s`, so that a drip ends after that time and a hiccup does not matter.
    """

    max_bytes: int = 25_000_000
    max_redirects: int = 5
    allow_http: bool = True
    allow_ports: tuple[range, ...] = (range(1, 65536),)
    allow_domains: tuple[str, ...] = ()
    allow_networks: tuple[Network, ...] = ()
    allow_private: bool = False
    first_byte_s: float = 5.0
    min_bytes_per_s: float = 8000.0
    pace_s: float = 3.0
    cache_bytes: int = 0

    def allows_host(self, host: str) -> bool:
        """Whether a name, or an address that stands in its place, may be asked."""
        return not self.allow_domains or any(
            host.endswith(domain) if domain.startswith(".") else host == domain for domain in self.allow_domains
        )

    def allows_port(self, port: int) -> bool:
        return any(port in ports for ports in self.allow_ports)

    def allows_address(self, address: str) -> bool:
        """Whether an IP address may be dialled."""
        if self.allow_private or is_public(address):
            return True
        ip = _plain_ip(address)
        return any(ip in network for network in self.allow_networks if network.version == ip.version)


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet may be sent to."""
    ip = _plain_ip(address)
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_link_local:
        return False
    return not any(ip in block for block in _NOT_PUBLIC if block.version == ip.version)


def _plain_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """As IPv4 where it is IPv4 in IPv6's clothes."""
    ip = ipaddress.ip_address(address)
    return getattr(ip, "ipv4_mapped", None) or ip


def checked(url: str, rules: FetchRules) -> httpx.URL:
    """The address, parsed once and by the library that fetches it, as it will be fetched: without its fragment, and
    without the dot at the end of a name. Raises `BadAudioUrl` for one that `rules` do not allow."""
    if len(url) > MAX_URL_CHARS or "\\" in url or not url.isprintable():
        raise BadAudioUrl("the address is not a valid URL.")
    try:
        parsed = httpx.URL(url)
        parsed = parsed.copy_with(fragment=None, host=parsed.host.removesuffix("."))
    except (httpx.InvalidURL, ValueError) as error:
        raise BadAudioUrl("the address is not a valid URL.") from error
    if parsed.scheme not in _DEFAULT_PORTS:
        raise BadAudioUrl("only http(s) addresses and data URIs are accepted.")
    if not parsed.host or parsed.userinfo:
        raise BadAudioUrl("the address needs a host and must not carry a user name or password.")
    _check_rules(parsed, rules)
    return parsed


def _check_rules(url: httpx.URL, rules: FetchRules) -> None:
    if url.scheme == "http" and not rules.allow_http:
        raise BadAudioUrl("this server fetches https addresses only.")
    if not rules.allows_host(url.raw_host.decode("ascii")):
        raise BadAudioUrl("this server does not fetch from the address's domain.")
    if not rules.allows_port(_DEFAULT_PORTS[url.scheme] if url.port is None else url.port):
        raise BadAudioUrl("this server does not fetch from the address's port.")


def redirected(url: httpx.URL, location: str | None, rules: FetchRules) -> httpx.URL:
    """Where an answer of `url` leads, checked like any address. Not from https to http, where others can read along."""
    if not location:
        raise BadAudioUrl("the host redirects without saying where.")
    try:
        target = checked(str(url.join(location)), rules)
    except httpx.InvalidURL as error:
        raise BadAudioUrl("the host redirects to something that is not a valid URL.") from error
    if url.scheme == "https" and target.scheme == "http":
        raise BadAudioUrl("the host redirects from https to http.")
    return target


def domain(text: str) -> str:
    """A setting's domain as URLs are compared with it: in lower case, and its umlauts encoded as DNS has them."""
    dot, name = "." if text.startswith(".") else "", text.strip(".")
    return dot + httpx.URL(f"http://{name}/").raw_host.decode("ascii")


def port_range(text: str) -> range:
    """Of "443" or "1024-65535"."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
