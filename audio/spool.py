"""The spool: files of audio on their way between processes, in one directory for each server run.

    eardrum-<pid>-<random>/     mode 0700, in /dev/shm or a temporary directory
        lock                    held (flock) as long as a process of the run lives
        <pid>-<random>.audio    one audio, of the process that wrote it; removed when its request ends
        <pid>-control.sock      a worker's control socket

A start sweeps the directories of dead runs. Whether a run is dead is asked of its lock and not of its pid, because
containers share /dev/shm without sharing pids. This file knows neither audio nor requests.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from errors import Overloaded

_PREFIX = "eardrum-"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- a private directory is made inside


class Spool:
    """Makes and removes files in the directory of this run. Cheap, may be copied to other processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, data: bytes) -> str:
        """Put `data` into a new file and return its path. Raises `Overloaded` where it does not fit."""
        path = self._new_path()
        try:
            with room_for_audio():
                path.write_bytes(data)
        except BaseException:
            self.remove(str(path))
            raise
        return str(path)

    def append(self, path: str, data: bytes) -> None:
        """Put `data` behind what is in a file. Raises `FileNotFoundError` for one that is gone, and makes no new one;
        `Overloaded` where it does not fit."""
        with room_for_audio(), os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            file.write(data)

    def link(self, path: str) -> str:
        """Another name for a file, which lives until both are removed. Raises `Overloaded` where it does not fit."""
        other = self._new_path()
        with room_for_audio():
            os.link(path, other)
        return str(other)

    def _new_path(self) -> Path:
        return self.directory / f"{os.getpid()}-{secrets.token_hex(12)}.audio"

    def remove(self, path: str) -> None:
        """Remove a file; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def forget(self, pid: int) -> None:
        """Remove what a process that died has left."""
        for path in self.directory.glob(f"{pid}-*"):
            self.remove(str(path))

    def files(self) -> SpoolFiles:
        """Files that live until they are closed together."""
        return SpoolFiles(self)


class SpoolFiles:
    """The files of one request. A thread that still writes when they are closed leaves nothing behind."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._paths: list[str] = []
        self._lock = threading.Lock()
        self._closed = False

    def write(self, data: bytes) -> str:
        """Put `data` into a new file and return its path."""
        path = self._spool.write(data)
        self.add(path)
        return path

    def append(self, path: str, data: bytes) -> None:
        """Put `data` behind what is in one of these files."""
        self._spool.append(path, data)

    def add(self, path: str) -> None:
        """Let a file of the spool go with these."""
        with self._lock:
            self._paths.append(path)
            closed = self._closed
        if closed:
            self._spool.remove(path)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            paths = list(self._paths)
        for path in paths:
            self._spool.remove(path)


@contextmanager
def room_for_audio() -> Iterator[None]:
    """Translates a full disk, or a full /dev/shm, into `Overloaded`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Overloaded("The server has no room for more audio now. Try again shortly.") from error


@contextmanager
def open_spool(parent: Path | None, room_bytes: int) -> Iterator[Spool]:
    """The spool of this run, gone at the end.

    `parent`: where to make it; by default /dev/shm if `room_bytes` fit there twice, else the temporary directory.
    """
    parent = parent or _default_parent(room_bytes)
    sweep(parent)
    directory, lock = _locked_directory(parent)
    try:
        yield Spool(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _locked_directory(parent: Path) -> tuple[Path, int]:
    """A new directory and its lock, held. One that another start swept away before it was locked is made again."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return directory, lock
        os.close(lock)


def sweep(parent: Path) -> None:
    """Remove the directories of runs that died without tidying up."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            _remove_if_dead(directory)


def _remove_if_dead(directory: Path) -> None:
    lock = os.open(directory / "lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)


def _default_parent(room_bytes: int) -> Path:
    with suppress(OSError):
        if os.access(_SHARED_MEMORY, os.W_OK) and shutil.disk_usage(_SHARED_MEMORY).free >= 2 * room_bytes:
            return _SHARED_MEMORY
    return Path(tempfile.gettempdir())
