"""The servers that clients of other languages and of other environments are tried against, told by environment variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.servers import ROOT, RunningServer, run_server

KEYS = ("openai-js", "ai-sdk-responses", "ai-sdk", "ai-sdk-compatible", "langchain", "litellm", "llama-index", "instructor", "pydantic-ai")


@contextmanager
def run_limited() -> Iterator[RunningServer]:
    """The fake model behind a key for each client, each good for one request a minute."""
    with run_server("--model", "fake", "--requests-per-minute", "1", env={"EARDRUM_API_KEYS": ",".join(KEYS)}) as server:
        yield server


def variables(fake: RunningServer, whisper: RunningServer, limited: RunningServer) -> Mapping[str, str]:
    """Where the servers are, and the clips."""
    return {
        "FAKE_URL": f"{fake.base_url}/v1",
        "WHISPER_URL": f"{whisper.base_url}/v1",
        "WHISPER_MODEL": whisper.model,
        "LIMITED_URL": f"{limited.base_url}/v1",
        "CLIPS": str(ROOT / "tests" / "data"),
    }
