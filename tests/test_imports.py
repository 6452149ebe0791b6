"""The rooms' import table (ARCHITECTURE.md) holds for the code as it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("api", "audio", "benchmarks", "check", "cli", "engine", "models", "worker")

# What a room may import of ours. `audio.spool` stands for that file alone.
ALLOWED = {
    "config": set(),
    "wire": {"dialects"},
    "errors": set(),
    "dialects": set(),
    "audio": {"wire", "errors"},
    "models": {"wire", "errors", "dialects"},
    "engine": {"wire", "errors", "dialects", "models.base"},
    "api": {"wire", "errors", "dialects", "audio.spool", "audio.datauri", "audio.room", "config"},
    "worker": {"wire", "dialects", "errors", "audio", "engine", "models", "config"},
    "jobqueue": {"wire"},
    "restarts": set(),
    "devices": set(),
    "supervision": {"restarts", "worker"},
    "lifecycle": {"config", "jobqueue", "supervision", "devices", "api", "worker", "audio", "healthcheck"},
    "server": {"config", "api", "worker", "audio", "lifecycle", "supervision"},
    "client": {"cli"},
    "cli": set(),
    "healthcheck": set(),
    "benchmarks": {"wire", "engine", "models", "audio"},
    "check": {"wire", "errors", "config", "audio", "engine", "models", "worker"},
}
OURS = set(ALLOWED)
DOORS = {"models/check.py": {"check"}}  # files that open a room above their own, and do nothing else

FORBIDDEN = {
    "config": {"torch", "litserve", "fastapi"},
    "wire": {"torch", "litserve", "fastapi", "pydantic"},
    "errors": {"torch", "litserve", "fastapi"},
    "audio": {"fastapi", "litserve", "torch"},
    "models": {"fastapi", "litserve", "httpx"},
    "engine": {"fastapi", "pydantic", "httpx", "litserve"},
    "api": {"torch", "transformers"},
    "worker": {"fastapi"},
    "check": {"fastapi", "litserve"},
    "cli": {"torch", "litserve", "fastapi", "pydantic"},
    "supervision": {"torch", "litserve", "fastapi"},
    "devices": {"torch", "litserve", "fastapi"},
}
LITSERVE_FILES = {"server.py", "lifecycle.py", "api/spec.py", "worker/lit_api.py", "worker/loop.py"}


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).glob("**/*.py")) if room in ROOMS else [ROOT / f"{room}.py"]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also inside functions; `from a import b` counts as `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(module: str, allowed: set[str]) -> bool:
    """Whether `module` is one of `allowed` or within one, or the package that holds one."""
    return any(f"{module}.".startswith(f"{a}.") or f"{a}.".startswith(f"{module}.") for a in allowed)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    """Arrows run down only."""
    for path in files(room):
        ours = [module for module in imports(path) if module.partition(".")[0] in OURS - {room}]
        allowed = ALLOWED[room] | DOORS.get(str(path.relative_to(ROOT)), set())
        wrong = [module for module in ours if not inside(module, allowed)]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_keeps_out_what_it_must_not_know(room: str) -> None:
    """No torch in the HTTP process, no HTTP in the models, and so on."""
    for path in files(room):
        wrong = {module.partition(".")[0] for module in imports(path)} & FORBIDDEN[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_litserve_shows_up_in_few_files() -> None:
    """LitServe is confined to the launcher, the spec and the worker's two adapters."""
    paths = [path for room in ALLOWED for path in files(room)]
    users = {str(p.relative_to(ROOT)) for p in paths if any(m.partition(".")[0] == "litserve" for m in imports(p))}
    assert users <= LITSERVE_FILES


def test_every_room_is_in_the_table() -> None:
    """A new folder or file of ours at the top gets a row."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert packages | modules <= set(ALLOWED)


def test_the_main_process_and_the_api_processes_stay_without_torch() -> None:
    """They are forked from one another, so torch in one would be in all."""
    import subprocess
    import sys

    code = "import lifecycle, worker.loop, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
