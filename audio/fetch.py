"""The guarded fetch: a public http(s) address to a file, bounded in bytes, redirects and time.

    addresses.py    what may be asked          flights.py        who waits for the same
    transport.py    what may be dialled        fetch_cache.py    what may be used again

No netrc, no cookies, no content-encoding. This file knows nothing of audio.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpcore
import httpx

from audio.addresses import FetchRules, checked, redirected
from audio.fetch_cache import FetchCache
from audio.flights import Flights
from audio.room import Room
from audio.spool import Spool, SpoolFiles, room_for_audio
from audio.transport import GuardedTransport
from errors import AudioTooLong, BadAudioUrl

CONNECT_TIMEOUT_S = 3.0
MIN_CHUNK_BYTES = 32  # on average, of all chunks but a few: each costs our CPU about as much as a large one
FEW_CHUNKS = 1000
_NOT_MODIFIED = 304
_PARTIAL = 206  # we never ask for a part
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Fetcher:
    """Fetches addresses that clients name. One for a worker; used from one event loop.

    `room`: what comes is counted there until it is all here; then it is the caller's to count.
    `ssl_context`: httpx's where there is none, with certifi's authorities and without the environment's.
    """

    def __init__(self, rules: FetchRules, spool: Spool, room: Room, ssl_context: ssl.SSLContext | None = None) -> None:
        self._rules = rules
        self._room = room
        self._flights = Flights(spool)
        self._cache = FetchCache(spool, rules.cache_bytes)
        self._client = httpx.AsyncClient(
            transport=GuardedTransport(rules, ssl_context or httpx.create_ssl_context(trust_env=False)),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # the others are ours, see `_ask` and `_write`
            headers={"accept": "audio/*, */*;q=0.5", "accept-encoding": "identity", "user-agent": "Eardrum"},
            cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=[])),  # takes none
            trust_env=False,
        )

    async def fetch(self, url: str, files: SpoolFiles) -> str:
        """The path of what stands at `url`, which is one of `files` from now on. The caller bounds the time.

        Raises `BadAudioUrl`, `AudioTooLong`, or `Overloaded` where there is no room.
        """
        address = checked(url, self._rules)
        return await self._flights.join(str(address), partial(self._retrieve, address), files)

    async def _retrieve(self, url: httpx.URL, files: SpoolFiles) -> str:
        try:
            return await self._follow(url, files)
        except httpcore.TimeoutException as error:
            raise BadAudioUrl("the host did not answer in time.") from error
        except (httpx.RemoteProtocolError, httpx.InvalidURL, UnicodeError) as error:  # httpx reads `location` by itself
            raise BadAudioUrl("the host redirects to something that is not a valid URL.") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpx.HTTPError, OSError) as error:
            raise BadAudioUrl("the audio could not be fetched: the connection failed.") from error

    async def _follow(self, url: httpx.URL, files: SpoolFiles) -> str:
        for _ in range(self._rules.max_redirects + 1):
            kept = self._cache.take(str(url), files)
            if kept and self._cache.is_fresh(kept):
                return kept.path
            asked_at = self._cache.clock()
            questions = kept.questions if kept else {}
            async with self._ask(url, questions) as response:
                if kept and questions and response.status_code == _NOT_MODIFIED:
                    await response.aread()  # nothing, to its end: so that the connection can be used again
                    self._cache.renew(str(url), kept, response.headers, asked_at)
                    return kept.path
                if response.status_code not in _REDIRECTS:
                    path = await self._save(response, files)
                    self._cache.put(str(url), path, response.status_code, response.headers, asked_at)
                    return path
                url = redirected(url, response.headers.get("location"), self._rules)
        raise BadAudioUrl(f"the address redirects more than {self._rules.max_redirects} times.")

    @asynccontextmanager
    async def _ask(self, url: httpx.URL, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        request = self._client.build_request("GET", url, headers=headers)
        try:
            async with asyncio.timeout(self._rules.first_byte_s):
                response = await self._client.send(request, stream=True)
        except TimeoutError:
            raise BadAudioUrl("the host did not answer in time.") from None
        try:
            yield response
        finally:
            await response.aclose()

    async def _save(self, response: httpx.Response, files: SpoolFiles) -> str:
        if not response.is_success or response.status_code == _PARTIAL:
            raise BadAudioUrl(f"the host answered with status {response.status_code}.")
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadAudioUrl("the host sent a content-encoding that was not asked for.")
        self._check_size(_content_length(response))
        path = files.write(b"")
        try:
            await self._write(response, Path(path))
        except TimeoutError:
            raise BadAudioUrl("the host sends too slowly.") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise BadAudioUrl("the connection broke off before the audio was complete.") from error
        return path

    async def _write(self, response: httpx.Response, path: Path) -> None:
        """Raises `TimeoutError` where fewer bytes came in `pace_s` than they should."""
        pace_s = self._rules.pace_s
        pace_bytes = self._rules.min_bytes_per_s * pace_s
        received = paced = chunks = 0
        clock = asyncio.get_running_loop().time
        with room_for_audio(), path.open("r+b") as file, closing(self._room.reserve()) as held:
            async with asyncio.timeout(pace_s) as pace:
                async for chunk in response.aiter_raw():
                    held.add(len(chunk))
                    received += len(chunk)
                    chunks += 1
                    self._check_size(received)
                    _check_chunks(chunks, received)
                    file.write(chunk)
                    if received - paced >= pace_bytes:
                        paced = received
                        pace.reschedule(clock() + pace_s)

    def _check_size(self, size: int) -> None:
        if size > self._rules.max_bytes:
            raise AudioTooLong(f"the audio is larger than the limit of {self._rules.max_bytes} bytes.")

    async def aclose(self) -> None:
        await self._flights.aclose()
        await self._client.aclose()


def _check_chunks(count: int, size: int) -> None:
    if count > FEW_CHUNKS and size < count * MIN_CHUNK_BYTES:
        raise BadAudioUrl("the host sends the audio in too many small pieces.")


def _content_length(response: httpx.Response) -> int:
    value = response.headers.get("content-length", "")
    return int(value) if value.isdecimal() else 0
