"""What was fetched and may be used again, as HTTP's caching rules say (RFC 9111, a shared cache), bounded in bytes.

What is kept is one more link to its spool file, so it outlives its request and costs its bytes once. A library such
as hishel keeps bodies in a database of its own, from where they would be copied for each request; and of the rules
only few are left here, where every request is a GET with the same headers and without credentials. Nothing is used
longer than its host says: there are no heuristics, and nothing stale is served.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path

from audio.spool import Spool, SpoolFiles

ENTRY_BYTES = 4096  # what an entry counts beside its audio: a page of /dev/shm, and what is remembered of it
_STORABLE = 200
_KEPT_HEADERS = ("cache-control", "expires", "date", "age", "vary", "etag", "last-modified")
_AT_THAT_TIME = frozenset({"age", "date"})  # headers of one answer, which do not hold for the next
_VALIDATORS = {"etag": "if-none-match", "last-modified": "if-modified-since"}


@dataclass(frozen=True)
class Kept:
    """An audio that is kept. `path`: a link to it."""

    path: str
    headers: Mapping[str, str]
    fresh_until: float
    num_bytes: int

    @property
    def questions(self) -> dict[str, str]:
        """The headers that ask its host whether it is still the same."""
        return {ask: self.headers[told] for told, ask in _VALIDATORS.items() if told in self.headers}


class FetchCache:
    """By URL; the least used goes first. From one event loop. `clock`: seconds from anywhere."""

    def __init__(self, spool: Spool, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._spool = spool
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0
        self.clock = clock

    def take(self, url: str, files: SpoolFiles) -> Kept | None:
        """What is kept of `url`, as a link that is one of `files`, so that it cannot vanish."""
        kept = self._kept.get(url)
        if kept is None:
            return None
        self._kept.move_to_end(url)
        path = self._spool.link(kept.path)
        files.add(path)
        return replace(kept, path=path)

    def is_fresh(self, kept: Kept) -> bool:
        """Whether it may be used without asking."""
        return self.clock() < kept.fresh_until

    def put(self, url: str, path: str, status: int, headers: Mapping[str, str], asked_at: float) -> None:
        """Keep the audio at `path` if its host allows that. `headers`: in lower case; `asked_at`: by our clock."""
        self._drop(url)
        told = {name: headers[name] for name in _KEPT_HEADERS if name in headers and headers[name].isascii()}
        fresh_s = freshness_s(told)
        if status != _STORABLE or fresh_s is None:
            return
        num_bytes = ENTRY_BYTES + Path(path).stat().st_size + len(url) + sum(map(len, told.values()))
        kept = Kept(path, told, asked_at + fresh_s, num_bytes)
        if (fresh_s or kept.questions) and num_bytes <= self._max_bytes:
            self._add(url, replace(kept, path=self._spool.link(path)))

    def _add(self, url: str, kept: Kept) -> None:
        self._kept[url] = kept
        self._bytes += kept.num_bytes
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def renew(self, url: str, kept: Kept, headers: Mapping[str, str], asked_at: float) -> None:
        """Its host says that it is still the same, and for how long."""
        lasting = {name: value for name, value in kept.headers.items() if name not in _AT_THAT_TIME}
        self.put(url, kept.path, _STORABLE, {**lasting, **headers}, asked_at)

    def _drop(self, url: str) -> None:
        kept = self._kept.pop(url, None)
        if kept is not None:
            self._bytes -= kept.num_bytes
            self._spool.remove(kept.path)


def freshness_s(headers: Mapping[str, str]) -> float | None:
    """For how long an answer may be used without asking again, from when it was asked for; none if it must not be kept
    at all. `private` is for one user's cache, and this one is everybody's."""
    directives = _directives(headers.get("cache-control", ""))
    if directives.keys() & {"no-store", "private"} or "*" in headers.get("vary", ""):
        return None
    if "no-cache" in directives:
        return 0.0
    return max(0.0, _lifetime_s(directives, headers) - _seconds(headers.get("age", "0")))


def _lifetime_s(directives: Mapping[str, str], headers: Mapping[str, str]) -> float:
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return _seconds(directives[name])
    if "expires" not in headers:
        return 0.0
    try:
        expires = parsedate_to_datetime(headers["expires"]).timestamp()
        return expires - (parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time())
    except (ValueError, OverflowError):  # such as "0" or "-1": it has expired
        return 0.0


def _directives(text: str) -> dict[str, str]:
    """Of a Cache-Control header, the first of each name."""
    found: dict[str, str] = {}
    for directive in text.lower().split(","):
        name, _, value = directive.partition("=")
        found.setdefault(name.strip(), value.strip().strip('"'))
    return found


def _seconds(text: str) -> float:
    """Zero where it is no number; infinite where it has hundreds of digits."""
    text = text.strip()
    return float(text) if text.isascii() and text.isdecimal() else 0.0
