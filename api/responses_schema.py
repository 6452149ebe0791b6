"""OpenAI's response request as we read it, and the job that it becomes. Pure.

Nothing is stored, so a conversation comes whole with each request, and what would need something stored is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from api.chat import build_messages, check_messages
from api.form import Form, Question, Unsupported
from api.intake import Intake
from api.responses_input import Item, as_messages
from api.sampling import SamplingFields, build_sampling, check_sampling, check_top_logprobs
from api.schema import ChatMessage, NamedSchema, NotSupported, StructuredOutputs
from api.structure import check_structures, outputs_of
from api.tool_schema import FlatToolFields, build_tools, check_tools, text_chars
from config import Settings
from wire import Job, JobId, Structure

LOGPROBS = "message.output_text.logprobs"  # what `include` says to get them


class PlainFormat(Form):
    type: Literal["text", "json_object"]


class TextSchemaFormat(NamedSchema):
    type: Literal["json_schema"]
    description: str | None = None


class TextConfig(Form):
    """`verbosity` is ignored."""

    format: (
        Annotated[
            Annotated[TextSchemaFormat, Tag("<schema>")] | Annotated[PlainFormat, Tag("<plain>")],
            Discriminator(
                lambda value: (
                    "<schema>" if isinstance(value, dict) and value.get("type") == "json_schema" else "<plain>"
                )
            ),
        ]
        | None
    ) = None


Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class ResponsesRequest(Question, SamplingFields, FlatToolFields, NotSupported):
    """The fields that are used, those that are told again in the answer, and those that are refused."""

    input: Annotated[
        Annotated[str, Tag("<string>")] | Annotated[list[Item], Field(min_length=1), Tag("<items>")],
        Discriminator(
            lambda value: {str: "<string>", list: "<items>"}.get(type(value)),
            custom_error_type="input_type",
            custom_error_message="Expected a string or a list of items",
        ),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextConfig | None = None
    structured_outputs: StructuredOutputs | None = None  # vLLM's
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0)
    metadata: Metadata | None = Field(None, max_length=16)

    previous_response_id: Unsupported = None
    conversation: Unsupported = None
    prompt: Unsupported = None
    background: Unsupported = None

    @property
    def token_limit(self) -> int | None:
        return self.max_output_tokens

    @property
    def logprobs(self) -> bool:
        """Whether they are asked for."""
        return LOGPROBS in (self.include or ())

    @property
    def messages(self) -> list[tuple[str, ChatMessage]]:
        """All of the conversation, each message with its place in the request."""
        told = [("instructions", ChatMessage(role="system", content=self.instructions))] if self.instructions else []
        if isinstance(self.input, str):
            return [*told, ("input", ChatMessage(role="user", content=self.input))]
        return [*told, *as_messages(self.input)]

    @property
    def text_format(self) -> dict[str, Any]:
        """The form of the answer, as the answer tells it."""
        asked = self.text.format if self.text else None
        if not isinstance(asked, TextSchemaFormat):
            return {"type": asked.type if asked else "text"}
        schema = json.loads(asked.schema_)
        told = {"type": "json_schema", "name": asked.name, "schema": schema, "strict": asked.strict}
        return told if asked.description is None else {**told, "description": asked.description}

    @property
    def structures(self) -> Iterator[Structure]:
        """All that the answer must look like."""
        asked = self.text.format if self.text else None
        if isinstance(asked, TextSchemaFormat):
            yield Structure("json", "text.format.schema", asked.schema_)
        elif asked and asked.type == "json_object":
            yield Structure("json_object", "text.format")
        if self.structured_outputs:
            yield from outputs_of(self.structured_outputs)


def check_limits(asked: ResponsesRequest, settings: Settings) -> None:
    """Refuse what is over a limit before any audio is decoded. Raises `BadRequest`."""
    check_messages([message for _, message in asked.messages], settings, "input", text_chars(asked))
    check_sampling(asked, settings)
    check_top_logprobs(asked.top_logprobs, settings)
    check_structures(list(asked.structures), settings)
    check_tools(asked, list(asked.structures), settings)


def build_job(asked: ResponsesRequest, job_id: JobId, intake: Intake, max_audio_bytes: int) -> Job:
    """The job of a checked request. Decodes base64 and writes files, so not for an event loop. Raises `BadRequest`."""
    return Job(
        job_id,
        build_messages(asked.messages, intake, max_audio_bytes),
        build_sampling(asked, top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None),
        spool_bytes=intake.num_bytes,
        structure=next(asked.structures, None),
        priority=asked.priority or 0,
        long_audio=asked.long_audio,
        tools=build_tools(asked),
    )
