"""What the text of an answer says: content, thoughts and calls of tools; and how to look for markers in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class CallBegun:
    index: int
    id: str
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Piece = Content | Thought | CallBegun | Arguments


State = Callable[[bool], list[Piece] | None]


class Splitter:
    """Reads a text piece by piece. Each state takes what it is certain of off `_held`, and says what comes of it;
    `None`: it waits for more text. Its argument: whether the text has ended."""

    def __init__(self, first: State) -> None:
        self._held = ""  # not told yet
        self._state = first

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return self._run(ended=False)

    def end(self) -> list[Piece]:
        return self._run(ended=True)

    def _run(self, ended: bool) -> list[Piece]:
        told: list[Piece] = []
        while (pieces := self._state(ended)) is not None:
            told += pieces
        return told


def first_of(text: str, marks: tuple[str, ...]) -> tuple[int, str]:
    """The first of the marks in a text, and where it is; "" where there is none."""
    found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
    return min(found, default=(0, ""))


def held_back(text: str, marks: tuple[str, ...]) -> int:
    """The length of the text's end that may be blanks before a mark, or the beginning of one."""
    size = max(beginning_of(text, mark) for mark in marks)
    before = text[: len(text) - size]
    return size + len(before) - len(before.rstrip())


def beginning_of(text: str, mark: str) -> int:
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
