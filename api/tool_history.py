"""Calls of tools in the history, in OpenAI's words."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from api.form import Form
from api.tool_schema import FunctionType
from wire import ToolCall


def _arguments(value: Any) -> str:
    """The text of an object, as templates want to have it. Clients may leave it empty where there are no arguments."""
    try:
        arguments = json.loads(value or "{}") if isinstance(value, str) else None
        if isinstance(arguments, dict):
            return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        pass
    raise PydanticCustomError("arguments", "Expected the JSON text of an object")


ArgumentsText = Annotated[str, BeforeValidator(_arguments)]
ShortText = Annotated[str, Field(min_length=1, max_length=256)]


class CalledFunction(Form):
    name: ShortText
    arguments: ArgumentsText


class Call(Form):
    id: ShortText
    type: FunctionType = "function"
    function: CalledFunction

    def as_value(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)
