"""Whatever is asked of the API, right or wrong, its answers are as described. In small; `make fuzz` has more time."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from api.openapi.document import render
from config import Settings
from tests.fuzz.api import ApiFuzz
from tests.support.servers import RunningServer


@pytest.mark.timeout(300)
def test_answers_are_as_described(fake_server: RunningServer) -> None:
    """No 500, and no status, header, type or body that is not described, of any operation."""
    fuzz = ApiFuzz(fake_server.base_url, seed=1, examples=2)
    fuzz.run(math.inf, rounds=1)
    assert fuzz.failures == []
    assert fuzz.statuses[200] > 3 < fuzz.statuses[400]


@contextmanager
def other_server(status: int, body: bytes, content_type: str = "application/json") -> Iterator[str]:
    """One that describes itself as ours does, and answers everything else with this."""
    document = render(Settings(_env_file=None, model="fake"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            described = self.path == "/openapi.json"
            told = document if described else body
            self.send_response(200 if described else status)
            for name, value in {
                "content-type": "application/json" if described else content_type,
                "content-length": str(len(told)),
                "x-request-id": "x",
                "openai-processing-ms": "1",
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(told)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Not in a test."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ENVELOPE = b'{"error": {"message": "m", "type": "server_error", "param": null, "code": null}}'


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("status", "body", "content_type", "told"),
    [
        (500, ENVELOPE, "application/json", "500"),
        (422, ENVELOPE, "application/json", "422"),
        (200, b'{"status": "fine"}', "application/json", "status"),
        (200, b'{"status": "ok"}', "text/html", "text/html"),
    ],
)
def test_a_run_sees_what_is_wrong(status: int, body: bytes, content_type: str, told: str) -> None:
    """A 500, a status that is not described, another body, another type; of the probe alone, as that is quick."""
    with other_server(status, body, content_type) as base_url:
        fuzz = ApiFuzz(base_url, seed=1, examples=1)
        fuzz._operations = [each for each in fuzz._operations if each.label == "GET /live"]
        fuzz.run(math.inf, rounds=1)
    assert any(told in failure for failure in fuzz.failures)
