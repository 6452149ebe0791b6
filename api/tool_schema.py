"""Tools in OpenAI's words, of both its APIs, to `Tools`. Pure.

Whether the served model can call any, and whether their schemas can be enforced, is the worker's to say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.form import Form
from config import Settings
from errors import BadRequest
from wire import Structure, Tool, Tools

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
NO_ARGUMENTS = json.dumps({**NO_PARAMETERS, "additionalProperties": False})


def _object_text(value: Any) -> str:
    """A schema of parameters, as JSON text."""
    try:
        if isinstance(value, dict) and value.get("type", "object") == "object":
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        pass  # the parser takes NaN and Infinity, which JSON does not have
    message = "Expected the JSON schema of an object (`type`: `object`), without NaN or Infinity"
    raise PydanticCustomError("parameters", message)


def _a_function(value: Any) -> Any:
    if value != "function":
        message = "Expected `function`: this server has no tools of its own"
        raise PydanticCustomError("tool_type", message)
    return value


FunctionType = Annotated[Literal["function"], BeforeValidator(_a_function)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


OfObject = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "properties": {"type": {"const": "object"}}})
]  # as a schema of schemas


class Function(Form):
    """`strict` is read and makes no difference: where a call is required its schema is enforced, else none is."""

    name: Name
    description: str | None = None
    parameters: Annotated[str, BeforeValidator(_object_text, json_schema_input_type=OfObject)] | None = None
    strict: bool | None = None

    @property
    def num_chars(self) -> int:
        return len(self.name) + len(self.description or "") + len(self.parameters or "")


class FunctionTool(Form):
    type: FunctionType
    function: Function

    @property
    def spec(self) -> Function:
        return self.function

    def as_tool(self, place: str) -> Tool:
        return _as_tool(self.function, f"{place}.function.parameters")


class _Typed(Form):
    type: FunctionType


class FlatTool(Function, _Typed):
    """As the Responses API writes it. The type is looked at first."""

    @property
    def spec(self) -> Function:
        return self

    def as_tool(self, place: str) -> Tool:
        return _as_tool(self, f"{place}.parameters")


def _as_tool(function: Function, place: str) -> Tool:
    parameters = json.loads(function.parameters) if function.parameters else NO_PARAMETERS
    description = {} if function.description is None else {"description": function.description}
    told = {"name": function.name, **description, "parameters": parameters}
    return Tool(function.name, json.dumps(told, ensure_ascii=False), function.parameters or NO_ARGUMENTS, place)


class _Named(Form):
    name: str


class NamedFunction(Form):
    type: FunctionType
    function: _Named

    @property
    def name(self) -> str:
        return self.function.name


class FlatNamedFunction(Form):
    type: FunctionType
    name: str


class _Allowed(Form):
    mode: Literal["auto", "required"]
    tools: list[NamedFunction] = Field(min_length=1)


class AllowedTools(Form):
    type: Literal["allowed_tools"]
    allowed_tools: _Allowed

    @property
    def mode(self) -> Literal["auto", "required"]:
        return self.allowed_tools.mode

    @property
    def tools(self) -> Sequence[NamedFunction]:
        return self.allowed_tools.tools


class FlatAllowedTools(Form):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[FlatNamedFunction] = Field(min_length=1)


def _choice_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "<mode>"
    if not isinstance(value, dict):
        return None
    return "<allowed>" if value.get("type") == "allowed_tools" else "<named>"


_BY_TAG = Discriminator(
    _choice_tag,
    custom_error_type="tool_choice",
    custom_error_message="Expected auto, none, required, or an object that names a function or allowed tools",
)
Mode = Literal["auto", "none", "required"]
ToolChoice = Annotated[
    Annotated[Mode, Tag("<mode>")]
    | Annotated[NamedFunction, Tag("<named>")]
    | Annotated[AllowedTools, Tag("<allowed>")],
    _BY_TAG,
]
FlatToolChoice = Annotated[
    Annotated[Mode, Tag("<mode>")]
    | Annotated[FlatNamedFunction, Tag("<named>")]
    | Annotated[FlatAllowedTools, Tag("<allowed>")],
    _BY_TAG,
]


def _refuse_old(value: Any) -> None:
    if value not in (None, [], {}):
        raise PydanticCustomError("unsupported", "This is OpenAI's older form; use `tools` and `tool_choice`")


Older = Annotated[Any, AfterValidator(_refuse_old), WithJsonSchema({"enum": [None, [], {}]})]


class ToolFields(Form):
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Older = None
    function_call: Older = None


class FlatToolFields(Form):
    tools: list[FlatTool] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None


class WithTools(Protocol):
    """A request of either API."""

    @property
    def tools(self) -> Sequence[FunctionTool] | Sequence[FlatTool] | None: ...

    @property
    def tool_choice(self) -> ToolChoice | FlatToolChoice | None: ...

    @property
    def parallel_tool_calls(self) -> bool | None: ...


@dataclass(frozen=True)
class _Choice:
    """Of any form. `names`: the tools that there are for this answer; `None`: all."""

    mode: Mode = "auto"
    names: tuple[str, ...] | None = None
    forced: str | None = None

    def allows(self, name: str) -> bool:
        return self.names is None or name in self.names

    def may_call(self, name: str) -> bool:
        return self.allows(name) and self.forced in (None, name)


def _choice(given: ToolChoice | FlatToolChoice | None) -> _Choice:
    match given:
        case None:
            return _Choice()
        case str():
            return _Choice(given)
        case NamedFunction() | FlatNamedFunction():
            return _Choice("required", forced=given.name)
        case AllowedTools() | FlatAllowedTools():
            return _Choice(given.mode, tuple(each.name for each in given.tools))


def build_tools(asked: WithTools) -> Tools | None:
    """The tools that an answer may call; `None` where there are none, or the client wants no calls: then the model is
    not told of any. The request is checked."""
    choice = _choice(asked.tool_choice)
    given = enumerate(_given(asked))
    tools = [each.as_tool(f"tools[{i}]") for i, each in given if choice.allows(each.spec.name)]
    if not tools or choice.mode == "none":
        return None
    return Tools(tuple(tools), choice.mode, choice.forced, _is_parallel(asked, choice))


def _is_parallel(asked: WithTools, choice: _Choice) -> bool:
    return asked.parallel_tool_calls is not False and choice.forced is None


def callable_names(asked: WithTools) -> tuple[frozenset[str], bool, bool]:
    """The names of the tools that the answer may call, whether it may call several, and whether the client has named
    the one. The request is checked."""
    choice = _choice(asked.tool_choice)
    names = (each.spec.name for each in _given(asked) if choice.mode != "none" and choice.may_call(each.spec.name))
    return frozenset(names), _is_parallel(asked, choice), choice.forced is not None


def _given(asked: WithTools) -> Sequence[FunctionTool | FlatTool]:
    return asked.tools or ()


def check_tools(asked: WithTools, structures: Sequence[Structure], settings: Settings) -> None:
    """Refuse what contradicts itself or is over a limit. Raises `BadRequest`."""
    specs, choice = [each.spec for each in _given(asked)], _choice(asked.tool_choice)
    _check_names([spec.name for spec in specs], choice)
    if not specs or choice.mode == "none":
        return
    required = [spec for spec in specs if choice.mode == "required" and choice.may_call(spec.name)]
    if sum(len(spec.parameters or "") for spec in required) > settings.max_structure_chars:
        limit = settings.max_structure_chars
        raise BadRequest(f"`tools`: what must be called has more than the limit of {limit} characters.", "tools")
    for each in structures:
        if each.kind not in ("json", "json_object"):
            raise BadRequest(f"`{each.place}` goes with `tool_choice`: none only.", each.place)


def _check_names(names: list[str], choice: _Choice) -> None:
    if len(set(names)) < len(names):
        raise BadRequest("`tools`: two functions have the same name.", "tools")
    if not names and choice.mode == "required":
        raise BadRequest("`tool_choice` asks for a call, and there are no `tools`.", "tool_choice")
    if {choice.forced, *(choice.names or ())} - {None, *names}:
        raise BadRequest("`tool_choice` names a function that is not among the `tools`.", "tool_choice")


def text_chars(asked: WithTools) -> int:
    """The length of all tools, whether the model is told of them or not."""
    return sum(each.spec.num_chars for each in _given(asked))


def tools_told_again(asked: FlatToolFields) -> dict[str, Any]:
    """What a response tells of the tools that its request had."""
    tools = [
        {
            "type": "function",
            "name": tool.name,
            **({} if tool.description is None else {"description": tool.description}),
            "parameters": json.loads(tool.parameters) if tool.parameters else None,
            "strict": tool.strict,
        }
        for tool in asked.tools or ()
    ]
    choice = asked.tool_choice
    return {
        "tools": tools,
        "tool_choice": choice.model_dump() if isinstance(choice, Form) else choice or "auto",
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
    }
