"""Servers that many tests share. Each is `python server.py` in processes of its own, started once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import models  # noqa: F401 -- before any test imports transformers: it brings the guard for torchaudio
from tests.support.origin import Origin, run_origin
from tests.support.servers import RunningServer, run_server
from tests.support.watching import wrong_answers

ORIGIN_FLAGS = ("--allow-private-networks", "--fetch-first-byte", "9.5")  # it answers when a test lets it

FAULTS = Path(__file__).parent / "faults"

torch.set_num_threads(1)  # threads that wait for one another on few cores take longer than one thread

settings.register_profile("ci", derandomize=True)  # CI tests the change; developers' runs look for new examples
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stays in one process where there are several: a file, and all faults. Those load the machine with servers
    that they start and kill; two of them at once would be too much for the times in them."""
    for item in items:
        group = "faults" if FAULTS in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def all_answers_are_valid() -> Iterator[None]:
    """Whatever a test looks at: OpenAI's clients can take what it received, and /openapi.json describes it."""
    wrong_answers()
    yield
    assert not wrong_answers()


@pytest.fixture(scope="session")
def fake_server() -> Iterator[RunningServer]:
    """The whole stack with the fake model."""
    with run_server("--model", "fake", *ORIGIN_FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def whisper_server() -> Iterator[RunningServer]:
    """The whole stack with the real weights, under a name of the operator's."""
    with run_server("--served-model-name", "my-model", *ORIGIN_FLAGS) as server:
        yield server


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """A web server for audio on the loopback address."""
    with run_origin() as running:
        yield running
