"""Starts `python server.py` as a user does, and stops it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import httpx2
import psutil
from openai import DEFAULT_CONNECTION_LIMITS, AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from tests.support.watching import watched

ROOT = Path(__file__).resolve().parents[2]
FIRST_PORT, END_OF_PORTS = 20_000, 32_768
START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0


class RunningServer:
    """A server in a process tree of its own."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path, model: str) -> None:
        self.port = port
        self.process = process
        self.log = log
        self.model = model
        self.base_url = f"http://127.0.0.1:{port}"

    def client(self, **options: object) -> OpenAI:
        http = DefaultHttpxClient(transport=watched(httpx2.HTTPTransport()))
        fixed = {"api_key": "none", "max_retries": 0, "http_client": http}
        return OpenAI(base_url=f"{self.base_url}/v1", **{**fixed, **options})

    def async_client(self, **options: object) -> AsyncOpenAI:
        http = DefaultAsyncHttpxClient(transport=watched(httpx2.AsyncHTTPTransport(limits=DEFAULT_CONNECTION_LIMITS)))
        fixed = {"api_key": "none", "max_retries": 0, "http_client": http}
        return AsyncOpenAI(base_url=f"{self.base_url}/v1", **{**fixed, **options})

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=60, transport=watched(httpx.HTTPTransport()))

    def tree(self) -> list[psutil.Process]:
        """Every process of the server."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def wait_ready(self) -> None:
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
            try:
                if httpx.get(f"{self.base_url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the server was not ready in {START_LIMIT_S} s:\n{self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_LIMIT_S)


def free_port() -> int:
    """One that stays free until a server has bound it: below those that the kernel deals out, and of every two the one
    that is this process's, where tests run side by side."""
    lane = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    lanes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = random.randrange(FIRST_PORT + lane, END_OF_PORTS, lanes)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def run_server(
    *flags: str, ready: bool = True, env: dict[str, str] | None = None, inside: Sequence[str] = ()
) -> Iterator[RunningServer]:
    """A server with these flags, ready unless told otherwise, gone at the end. `inside`: a command that runs it."""
    port = free_port()
    names = [flags[i + 1] for i, flag in enumerate(flags) if flag in ("--model", "--served-model-name")]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*inside, sys.executable, "server.py", "--port", str(port), *flags],
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = RunningServer(port, process, log, names[-1] if names else "whisper-tiny.en")
        try:
            if ready:
                server.wait_ready()
            yield server
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def still_running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of `processes` that still run after a few seconds; none, if all is well. Zombies do not run."""
    until = time.monotonic() + 5
    alive = processes
    while alive and time.monotonic() < until:
        alive = [process for process in alive if _runs(process)]
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
