"""client.py, as a user calls it: one question, and what all its commands have in common."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from cli.options import COMMANDS
from cli.server import base_url
from tests.support.command_line import MODELS, ROOT, command, run_client, stub_server
from tests.support.origin import Origin
from tests.support.servers import RunningServer, free_port


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


def test_an_answer_that_breaks_off(fake_server: RunningServer) -> None:
    """What came is there, and why no more came is told in a line of its own."""
    run = run_client("tests/data/jfk.ogg", "#fail=nan #tokens=9", "--url", fake_server.base_url)
    assert (run.returncode, run.stdout) == (1, "abc\n")
    assert run.stderr.startswith("client.py: The server refused: ")


@pytest.mark.parametrize(
    "arguments", ["tests/data/jfk.ogg '#tokens=2000'", "models", "--no-stream tests/data/jfk.ogg '#tokens=2000'"]
)
def test_who_stops_reading_is_no_error(fake_server: RunningServer, arguments: str) -> None:
    """`| head` ends it quietly."""
    line = f"{shlex.join(command())} {arguments} --url {fake_server.base_url} | head -c 0"
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_server_is_named_anywhere(fake_server: RunningServer) -> None:
    """Before and behind the command, in the environment, and what stands on the command line wins."""
    nobody = f"127.0.0.1:{free_port()}"
    here = {"OPENAI_BASE_URL": fake_server.base_url}
    for arguments, env in (
        (("--url", fake_server.base_url, "models"), {"OPENAI_BASE_URL": nobody}),
        (("models", "--url", fake_server.base_url), {"OPENAI_BASE_URL": nobody}),
        (("--url", nobody, "models", "--url", fake_server.base_url), {}),
        (("models",), here),
        (("ask", "tests/data/jfk.ogg"), here),
        (("--no-stream", "tests/data/jfk.ogg"), here),
    ):
        run = run_client(*arguments, env=env)
        assert (run.returncode, run.stderr) == (0, ""), arguments


def test_addresses() -> None:
    """The path is the API's, where only a host is given."""
    assert base_url("example.org") == base_url("http://example.org/") == "http://example.org/v1"
    assert base_url("https://example.org:1/openai") == "https://example.org:1/openai"


def test_help_tells_every_command() -> None:
    """And without one it ends with 2; whatever the address in the environment looks like."""
    run = run_client("--help", env={"OPENAI_BASE_URL": "http://example.org/100%/v1"})
    assert run.returncode == 0 and all(f"\n    {name} " in run.stdout for name in COMMANDS)
    assert "(http://example.org/100%/v1)" in run.stdout
    assert "--jobs" in run_client("transcribe", "--help").stdout
    run = run_client()
    assert (run.returncode, run.stdout) == (2, "") and "COMMAND" in run.stderr


def test_keys() -> None:
    """Come from the environment or the command line, which wins; one that the server does not take is told."""
    with stub_server(lambda method, path: (200, MODELS), key="mine") as url:
        assert run_client("models", "--url", url, env={"OPENAI_API_KEY": "mine"}).stdout == "stub\n"
        assert run_client("models", "--url", url, "--api-key", "mine", env={"OPENAI_API_KEY": "no"}).stdout == "stub\n"
        run = run_client("models", "--url", url, env={"OPENAI_API_KEY": "no"})
    assert (run.returncode, run.stdout) == (1, "")
    assert "The server refused the key: Wrong key." in run.stderr and "OPENAI_API_KEY" in run.stderr
