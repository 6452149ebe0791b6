"""client.py as a user runs it: with pipes or in a terminal, and against a server that answers as a test wants."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "client.py"), *arguments]


def run_client(
    *arguments: str, cwd: Path = ROOT, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Nothing here is a terminal."""
    run = subprocess.run(
        command(*arguments),
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    return subprocess.CompletedProcess(run.args, run.returncode, run.stdout.decode(), run.stderr.decode())


class Terminal:
    """client.py in a terminal, but for its stdout where that is piped."""

    def __init__(self, *arguments: str, cwd: Path = ROOT, piped: bool = False) -> None:
        self._master, slave = pty.openpty()
        stdout = subprocess.PIPE if piped else slave
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            command(*arguments), cwd=cwd, stdin=slave, stdout=stdout, stderr=slave, env=env, start_new_session=True
        )
        os.close(slave)
        self.shown = ""
        self._waited_for = 0  # so much of what is shown
        self.stdout = b""  # where it is piped: all of it, at the end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._master)
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def wait_for(self, text: str) -> None:
        """Until the terminal shows it, behind what was waited for before."""
        until = time.monotonic() + LIMIT_S
        while (found := self.shown.find(text, self._waited_for)) < 0:
            assert select.select([self._master], [], [], max(until - time.monotonic(), 0))[0], self.shown
            self.shown += self._read()
        self._waited_for = found + len(text)

    def _read(self) -> str:
        try:
            return os.read(self._master, 65536).decode(errors="replace")
        except OSError as error:  # how Linux says that nobody has the terminal open any more
            raise AssertionError(f"the client ended:\n{self.shown}") from error

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Its exit status; then `shown` and `stdout` are complete."""
        with suppress(AssertionError):
            while True:
                self.shown += self._read()
        self.stdout, _ = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode


Answer = tuple[int, object]  # status and JSON


@contextmanager
def stub_server(answer: Callable[[str, str], Answer], key: str | None = None) -> Iterator[str]:
    """The address of a server that answers with what `answer(method, path)` says, to those who have the key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            allowed = key is None or self.headers["Authorization"] == f"Bearer {key}"
            status, value = answer(self.command, self.path) if allowed else (401, refusal("Wrong key."))
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refusal(message: str) -> object:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


MODELS = {"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "stub"}]}
