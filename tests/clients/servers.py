"""The servers for clients of other languages and other environments, which find them by environment variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.support.servers import ROOT, RunningServer, run_server

KEYS = (
    "openai-js",
    "ai-sdk-responses",
    "ai-sdk",
    "ai-sdk-compatible",
    "langchain",
    "litellm",
    "instructor",
    "pydantic-ai",
    "openai-agents",
    "llm",
)


@contextmanager
def run_limited() -> Iterator[RunningServer]:
    """The fake model behind a key for each client, each good for one request a minute."""
    env = {"EARDRUM_API_KEYS": ",".join(KEYS)}
    with run_server("--model", "fake", "--requests-per-minute", "1", env=env) as server:
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
