"""Spool files live as long as their request, and directories as long as their server."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from audio.spool import open_spool, sweep
from errors import Overloaded


def test_the_spool_and_its_files_are_gone_at_the_end(tmp_path: Path) -> None:
    """A directory with mode 0700 for each run, a file for each audio."""
    with open_spool(tmp_path, 0) as spool:
        assert spool.directory.parent == tmp_path
        assert spool.directory.stat().st_mode & 0o777 == 0o700
        with closing(spool.files()) as files:
            path = Path(files.write(b"audio"))
            assert path.read_bytes() == b"audio"
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_file_written_after_its_request_ended_is_removed(tmp_path: Path) -> None:
    """A thread that still decodes base64 when its client leaves must leave nothing."""
    with open_spool(tmp_path, 0) as spool:
        with closing(spool.files()) as files:
            pass
        files.write(b"too late")
        assert [path.name for path in spool.directory.iterdir()] == ["lock"]


def test_a_start_sweeps_the_directories_of_dead_servers_only(tmp_path: Path) -> None:
    """Who holds the lock lives, whatever its pid is called here."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from audio.spool import open_spool\n"
        "with open_spool(Path(sys.argv[1]), 0) as spool: spool.write(b'x'); os._exit(9)"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), str(root)], check=False)
    (left,) = tmp_path.iterdir()
    with open_spool(tmp_path, 0) as alive:
        assert not left.exists()
        sweep(tmp_path)
        assert alive.directory.exists()


def test_two_starts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One looks for dead directories when the other has made its own, and not locked it yet."""
    lock, swept = fcntl.flock, []

    def sweep_first(file: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not swept:
            swept.extend(tmp_path.iterdir())
            sweep(tmp_path)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with open_spool(tmp_path, 0) as spool, closing(spool.files()) as files:
        assert not swept[0].exists()
        assert Path(files.write(b"audio")).read_bytes() == b"audio"
        sweep(tmp_path)
        assert spool.directory.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_overload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client may come again; nothing half-written stays."""

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with open_spool(tmp_path, 0) as spool, pytest.raises(Overloaded):
        spool.write(b"audio")
    assert list(tmp_path.glob("*/*.audio")) == []


def test_a_file_grows_as_long_as_it_is_there(tmp_path: Path) -> None:
    """A thread that writes on when its request has ended makes no new file."""
    with open_spool(tmp_path, 0) as spool:
        files = spool.files()
        path = files.write(b"ab")
        files.append(path, b"cd")
        assert Path(path).read_bytes() == b"abcd"
        files.close()
        with pytest.raises(FileNotFoundError):
            files.append(path, b"ef")
        assert not Path(path).exists()
