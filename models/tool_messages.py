"""Tools, calls of them and their results as chat templates want to have them, which is as transformers' pages tell."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from models.base import Turn
from wire import ToolCall, Tools

_SHORT_ID = re.compile("[a-zA-Z0-9]{9}")


def tools_for_template(tools: Tools) -> list[dict[str, Any]]:
    return [{"type": "function", "function": json.loads(tool.text)} for tool in tools.functions]


def history_fields(turn: Turn, short_ids: bool) -> dict[str, Any]:
    """What a message has beside its role and content: templates test whether a key is there. `short_ids`: of nine
    letters and digits, as Mistral's templates demand; a call and its result have the same."""
    fields: dict[str, Any] = {}
    if turn.calls:
        fields["tool_calls"] = [_call(call, short_ids) for call in turn.calls]
    if turn.call_id is not None:
        fields["tool_call_id"] = _id(turn.call_id, short_ids)
    if turn.name is not None:
        fields["name"] = turn.name
    if turn.reasoning is not None:
        fields["reasoning_content"] = turn.reasoning
    return fields


def _call(call: ToolCall, short_ids: bool) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": _id(call.id, short_ids), "type": "function", "function": function}


def _id(given: str, short: bool) -> str:
    if not short or _SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:9]


def texts_beside(turn: Turn) -> list[str]:
    """All text of a message that is not its content."""
    texts = [turn.call_id, turn.name, turn.reasoning]
    texts += [text for call in turn.calls for text in (call.id, call.name, plain_json(call.arguments))]
    return [text for text in texts if text]


def plain_json(text: str) -> str:
    """JSON with no character written by its number, so that names can be found in it."""
    return json.dumps(json.loads(text), ensure_ascii=False)
