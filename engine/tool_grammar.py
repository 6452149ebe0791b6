"""Calls of tools as a grammar: what must be called is called, with arguments that follow its schema.

    hermes   <tool_call>\\n{"name": "f", "arguments": {…}}\\n</tool_call>     granite  <|tool_call|>[{…}, {…}]
    mistral  [TOOL_CALLS]f[ARGS]{…}, or [TOOL_CALLS][{…}, {…}]               llama  {"name": "f", "parameters": {…}}; …

Markers are the model's own tokens where it has them. Where a call is the model's choice and an answer must follow a
schema, the grammar has both, and a call's arguments are any object.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from dialects import ToolDialect
from engine.grammar import Grammar, GrammarCompiler, json_grammar
from errors import BadRequest, located
from wire import Structure, Tool, Tools

ANY_OBJECT = '{"type": "object"}'


def compile_calls(
    compiler: GrammarCompiler, tools: Tools, dialect: ToolDialect, structure: Structure | None
) -> Grammar | None:
    """The grammar of an answer that may call tools; `None` where it may be anything. A structure is for an answer
    without calls. Raises `BadRequest` as `compile` does."""
    if tools.choice == "auto" and structure is None:
        return None
    answer = None
    if tools.choice == "auto" and structure is not None:
        with located(structure.place):
            answer = _schema(structure.text if structure.kind == "json" else ANY_OBJECT)
    ids = compiler.vocabulary.special_ids(dialect.markers)
    calls = _Calls(tools, dialect, has_named=dialect.named in ids, answer=answer)
    try:
        return compiler.compile_source(
            calls.source(json.dumps), calls.source(lambda mark: _token(mark, ids)), ids.values()
        )
    except BadRequest:
        _blame(compiler, tools, structure)
        raise BadRequest("`tools`: together they are too complex.", "tools") from None


def _token(mark: str, ids: dict[str, int]) -> str:
    return f"<[{ids[mark]}]>" if mark in ids else json.dumps(mark)


def _blame(compiler: GrammarCompiler, tools: Tools, structure: Structure | None) -> None:
    """Raises `BadRequest` for the first that is wrong by itself."""
    if tools.choice == "auto" and structure is not None:
        compiler.compile(structure)
    for tool in tools.callable:
        if tools.choice == "required":
            compiler.compile(Structure("json", tool.place, tool.parameters))


class _Calls:
    """The grammar, in Lark. `has_named`: the model has a token between a name and its arguments."""

    def __init__(self, tools: Tools, dialect: ToolDialect, has_named: bool, answer: str | None) -> None:
        self._tools, self._dialect = tools, dialect
        self._has_named = has_named
        self._answer = answer
        self._schemas = [self._arguments(tool) for tool in tools.callable]

    def _arguments(self, tool: Tool) -> str:
        if self._tools.choice == "auto":
            return _schema(ANY_OBJECT)
        with located(tool.place):
            return _schema(tool.parameters)

    def source(self, mark: Callable[[str], str]) -> str:
        """`mark` writes a marker, as text or as a token."""
        names = [tool.name for tool in self._tools.callable]
        lines = [
            "start: calls" if self._answer is None else "start: calls | answer",
            f"calls: {self._calls(mark)}",
            "call: " + " | ".join(f"call_{i}" for i in range(len(names))),
        ]
        for i, (name, schema) in enumerate(zip(names, self._schemas, strict=True)):
            lines += [f"call_{i}: {self._call(name, f'arguments_{i}', mark)}", f"arguments_{i}: {schema}"]
        if self._answer is not None:
            lines.append(f"answer: {self._answer}")
        return "\n".join(lines)

    def _calls(self, mark: Callable[[str], str]) -> str:
        dialect = self._dialect
        opener = mark(dialect.openers[0])
        if self._has_named:
            return self._several(f"{opener} call", "")
        if dialect.lists:
            return f'{opener} "[" {self._several("call", ", ")} "]"'
        if dialect.is_bare:
            return self._several("call", f"{dialect.separator} ")
        return self._several(f'{opener} "\\n" call "\\n" {mark(dialect.closer)}', "\n")

    def _several(self, one: str, between: str) -> str:
        if not self._tools.parallel:
            return one
        return f"{one} ({json.dumps(between)} {one})*" if between else f"({one})+"

    def _call(self, name: str, arguments: str, mark: Callable[[str], str]) -> str:
        if self._has_named:
            return f"{json.dumps(name)} {mark(self._dialect.named)} {arguments}"
        head = f'{{"name": {json.dumps(name)}, "{self._dialect.arguments}": '
        return f'{json.dumps(head)} {arguments} "}}"'


def _schema(text: str) -> str:
    """A JSON schema as an expression in Lark. Raises `BadRequest`."""
    schema = json.loads(text)
    return json_grammar(json.dumps({"type": "object", **schema}))
