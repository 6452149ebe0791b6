"""The guarded fetch: a public http(s) address to a file, bounded in bytes, redirects and time.

The address is checked where it cannot change any more, in the connection: the name is resolved once, every answer
is checked, and the checked address is dialled. TLS and the Host header go on using the name. No proxy, no netrc, no
cookies, no content-encoding. This file knows nothing of audio.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpcore
import httpx

from audio.spool import room_for_audio
from errors import AudioTooLong, BadAudioUrl

MAX_URL_CHARS = 8192
CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
RESOLVE_THREADS = 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

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


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet may be sent to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_link_local:
        return False
    return not any(ip in block for block in _NOT_PUBLIC if block.version == ip.version)


class _GuardedBackend(httpcore.AsyncNetworkBackend):
    """Dials only addresses that it has resolved and checked itself."""

    def __init__(self, allow_private: bool) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._allow_private = allow_private
        self._resolvers = ThreadPoolExecutor(RESOLVE_THREADS, thread_name_prefix="resolve")

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        *others, last = await self._resolve(host, port)
        for address in others:
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
        return await self._inner.connect_tcp(last, port, timeout, local_address, socket_options)

    async def _resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a name, each of them allowed. In threads of its own, which a slow name server may hold."""
        resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._resolvers, resolve)
        except (OSError, UnicodeError) as error:
            raise BadAudioUrl("the host name could not be resolved.") from error
        addresses = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
        if not self._allow_private and not all(map(is_public, addresses)):
            raise BadAudioUrl("the address is not a public one, and this server fetches only public ones.")
        return addresses


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


class _GuardedTransport(httpx.AsyncBaseTransport):
    """httpx over an httpcore pool that has our network backend (httpx has no parameter for it)."""

    def __init__(self, allow_private: bool) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            network_backend=_GuardedBackend(allow_private),
            max_connections=None,  # the jobs in preparation bound them; a slow host must not take the places of others
            max_keepalive_connections=0,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        inner = httpcore.Request(request.method, url, headers=request.headers.raw, extensions=request.extensions)
        response = await self._pool.handle_async_request(inner)
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response), extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class Fetcher:
    """Fetches addresses that clients name. One for a worker; used from one event loop."""

    def __init__(self, max_bytes: int, max_redirects: int, allow_private: bool) -> None:
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._client = httpx.AsyncClient(
            transport=_GuardedTransport(allow_private),
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            headers={"accept": "audio/*, */*;q=0.5", "accept-encoding": "identity", "user-agent": "Eardrum"},
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),  # takes none
            trust_env=False,
        )

    async def fetch(self, url: str, target: Path) -> None:
        """Write what stands at `url` to `target`, an empty file. The caller bounds the time.

        Raises `BadAudioUrl` or `AudioTooLong`.
        """
        try:
            await self._follow(_parse(url), target)
        except httpcore.TimeoutException as error:
            raise BadAudioUrl("the host did not answer in time.") from error
        except (httpx.InvalidURL, UnicodeError) as error:  # httpx reads the address of a redirect by itself
            raise BadAudioUrl("the host redirects to something that is not a valid URL.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpx.HTTPError, OSError) as error:
            raise BadAudioUrl("the audio could not be fetched: the connection failed.") from error

    async def _follow(self, url: httpx.URL, target: Path) -> None:
        for _ in range(self._max_redirects + 1):
            async with self._client.stream("GET", url) as response:
                if response.status_code not in _REDIRECTS:
                    return await self._save(response, target)
                url = _parse(str(url.join(_location(response))))
        raise BadAudioUrl(f"the address redirects more than {self._max_redirects} times.")

    async def _save(self, response: httpx.Response, target: Path) -> None:
        if not response.is_success:
            raise BadAudioUrl(f"the host answered with status {response.status_code}.")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadAudioUrl("the host sent a content-encoding that was not asked for.")
        self._check_size(_content_length(response))
        received = 0
        with room_for_audio(), target.open("r+b") as file:
            async for chunk in response.aiter_raw():
                received += len(chunk)
                self._check_size(received)
                file.write(chunk)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise AudioTooLong(f"the audio is larger than the limit of {self._max_bytes} bytes.")

    async def aclose(self) -> None:
        await self._client.aclose()


def _parse(url: str) -> httpx.URL:
    """The address, parsed once and by the library that fetches it."""
    if len(url) > MAX_URL_CHARS or "\\" in url or not url.isprintable():
        raise BadAudioUrl("the address is not a valid URL.")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadAudioUrl("the address is not a valid URL.") from error
    if parsed.scheme not in ("http", "https"):
        raise BadAudioUrl("only http(s) addresses and data URIs are accepted.")
    if not parsed.host or parsed.userinfo:
        raise BadAudioUrl("the address needs a host and must not carry a user name or password.")
    return parsed


def _location(response: httpx.Response) -> str:
    location = response.headers.get("location")
    if not location:
        raise BadAudioUrl("the host redirects without saying where.")
    return str(location)


def _content_length(response: httpx.Response) -> int:
    value = response.headers.get("content-length", "")
    return int(value) if value.isdecimal() else 0
