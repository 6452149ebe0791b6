"""client.py, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.origin import Origin
from tests.support.servers import RunningServer, free_port

ROOT = Path(__file__).resolve().parents[1]


def run_client(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "client.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("flags", [(), ("--no-stream",), ("--model", "my-model", "--temperature", "0")])
def test_a_file_is_transcribed(whisper_server: RunningServer, flags: tuple[str, ...]) -> None:
    """The answer on stdout, nothing else anywhere."""
    run = run_client("tests/data/jfk.ogg", "What is said here?", "--url", f"{whisper_server.base_url}/v1", *flags)
    assert run.returncode == 0
    assert run.stdout.startswith("And so my fellow Americans")
    assert run.stdout.count("\n") == 1
    assert run.stderr == ""


def test_a_url_and_a_limit(whisper_server: RunningServer, origin: Origin) -> None:
    """The server fetches; the question has a default."""
    base = f"{whisper_server.base_url}/v1"
    run = run_client(origin.url("clip/jfk.m4a"), "--url", base, "--max-tokens", "3")
    assert run.stdout == "And so my\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tests/data/no-such-file.ogg",), "no-such-file.ogg cannot be read: No such file"),
        (("client.py",), "FFmpeg"),
        (("tests/data/jfk.ogg", "--model", "gpt-9"), "does not exist"),
    ],
)
def test_what_goes_wrong_is_a_sentence(whisper_server: RunningServer, arguments: tuple[str, ...], message: str) -> None:
    """On stderr, with status 1, and no traceback."""
    run = run_client(*arguments, "--url", f"{whisper_server.base_url}/v1")
    assert (run.returncode, run.stdout) == (1, "")
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_no_server_is_a_sentence() -> None:
    """It names the address and how to start one."""
    run = run_client("tests/data/jfk.ogg", "--url", f"http://127.0.0.1:{free_port()}/v1")
    assert run.returncode == 1
    assert "make serve" in run.stderr
    assert "Traceback" not in run.stderr
