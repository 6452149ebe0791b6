"""What one check has found, for a person to act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "warn", "fail", "skipped"]
MAX_QUOTED_CHARS = 60


@dataclass(frozen=True)
class Outcome:
    """`seen`: what happened. `advice`: what to do about it. Only a fail breaks a promise."""

    status: Status
    seen: str
    advice: str = ""


def passed(seen: str) -> Outcome:
    return Outcome("pass", seen)


def warned(seen: str, advice: str = "") -> Outcome:
    return Outcome("warn", seen, advice)


def failed(seen: str, advice: str = "") -> Outcome:
    return Outcome("fail", seen, advice)


def skipped(seen: str) -> Outcome:
    return Outcome("skipped", seen)


def quoted(text: str) -> str:
    """A text in quotation marks, in one line, its middle left out where it is long."""
    if len(text) > MAX_QUOTED_CHARS:
        half = MAX_QUOTED_CHARS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return f'"{text}"'.replace("\n", "\\n")


@contextmanager
def noted(what: str) -> Iterator[None]:
    """Notes on every exception from within what was tried."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def told(error: Exception) -> str:
    """Its type, its text, and what is noted on it."""
    notes = "".join(f", with {note}" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}{notes}"
