"""How request bodies are read, at every endpoint: strict in types, liberal in what is ignored.

What is wrong is named as the client wrote it, such as `messages[0].content[1].audio_url.url`. Errors never repeat the
input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from errors import BadRequest


class Form(BaseModel):
    """A request, or an object in one. Fields that it does not have are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class Question(Form):
    """A request to the model."""

    model: str
    stream: bool | None = None


F = TypeVar("F", bound=Form)


def _refuse(value: Any) -> None:
    """For what would silently be left out of the answer. Null, false, an empty list or object ask for nothing, and
    pass."""
    if value is not None and value is not False and value not in ([], {}):
        raise PydanticCustomError("unsupported", "This is not supported here; leave it out")


def _refuse_false(value: Any) -> None:
    """The same, for what is on where nothing is said."""
    if value is not None and value is not True:
        raise PydanticCustomError("unsupported", "This is not supported here; leave it out")


Unsupported = Annotated[Any, AfterValidator(_refuse), WithJsonSchema({"enum": [None, False, [], {}]})]
AlwaysOn = Annotated[Any, AfterValidator(_refuse_false), WithJsonSchema({"enum": [None, True]})]


def parse_as(form: type[F], body: bytes) -> F:
    """The request in a JSON body. Raises `BadRequest`."""
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise bad_request(error) from None


def bad_request(error: ValidationError) -> BadRequest:
    """The first thing that is wrong, in a sentence. Pydantic's message quotes types and bounds, never the input."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return BadRequest("The request body is not valid JSON.", None)
    place = _place(first["loc"])
    if not place:
        return BadRequest("The request body must be a JSON object.", None)
    if first["type"] == "missing":
        return BadRequest(f"`{place}` is missing.", place)
    return BadRequest(f"`{place}`: {first['msg']}.", place)


def _place(loc: Sequence[int | str]) -> str:
    """A pydantic location in the client's words: `messages[0].content[1].text`. Union tags, in <>, are left out."""
    place = ""
    for step in loc:
        if isinstance(step, int):
            place += f"[{step}]"
        elif not step.startswith("<"):
            place += f".{step}" if place else step
    return place
