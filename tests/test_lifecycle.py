"""The server starts or says why not, and ends without leaving a process, a port or a file."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import openai
import psutil
import pytest

from tests.support.servers import RunningServer, run_server, still_running
from tests.support.speech import user
from tests.support.waiting import until


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_process(number: int) -> None:
    """With status 0; the port is free and the spool is gone."""
    with TemporaryDirectory() as spool, run_server("--model", "fake", "--spool-dir", spool) as server:
        processes = server.tree()
        assert len(processes) >= 5
        assert len(list(Path(spool).iterdir())) == 1
        assert server.stop(number) == 0
        assert still_running(processes) == []
        assert port_is_free(server.port)
        assert list(Path(spool).iterdir()) == []
        assert "Warning" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_lets_answers_finish(number: int) -> None:
    """As Ctrl-C in a terminal and some supervisors send it."""
    with run_server("--model", "fake") as server, server.client() as client:
        processes = server.tree()
        stream = client.chat.completions.create(model="fake", messages=user("#tokens=60 #delay=0.02"), stream=True)
        text = next(stream).choices[0].delta.content or ""
        os.killpg(server.process.pid, number)
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert len(text) == 60
        assert server.process.wait(20) == 0
        assert still_running(processes) == []


def test_a_signal_while_the_model_loads() -> None:
    """Nobody has to wait for a model that is not wanted any more."""
    with run_server("--model", "whisper-tiny.en", ready=False) as server:
        main = psutil.Process(server.process.pid)
        while len(main.children()) < 3:  # the manager, the resource tracker and the worker
            assert server.process.poll() is None
        processes = server.tree()
        assert server.stop() == 0
        assert still_running(processes) == []


def test_a_killed_main_process_leaves_no_orphans() -> None:
    """Not even by kill -9."""
    with run_server("--model", "fake") as server:
        processes = server.tree()
        server.process.kill()
        assert still_running(processes) == []
        assert port_is_free(server.port)


def worker_of(server: RunningServer) -> psutil.Process:
    """The process that has torch in it: the largest."""
    return max(server.tree(), key=lambda process: process.memory_info().rss)


def test_a_killed_worker_fails_its_requests_and_is_replaced() -> None:
    """At once for the client that has had nothing and for the one in the middle of a stream; then all is well again."""
    with run_server("--model", "fake") as server, server.client() as client:
        worker = worker_of(server)
        decoders = worker.children()
        stream = client.chat.completions.create(model="fake", messages=user("#tokens=9999 #delay=0.02"), stream=True)
        next(stream)
        worker.kill()
        with pytest.raises(openai.APIError, match="worker died"):
            list(stream)
        assert still_running([worker, *decoders]) == []
        server.wait_ready()
        assert client.chat.completions.create(model="fake", messages=user("hello")).choices
        with pytest.raises(openai.InternalServerError, match="worker died") as caught:
            client.chat.completions.create(model="fake", messages=user("#tokens=9 #delay=0.02 #die"))
        assert (caught.value.status_code, caught.value.code) == (503, "worker_died")
        assert caught.value.response.headers["retry-after"]
        server.wait_ready()
        assert server.stop() == 0


def test_a_killed_api_process_ends_the_server() -> None:
    """Rather than a port that accepts and never answers; a supervisor starts it anew."""
    with run_server("--model", "fake") as server:
        processes = server.tree()
        main, *others = processes
        forked = [process for process in others if process.cmdline() == main.cmdline()]  # the manager, then the API
        max(forked, key=psutil.Process.create_time).kill()
        assert server.process.wait(20) == 1
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
    ],
)
def test_a_start_that_fails_says_why(flags: tuple[str, ...], status: int, message: str) -> None:
    """And leaves nothing."""
    with run_server(*flags, ready=False, env={"HF_HUB_OFFLINE": "1"}) as server:
        assert server.process.wait(40) == status
        assert message in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_a_port_in_use_is_told() -> None:
    """In one line."""
    with run_server("--model", "fake") as server, run_server("--port", str(server.port), ready=False) as second:
        assert second.process.wait(30) == 1
        assert second.log.read_text() == f"server.py: Port {server.port} is in use. Name another with --port.\n"
        assert httpx.get(f"{server.base_url}/ready").status_code == 200


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


async def test_the_banners_command_works() -> None:
    """What the server prints to try it does what it says."""
    with run_server() as server:
        await until(lambda: "printf" in server.log.read_text())
        log = server.log.read_text()
        command = log[log.index("  printf") :].split("\n\n")[0]
        root = Path(__file__).parents[1]
        answer = await asyncio.to_thread(subprocess.check_output, ["bash", "-c", command], cwd=root)
        assert b"my fellow Americans" in answer


def test_workers_that_keep_dying_end_the_server() -> None:
    """Rather than being started for ever; the supervisor sees a status that is not 0."""
    with run_server("--model", "fake") as server:
        for _ in range(40):
            try:
                httpx.post(
                    f"{server.base_url}/v1/chat/completions",
                    json={"model": "fake", "messages": user("#tokens=9 #die")},
                    timeout=30,
                )
                server.wait_ready()
            except (httpx.TransportError, AssertionError):
                break
        assert server.process.wait(20) == 1
        assert "the server ends" in server.log.read_text()


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
    assert packages <= kept
