"""How a client wants the model's chat template applied, in vLLM's words, to the values that travel. Pure."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from api.form import Form
from config import Settings
from errors import BadRequest
from wire import Templating

WORDS = re.compile(r"[\w .-]{0,64}")  # a template may write a variable into the prompt: it is to be no control token


def _checked(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and WORDS.fullmatch(value)):
        return value
    raise PydanticCustomError("variable", "Expected a boolean, a number, null or a few plain words")


Variable = Annotated[
    Any, AfterValidator(_checked), WithJsonSchema({"type": ["boolean", "number", "string", "null"], "maxLength": 64})
]


class TemplateFields(Form):
    """Variables, and where the prompt is to end."""

    chat_template_kwargs: dict[str, Variable] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None


def check_templating(asked: TemplateFields, ends_in_answer: bool, settings: Settings) -> None:
    """`ends_in_answer`: whether the last message is a text of the assistant's. Raises `BadRequest`."""
    for name in asked.chat_template_kwargs or ():
        if name not in settings.allow_template_kwargs:
            allowed = ", ".join(settings.allow_template_kwargs) or "none"
            message = f"`chat_template_kwargs`: this server allows {allowed} (its --allow-template-kwargs)."
            raise BadRequest(message, "chat_template_kwargs")
    if not asked.continue_final_message:
        return
    if asked.add_generation_prompt:
        message = "`continue_final_message` continues a message, and `add_generation_prompt` opens a new one: send one."
        raise BadRequest(message, "add_generation_prompt")
    if not ends_in_answer:
        message = "`continue_final_message`: the last message is to be the assistant's, and to end in text."
        raise BadRequest(message, "messages")


def build_templating(asked: TemplateFields) -> Templating:
    variables = asked.chat_template_kwargs or {}
    return Templating(
        variables=json.dumps(variables) if variables else "",
        continues=bool(asked.continue_final_message),
        opens=asked.add_generation_prompt is not False,
    )
