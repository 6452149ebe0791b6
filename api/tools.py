"""The text of an answer to the calls of tools in it, piece by piece. Pure.

Held back is only what may be the beginning of a marker, or of a call. However the text is cut into pieces, the same
comes out of it. What begins like a call and is none comes out as content, all of it. A call is told when its name is
known and its arguments have begun; from there on they are passed on as they are written, so they break off where the
model breaks off, as OpenAI's do.
"""

from __future__ import annotations

import uuid
from collections.abc import Set

from api.call_syntax import Scan, beginning_of_named, call_in, heads
from api.pieces import Arguments, CallBegun, Content, Piece, Splitter, State, first_of, held_back
from dialects import ToolDialect

_KIND = '"type":"function",'  # which Llamas like to write first
_BEGINNINGS = ('{"name":"', f'{{{_KIND}"name":"')  # of calls, without blanks


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class Calls(Splitter):
    """Splits off the calls of known tools. Blanks around calls are nobody's. With `parallel` false, calls after the
    first one are dropped."""

    def __init__(self, dialect: ToolDialect, names: Set[str], parallel: bool = True) -> None:
        super().__init__(self._first)
        self._dialect = dialect
        self._names = names
        self._parallel = parallel
        self._heads, self._beginning = heads(dialect), beginning_of_named(dialect)
        self._opened = ""  # of what is held, what has been read of what may be a call
        self._scan = Scan()
        self._in_list = False
        self._count = 0

    def _first(self, ended: bool) -> list[Piece] | None:
        """At the beginning of the answer."""
        if self._dialect.is_bare:
            text = self._held.lstrip()
            if not text and not ended:
                return None
            if text.startswith("{"):
                return self._open(self._held[: -len(text)])
        self._state = self._content
        return []

    def _content(self, ended: bool) -> list[Piece] | None:
        at, opener = first_of(self._held, self._dialect.openers)
        if opener:
            before = self._held[:at].rstrip()
            return self._say(before) + self._open(self._held[len(before) : at + len(opener)])
        size = len(self._held) if ended else len(self._held) - held_back(self._held, self._dialect.openers)
        text, self._held = self._held[:size], self._held[size:]
        if ended and self._count:
            text = text.rstrip()
        return self._say(text) or None

    def _open(self, opener: str) -> list[Piece]:
        """What follows may be a call. The opener is told if it is none. It is the rest of what is held before it."""
        at = self._held.index(opener) + len(opener)
        self._held, self._opened = self._held[at:], opener
        self._in_list, self._state = False, self._list
        return []

    def _list(self, ended: bool) -> list[Piece] | None:
        """Behind an opener."""
        text = self._held.lstrip()
        if not text and not ended:
            return None
        if text.startswith("["):
            self._take(len(self._held) - len(text) + 1)
            self._in_list = True
        return self._expect()

    def _expect(self) -> list[Piece]:
        self._scan, self._state = Scan(), self._head
        return []

    def _head(self, ended: bool) -> list[Piece] | None:
        """Where a call is expected: its beginning up to its arguments, or all of it where it is written otherwise."""
        for head in self._heads:
            if found := head.match(self._held):
                return self._begin(found["name"], found.end("head"), wrapped=self._held.lstrip().startswith("{"))
        blanks = len(self._held) - len(self._held.lstrip())
        if self._held[blanks : blanks + 1] != "{":
            return None if not ended and self._beginning.fullmatch(self._held) else self._fail()
        self._scan.read(self._held, blanks)
        if self._cannot_be() or self._scan.broken is not None:
            return self._fail()
        if self._scan.end is not None:
            return self._whole(self._held[: self._scan.end])
        return self._fail() if ended else None

    def _cannot_be(self) -> bool:
        """Of an answer that needs no opener, the first characters decide: it may be JSON of any kind."""
        text = "".join(self._held.split())
        is_bare = self._opened.strip() in ("", self._dialect.separator)
        return is_bare and not any(each.startswith(text) or text.startswith(each) for each in _BEGINNINGS)

    def _begin(self, name: str, size: int, wrapped: bool) -> list[Piece]:
        """A call whose arguments begin."""
        if name not in self._names:
            return self._fail()
        self._opened, self._held = "", self._held[size:]
        self._scan, self._state = Scan(), self._arguments if wrapped else self._named_arguments
        return self._call(name)

    def _call(self, name: str) -> list[Piece]:
        self._count += 1
        return [] if self._is_dropped else [CallBegun(self._count - 1, new_call_id(), name)]

    def _pass_on(self, text: str) -> list[Piece]:
        return [] if self._is_dropped or not text else [Arguments(self._count - 1, text)]

    @property
    def _is_dropped(self) -> bool:
        return self._count > 1 and not self._parallel

    def _arguments(self, ended: bool) -> list[Piece] | None:
        return self._stream(ended, then=self._rest)

    def _named_arguments(self, ended: bool) -> list[Piece] | None:
        return self._stream(ended, then=self._after)

    def _stream(self, ended: bool, then: State) -> list[Piece] | None:
        """Arguments, up to their end, or to what is no JSON any more."""
        scan = self._scan
        scan.read(self._held, 0)
        size = next((at for at in (scan.end, scan.broken) if at is not None), len(self._held))
        text, self._held = self._held[:size], self._held[size:]
        if scan.end is not None:
            self._scan, self._state = Scan(depth=1), then
        elif scan.broken is not None:
            self._state = self._after
        elif not text:
            return None
        scan.at = 0
        return self._pass_on(text)

    def _rest(self, ended: bool) -> list[Piece] | None:
        """What an object holds behind its arguments, such as an id of the model's own; nobody's."""
        self._scan.read(self._held, 0)
        size = next((at for at in (self._scan.end, self._scan.broken) if at is not None), len(self._held))
        if self._scan.end is not None or self._scan.broken is not None or ended:
            self._state = self._after
        elif not size:
            return None
        self._held, self._scan.at = self._held[size:], 0
        return []

    def _whole(self, text: str) -> list[Piece]:
        """An object that is complete and does not begin as usual."""
        call = call_in(text, self._dialect)
        if call is None or call[0] not in self._names:
            return self._fail()
        self._opened, self._held, self._state = "", self._held[len(text) :], self._after
        return self._call(call[0]) + self._pass_on(call[1])

    def _after(self, ended: bool) -> list[Piece] | None:
        """Behind a call: more of a list, its end, and the closer."""
        text = self._held.lstrip()
        ends = tuple(filter(None, (self._dialect.closer, self._dialect.separator, "," if self._in_list else "")))
        if not ended and any(end.startswith(text) and end != text for end in ends):
            return None
        if self._in_list and text.startswith(","):
            self._held, self._opened = text[1:], text[:1]
            return self._expect()
        if self._in_list and text.startswith("]"):
            self._held, self._in_list = text[1:], False
            return []
        if self._dialect.closer and text.startswith(self._dialect.closer):
            self._held, self._state = text[len(self._dialect.closer) :], self._between
            return []
        if self._dialect.separator and text.startswith(self._dialect.separator):
            return self._next_bare(text, ended)
        self._state = self._between
        return []

    def _between(self, ended: bool) -> list[Piece] | None:
        """Blanks between a call and what follows."""
        self._held = self._held.lstrip()
        if not self._held and not ended:
            return None
        self._state = self._content
        return []

    def _next_bare(self, text: str, ended: bool) -> list[Piece] | None:
        """`text` begins with a separator; it is one where another object follows."""
        rest = text[len(self._dialect.separator) :].lstrip()
        if not rest and not ended:
            return None
        self._held, self._state = text, self._content
        return self._open(text[: -len(rest)]) if rest.startswith("{") else []

    def _fail(self) -> list[Piece]:
        """No call: what was read of it is content, and what follows is read on."""
        text, self._opened = self._opened, ""
        self._in_list, self._state = False, self._content
        return self._say(text)

    def _take(self, size: int) -> None:
        self._opened += self._held[:size]
        self._held = self._held[size:]

    def _say(self, text: str) -> list[Piece]:
        return [Content(text)] if text else []
