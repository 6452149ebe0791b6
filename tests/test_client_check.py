"""`client.py models` and `client.py check`, as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import httpx
import pytest

from tests.support.command_line import MODELS, Answer, refusal, run_client, stub_server
from tests.support.servers import RunningServer, free_port


def test_models(whisper_server: RunningServer, fake_server: RunningServer) -> None:
    """Name, seconds and formats between tabs."""
    name, seconds, formats = run_client("models", "--url", whisper_server.base_url).stdout.split("\t")
    assert (name, seconds) == ("my-model", "30 s at once")
    assert formats.startswith("wav flac mp3 ") and formats.endswith("\n")
    assert run_client("--url", fake_server.base_url, "models").stdout.startswith("fake\tany length at once\twav ")


def test_models_as_json(whisper_server: RunningServer) -> None:
    """All that the server tells."""
    run = run_client("models", "--json", "--url", whisper_server.base_url)
    told = httpx.get(f"{whisper_server.base_url}/v1/models").json()["data"]
    assert json.loads(run.stdout) == told


def test_models_of_another_server() -> None:
    """Of which no more is known."""
    with stub_server(lambda method, path: (200, MODELS)) as url:
        assert run_client("models", "--url", url).stdout == "stub\n"


def test_a_server_that_is_well(whisper_server: RunningServer) -> None:
    """Every step in a line, the last with its time."""
    run = run_client("check", "--url", whisper_server.base_url)
    assert (run.returncode, run.stderr) == (0, "")
    *steps, last = run.stdout.splitlines()
    assert [step.split() for step in steps] == [
        ["server", f"{whisper_server.base_url}/v1"], ["live", "yes"], ["ready", "yes"], ["models", "my-model"],
    ]  # fmt: skip
    assert last.startswith("answers  a question about a second of silence, in ") and last.endswith(" ms")


COMPLETION = {
    "id": "x", "object": "chat.completion", "created": 0, "model": "stub",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ""}}],
}  # fmt: skip
WELL: Mapping[str, Answer] = {
    "/live": (200, {}), "/ready": (200, {}), "/v1/models": (200, MODELS), "/v1/chat/completions": (200, COMPLETION),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "answer", "message", "last"),
    [
        ("/ready", (503, refusal("All workers load.")), "is up, but no worker is ready: All workers load.", "live"),
        ("/v1/models", (401, refusal("Wrong key.")), "refused the key: Wrong key. Give one with --api-key", "ready"),
        ("/v1/models", (200, {"object": "list", "data": []}), "serves no model", "models"),
        ("/v1/chat/completions", (500, refusal("It broke.")), "refused: It broke.", "models"),
    ],
)
def test_a_server_that_is_not_well(path: str, answer: Answer, message: str, last: str) -> None:
    """The first step that fails says so, and ends it with 1; it is asked once."""
    asked = []

    def answers(method: str, asked_path: str) -> Answer:
        asked.append(asked_path)
        return answer if asked_path == path else WELL[asked_path]

    with stub_server(answers) as url:
        run = run_client("check", "--url", url)
    assert run.returncode == 1 and message in run.stderr and "Traceback" not in run.stderr
    assert run.stdout.splitlines()[-1].split()[0] == last
    assert asked.count("/v1/chat/completions") <= 1


def test_another_server_without_probes() -> None:
    """Is well all the same."""
    with stub_server(lambda method, path: WELL[path] if path.startswith("/v1/") else (404, {})) as url:
        run = run_client("check", "--url", url)
    assert run.returncode == 0 and run.stdout.count("not told by this server") == 2


def test_nobody_listens() -> None:
    """It names the address."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    run = run_client("check", "--url", url)
    assert run.returncode == 1 and f"No server answers at {url}." in run.stderr


def test_a_server_that_does_not_answer(fake_server: RunningServer) -> None:
    """Is given up after --timeout."""
    run = run_client("check", "--url", fake_server.base_url, "--timeout", "0.0001")
    assert run.returncode == 1 and "takes too long to answer" in run.stderr
