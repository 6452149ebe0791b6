"""Reads the text of an answer, whatever the model writes into it, piece by piece. Pure.

text ─ Thoughts ─▶ thoughts
             └───▶ text ─ Calls ─▶ content, calls
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

from api.pieces import Arguments, CallBegun, Content, Piece, Thought
from api.thoughts import Thoughts
from api.tools import Calls
from dialects import THOUGHTS, TOOLS, ReasoningStyle, ToolStyle


@dataclass
class SaidCall:
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


@dataclass
class Said:
    """All that an answer says."""

    content_pieces: list[str] = field(default_factory=list)
    thought_pieces: list[str] = field(default_factory=list)
    calls: list[SaidCall] = field(default_factory=list)

    def add(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Content(text):
                    self.content_pieces.append(text)
                case Thought(text):
                    self.thought_pieces.append(text)
                case CallBegun(_, id_, name):
                    self.calls.append(SaidCall(id_, name))
                case Arguments(index, text):
                    self.calls[index].pieces.append(text)

    @property
    def content(self) -> str:
        return "".join(self.content_pieces)

    @property
    def thoughts(self) -> str:
        return "".join(self.thought_pieces)


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
