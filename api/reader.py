"""Reads the text of an answer, whatever the model writes into it, piece by piece. Pure.

text ─ Thoughts ─▶ thoughts
             └───▶ text ─ Calls ─▶ content, calls
"""

from __future__ import annotations

from collections.abc import Iterator, Set

from api.pieces import Content, Piece
from api.thoughts import Thoughts
from api.tools import Calls
from dialects import THOUGHTS, TOOLS, ReasoningStyle, ToolStyle


class Reader:
    """Reads one answer. Without a style it passes all text on as content."""

    def __init__(
        self,
        reasoning: ReasoningStyle | None = None,
        style: ToolStyle | None = None,
        names: Set[str] = frozenset(),
        parallel: bool = True,
    ) -> None:
        self._thoughts = Thoughts(*THOUGHTS[reasoning]) if reasoning else None
        self._calls = Calls(TOOLS[style], names, parallel) if style else None

    def push(self, text: str) -> list[Piece]:
        return list(self._read(self._thoughts.push(text) if self._thoughts else [Content(text)]))

    def end(self) -> list[Piece]:
        """What was held back; the text has ended."""
        pieces = list(self._read(self._thoughts.end() if self._thoughts else []))
        return [*pieces, *(self._calls.end() if self._calls else [])]

    def _read(self, pieces: list[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if isinstance(piece, Content) and self._calls:
                yield from self._calls.push(piece.text)
            else:
                yield piece
