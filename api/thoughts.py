"""Splits the thoughts of a model that thinks in tags off the rest of its answer, piece by piece. Pure."""

from __future__ import annotations

from api.pieces import Content, Piece, Splitter, State, Thought, held_back


class Thoughts(Splitter):
    """Splits off the thoughts at the beginning of an answer. Blanks around them are nobody's."""

    def __init__(self, opener: str, closer: str) -> None:
        super().__init__(self._begin)
        self._opener, self._closer = opener, closer

    def _begin(self, ended: bool) -> list[Piece] | None:
        text = self._held.lstrip()
        if text.startswith(self._opener):
            self._held, self._state = text[len(self._opener) :], self._think_first
            return []
        if not ended and self._opener.startswith(text):
            return None
        self._state = self._answer
        return []

    def _think_first(self, ended: bool) -> list[Piece] | None:
        return self._without_blanks(self._think, ended)

    def _think(self, ended: bool) -> list[Piece] | None:
        thought, closer, rest = self._held.partition(self._closer)
        if closer:
            self._held, self._state = rest, self._answer_first
            thought = thought.rstrip()
        elif ended:
            self._held = ""
        else:
            size = len(thought) - held_back(thought, (self._closer,))
            thought, self._held = thought[:size], thought[size:]
        return [Thought(thought)] if thought else ([] if closer else None)

    def _answer_first(self, ended: bool) -> list[Piece] | None:
        return self._without_blanks(self._answer, ended)

    def _without_blanks(self, then: State, ended: bool) -> list[Piece] | None:
        self._held = self._held.lstrip()
        if not self._held and not ended:
            return None
        self._state = then
        return []

    def _answer(self, ended: bool) -> list[Piece] | None:
        text, self._held = self._held, ""
        return [Content(text)] if text else None
