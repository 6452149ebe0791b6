"""The server starts, or says why not. How it ends is in tests/faults."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
import pytest

from tests.support.servers import RunningServer, run_server, still_running
from tests.support.speech import user
from tests.support.waiting import until


def test_a_signal_while_the_model_loads() -> None:
    """Nobody has to wait for a model that is not wanted any more."""
    with run_server("--model", "whisper-tiny.en", ready=False) as server:
        main = psutil.Process(server.process.pid)
        while len(main.children()) < 3:  # the manager, the resource tracker and the worker
            assert server.process.poll() is None
        processes = server.tree()
        assert server.stop() == 0
        assert still_running(processes) == []


without_gpu = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU here")


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--model", "no-such-model"), 1, "no-such-model could not be found here as a directory, nor on the hub"),
        (("--model", "/no/such/directory"), 1, "there is no such directory"),
        (("--model", "tests/support/broken.py:Nobody"), 1, "Nobody"),
        pytest.param(("--device", "cuda"), 1, "nvidia-smi lists none", marks=without_gpu),
        (("--port", "80"), 2, "port"),
        (("--temperature", "1"), 2, "temperature"),
        (("--max-rows", "0"), 2, "max_rows"),
        (("--api-servers", "3"), 2, "set it to 300000000 or more"),
        (("--max-clips", "32"), 2, "set it to 800 or more"),
    ],
)
def test_a_start_that_fails_says_why(flags: tuple[str, ...], status: int, message: str) -> None:
    """And leaves nothing."""
    with run_server(*flags, ready=False, env={"HF_HUB_OFFLINE": "1"}) as server:
        assert server.process.wait(40) == status
        assert message in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_told(fake_server: RunningServer) -> None:
    """In one line."""
    port = fake_server.port
    with run_server("--port", str(port), ready=False) as second:
        assert second.process.wait(30) == 1
        assert second.log.read_text() == f"server.py: Port {port} is in use. Name another with --port.\n"
        assert httpx.get(f"{fake_server.base_url}/ready").status_code == 200


def test_two_workers_and_two_api_processes_share_the_load() -> None:
    """Every answer reaches the process that waits for it."""
    with (
        run_server("--model", "fake", "--workers-per-device", "2", "--api-servers", "2", "--max-rows", "2") as server,
        server.client() as client,
    ):
        streams = [
            client.chat.completions.create(model="fake", messages=user(f"#say=answer_number_{i}"), stream=True)
            for i in range(20)
        ]
        answers = ["".join(chunk.choices[0].delta.content or "" for chunk in stream) for stream in streams]
        assert answers == [f"answer number {i}" for i in range(20)]
        assert server.stop() == 0


def test_a_spool_in_too_deep_a_directory_is_told() -> None:
    """There would be no room for the names of sockets."""
    with TemporaryDirectory(suffix="-deep" * 20) as spool, run_server("--spool-dir", spool, ready=False) as server:
        assert server.process.wait(40) == 1
        assert "too long a path. Name a shorter directory with --spool-dir." in server.log.read_text()


async def test_the_banners_command_works(whisper_server: RunningServer) -> None:
    """What the server prints to try it does what it says."""
    await until(lambda: "printf" in whisper_server.log.read_text())
    log = whisper_server.log.read_text()
    command = log[log.index("  printf") :].split("\n\n")[0]
    root = Path(__file__).parents[1]
    answer = await asyncio.to_thread(subprocess.check_output, ["bash", "-c", command], cwd=root)
    assert b"my fellow Americans" in answer


def test_every_file_that_the_image_needs_reaches_its_build() -> None:
    """What the Dockerfile copies by name is not ignored."""
    root = Path(__file__).parents[1]
    kept = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for line in (root / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    assert copied - {"."} <= kept
    packages = {path.parent.name for path in root.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages | {"web"} <= kept
