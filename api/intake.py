"""Where the audio of a request goes when it leaves the messages: the spool; and the audio that clients may name again.

A client that gives an audio a `uuid` may send the uuid alone in later requests, as long as the audio is kept. What is
kept is one more link to its spool file, so it outlives its request and costs its bytes once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from audio.spool import Spool, SpoolFiles
from errors import BadRequest


class Intake(Protocol):
    """Takes the audio of one request."""

    @property
    def num_bytes(self) -> int:
        """Of all spool files so far."""

    def store(self, data: bytes) -> str:
        """Encoded bytes; the path of their spool file."""

    def keep(self, uuid: str, source: Source) -> None:
        """Remember an audio under the name that the client gave it."""

    def again(self, uuid: str) -> Source:
        """An audio that was kept. Raises `BadRequest` for one that is not, or not any more."""


@dataclass(frozen=True)
class Source:
    """A spool file or an address, as `wire.AudioPart` has them."""

    path: str | None = None
    url: str | None = None


class KeptAudio:
    """The audio that is kept in this API process, the least used of which goes first. Any thread may call.

    An owner's uuids are nobody else's: `owner` names whose key a request came with.
    """

    def __init__(self, spool: Spool, max_bytes: int) -> None:
        self._spool = spool
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], tuple[Source, int]] = OrderedDict()  # and its bytes
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, owner: str, uuid: str, source: Source) -> None:
        if source.path is not None:
            source = Source(self._spool.link(source.path))
        size = len(source.url or "") if source.path is None else Path(source.path).stat().st_size
        with self._lock:
            self._drop((owner, uuid))
            self._kept[owner, uuid] = source, size
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def get(self, owner: str, uuid: str) -> Source | None:
        """A link of the caller's own, where it is a file."""
        with self._lock:
            if (owner, uuid) not in self._kept:
                return None
            self._kept.move_to_end((owner, uuid))
            source, _ = self._kept[owner, uuid]
            return source if source.path is None else Source(self._spool.link(source.path))

    def _drop(self, key: tuple[str, str]) -> None:
        source, size = self._kept.pop(key, (Source(), 0))
        self._bytes -= size
        if source.path is not None:
            self._spool.remove(source.path)


class RequestIntake:
    """The intake of one request, whose files are gone when `files` are closed."""

    def __init__(self, files: SpoolFiles, kept: KeptAudio, owner: str) -> None:
        self._files, self._kept, self._owner = files, kept, owner
        self.num_bytes = 0

    def store(self, data: bytes) -> str:
        self.num_bytes += len(data)
        return self._files.write(data)

    def append(self, path: str, data: bytes) -> None:
        """More of an audio that comes piece by piece."""
        self.num_bytes += len(data)
        self._files.append(path, data)

    def keep(self, uuid: str, source: Source) -> None:
        self._kept.put(self._owner, uuid, source)

    def again(self, uuid: str) -> Source:
        source = self._kept.get(self._owner, uuid)
        if source is None:
            raise BadRequest("no audio is kept under this uuid, or not any more. Send the audio with it.")
        if source.path is not None:
            self._files.add(source.path)
            self.num_bytes += Path(source.path).stat().st_size
        return source
