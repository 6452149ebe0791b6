"""`python -m tests.support.settings_page` writes docs/settings.md: every setting with its default."""

from __future__ import annotations

from pathlib import Path

from config import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

INTRODUCTION = """# Settings

Written from `config.py` by `python -m tests.support.settings_page`; `python server.py --help` tells the same.

Flags, `EARDRUM_*` variables and a `.env` file, in this order of strength: `--max-rows 32` is `EARDRUM_MAX_ROWS=32`. A
switch that is on is turned off with `--no-` before its name, or `=false`. Give keys in the environment rather than as a
flag, where `ps` shows them. With `--api-servers 2` each process has half of the queue's limits.

| flag | default | |
|---|---|---|
"""


def text() -> str:
    """The whole page."""
    rows = [
        f"| `--{name.replace('_', '-')}` | {_told(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return INTRODUCTION + "\n".join(rows) + "\n"


def _told(default: object) -> str:
    """As one writes it on the command line; nothing where nothing is set."""
    if isinstance(default, bool):
        return "`on`" if default else "`off`"
    if default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return f"`{','.join(map(str, default))}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(text())
