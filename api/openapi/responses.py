"""What `/v1/responses` answers, as models: written down for `/openapi.json` alone, as in `answers.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

from api.openapi.answers import AudioUsage, ErrorFields, TokenLogprob


class InputDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int


class OutputDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    audio: AudioUsage


class OutputText(BaseModel):
    """`label_probabilities` as in a chat completion."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprob]
    label_probabilities: dict[str, float] = {}


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ThoughtText(BaseModel):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(BaseModel):
    """What the model thought, where its thoughts are told apart."""

    id: str
    type: Literal["reasoning"]
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[Any]
    content: list[ThoughtText]


class OutputCall(BaseModel):
    """`arguments` are JSON, as the model wrote it."""

    id: str
    type: Literal["function_call"]
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputCall


class AnswerTool(BaseModel):
    """As in the request."""

    type: Literal["function"]
    name: str
    description: str = ""
    parameters: dict[str, Any] | None
    strict: bool | None


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class AnswerFormat(BaseModel):
    """As in the request."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None
    description: str | None = None


class AnswerText(BaseModel):
    format: AnswerFormat


class NoReasoning(BaseModel):
    effort: None
    summary: None


class Response(BaseModel):
    """What was asked is told again. An answer that was cut at its limit is `incomplete`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    background: Literal[False]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: NoReasoning
    store: Literal[False]
    tool_choice: Literal["auto", "none", "required"] | dict[str, Any]
    tools: list[AnswerTool]
    truncation: Literal["disabled"]
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    temperature: float | None
    text: AnswerText
    top_logprobs: int
    top_p: float | None


class _Event(BaseModel):
    sequence_number: int


class ResponseEvent(_Event):
    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    response: Response


class OutputItemEvent(_Event):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _PartEvent(_Event):
    item_id: str
    output_index: int
    content_index: int


class ContentPartEvent(_PartEvent):
    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText | ThoughtText


class TextDeltaEvent(_PartEvent):
    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprob]


class TextDoneEvent(_PartEvent):
    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprob]


class ReasoningDeltaEvent(_PartEvent):
    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningDoneEvent(_PartEvent):
    type: Literal["response.reasoning_text.done"]
    text: str


class _CallEvent(_Event):
    item_id: str
    output_index: int


class ArgumentsDeltaEvent(_CallEvent):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(_CallEvent):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class ErrorEvent(_Event):
    """The last event of a stream that failed."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None
    error: ErrorFields


class ResponseStreamEvent(
    RootModel[
        ResponseEvent
        | OutputItemEvent
        | ContentPartEvent
        | TextDeltaEvent
        | TextDoneEvent
        | ReasoningDeltaEvent
        | ReasoningDoneEvent
        | ArgumentsDeltaEvent
        | ArgumentsDoneEvent
        | ErrorEvent
    ]
):
    """An event of a response's stream."""
