"""The clients of Node: the official SDK and Vercel's AI SDK, in Node's own test runner, against real servers.

Skipped where there is no Node, or where its packages cannot be installed; with EARDRUM_REQUIRE_CLIENTS, as in CI, the
latter fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.clients.servers import run_limited, variables
from tests.support.servers import RunningServer

FOLDER = Path(__file__).parent / "node"
MODULES = FOLDER / "node_modules"
INSTALLED = MODULES / ".package-lock.json"  # npm's own record of what it installed, written last
OLDEST_NODE = 20
INSTALL_LIMIT_S = 240

pytestmark = pytest.mark.timeout(INSTALL_LIMIT_S + 180)


def run(*command: str, limit_s: float = 150, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        check=False,
    )


@pytest.fixture(scope="module")
def node() -> str:
    """Where Node is, with the packages of the lock file."""
    path, npm = shutil.which("node"), shutil.which("npm")
    if path is None or npm is None:
        pytest.skip("the clients of Node are NOT tested: there is no node and npm; install Node 20 or newer")
    version = run(path, "--version").stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"the clients of Node are NOT tested: node is {version}; install Node 20 or newer")
    install(npm)
    return path


def install(npm: str) -> None:
    lock = FOLDER / "package-lock.json"
    if INSTALLED.exists() and INSTALLED.stat().st_mtime >= lock.stat().st_mtime:
        return
    try:
        ended = run(npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", limit_s=INSTALL_LIMIT_S)
        failure = ended.stdout if ended.returncode else ""
    except subprocess.TimeoutExpired:
        failure = f"it took more than {INSTALL_LIMIT_S} s"
    if failure:
        shutil.rmtree(MODULES, ignore_errors=True)
        told = f"the clients of Node are NOT tested: `npm ci` in tests/clients/node failed: {failure[-500:]}"
        (pytest.fail if os.environ.get("EARDRUM_REQUIRE_CLIENTS") else pytest.skip)(told)


@pytest.fixture(scope="module")
def servers(node: str, fake_server: RunningServer, whisper_server: RunningServer) -> Iterator[Mapping[str, str]]:
    """Started only where they are asked something."""
    with run_limited() as limited:
        yield variables(fake_server, whisper_server, limited)


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.test.mjs")))
def test_a_client_of_node(name: str, node: str, servers: Mapping[str, str]) -> None:
    """Every test of the file passes, and none is left out."""
    ended = run(node, "--test", "--test-reporter=tap", name, **servers)
    assert ended.returncode == 0, ended.stdout
    assert "\n# skipped 0\n" in ended.stdout
