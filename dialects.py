"""How models write calls of tools, and their thoughts: the markers of each style, by the names that settings have.

Values only, and which of them a chat template shows. Reading them is `api/tools.py`'s, enforcing them `engine/`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ToolStyle = Literal["hermes", "mistral", "llama", "granite"]
ReasoningStyle = Literal["think", "mistral"]


@dataclass(frozen=True)
class ToolDialect:
    """A call is a JSON object with a `name` and, under the key `arguments`, another one.

    `openers`: what a call, or a list of calls, begins with; a model writes the first of them, others are read, too.
    `closer`: what may end it. `lists`: several calls stand in one JSON list; otherwise each has an opener of its own.
    `is_bare`: an answer that is a call needs no opener, and the next call comes behind `separator`. `named`: what comes
    between a call's name and its arguments where the model writes them without an object around, and `call_id` before
    it, where the model names the call itself.
    """

    openers: tuple[str, ...]
    closer: str = ""
    arguments: str = "arguments"
    lists: bool = False
    is_bare: bool = False
    separator: str = ""
    named: str = ""
    call_id: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """All that may be special tokens, and must stay in the text to be read."""
        return tuple(filter(None, (*self.openers, self.closer, self.named, self.call_id)))


TOOLS: dict[ToolStyle, ToolDialect] = {
    "hermes": ToolDialect(("<tool_call>",), "</tool_call>"),
    "mistral": ToolDialect(("[TOOL_CALLS]",), lists=True, named="[ARGS]", call_id="[CALL_ID]"),
    "llama": ToolDialect(("<|python_tag|>",), arguments="parameters", is_bare=True, separator=";"),
    "granite": ToolDialect(("<|tool_call|>", "<tool_call>"), "</tool_call>", lists=True),
}

THOUGHTS: dict[ReasoningStyle, tuple[str, str]] = {
    "think": ("<think>", "</think>"),
    "mistral": ("[THINK]", "[/THINK]"),
}

_NOT_JSON = ("<arg_key>", "<function=")  # templates that have Hermes' markers around calls in a kind of XML


def takes_tools(template: str) -> bool:
    """Whether a chat template makes anything of tools."""
    return "tools" in template


def tool_style_of(template: str) -> ToolStyle | None:
    """How the model of a chat template writes calls; `None` where it writes none, or in a way that is unknown here."""
    if not takes_tools(template) or any(sign in template for sign in _NOT_JSON):
        return None
    signs: dict[ToolStyle, str] = {"mistral": "[TOOL_CALLS]", "granite": "<|tool_call|>", "hermes": "<tool_call>"}
    for style, sign in signs.items():
        if sign in template:
            return style
    is_llamas = "<|python_tag|>" in template or ('"name"' in template and '"parameters"' in template)
    return "llama" if is_llamas else None
