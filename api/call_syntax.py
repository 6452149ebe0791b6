"""What the calls of each dialect look like: their beginnings, their ends, and whole ones. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from dialects import ToolDialect

_NAME = r"[a-zA-Z0-9_.-]{1,64}"
_OWN_ID = r"[a-zA-Z0-9]{0,64}"  # that a model writes
_STARTS = r"\{\s*(?=[\"}])"  # arguments in JSON; `{'` is Python's
_JSON_OUTSIDE_STRINGS = frozenset('{}[],:" \t\r\n+-.0123456789eE' + "truefalsn")


class Scan:
    """Finds the end of a JSON object as its text grows: where its brackets close, or where it is no JSON."""

    def __init__(self, depth: int = 0) -> None:
        self.at = 0  # characters read
        self.end: int | None = None  # behind the last bracket
        self.broken: int | None = None
        self._depth = depth
        self._in_string = self._escaped = False

    def read(self, text: str, begin: int) -> None:
        """Go on where it was; nothing before `begin` counts."""
        for at in range(max(self.at, begin), len(text)):
            if self.end is not None or self.broken is not None:
                return
            self._step(text[at], at)
            self.at = at + 1

    def _step(self, char: str, at: int) -> None:
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped, self._in_string = char == "\\", char != '"'
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.end = at + 1 if self._depth == 0 else None
        elif char not in _JSON_OUTSIDE_STRINGS:
            self.broken = at


def heads(dialect: ToolDialect) -> list[re.Pattern[str]]:
    """What a call begins with, up to its arguments, in the usual order."""
    kind = r'(?:"type"\s*:\s*"function"\s*,\s*)?'
    keys = "(?:arguments|parameters)"
    heads = [rf'(?P<head>\s*\{{\s*{kind}"name"\s*:\s*"(?P<name>{_NAME})"\s*,\s*"{keys}"\s*:\s*){_STARTS}']
    if dialect.named:
        own_id = rf"(?:{re.escape(dialect.call_id)}{_OWN_ID})?"
        heads.append(rf"(?P<head>\s*(?P<name>{_NAME}){own_id}(?:{re.escape(dialect.named)})?\s*){_STARTS}")
    return list(map(re.compile, heads))


def beginning_of_named(dialect: ToolDialect) -> re.Pattern[str]:
    """What may become a call that is a name, and arguments behind it; nothing but blanks where there are none such."""
    if not dialect.named:
        return re.compile(r"\s*")
    begun, named, call_id = r"\s*(?:\{\s*)?", re.escape(dialect.named), re.escape(dialect.call_id)
    behind_name = f"{_beginnings(dialect.named)}|(?:{named})?{begun}"
    behind_id = f"{_beginnings(dialect.call_id)}|{call_id}{_OWN_ID}(?:{behind_name})"
    return re.compile(rf"\s*(?:|{_NAME}(?:{behind_name}|{behind_id}))")


def _beginnings(mark: str) -> str:
    """An expression for all beginnings of a mark."""
    return "(?:" + "|".join(re.escape(mark[:size]) for size in range(len(mark))) + ")"


def call_in(text: str, dialect: ToolDialect) -> tuple[str, str] | None:
    """The name and the arguments, as JSON text, of an object that is a call."""
    try:
        call: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    name = call.get("name")
    arguments: Any = next((call[key] for key in (dialect.arguments, "arguments", "parameters") if key in call), {})
    if isinstance(arguments, str):  # JSON in JSON
        arguments = _object_in(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _object_in(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
