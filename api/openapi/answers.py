"""What the server answers, as models: written down for `/openapi.json` alone. The answers themselves are built by
`answers.py`, `text_completions.py`, `responses_events.py` and `transcripts.py`; tests hold every one against these.

A field with a default may be absent. The docstrings are what clients read.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, RootModel

FinishReason = Literal["stop", "length"]


class AudioUsage(BaseModel):
    """Seconds of audio. What was used and what was dropped add up to what was received."""

    seconds_received: float
    seconds_used: float
    seconds_dropped: float
    parts: int


class PromptDetails(BaseModel):
    audio_tokens: int
    cached_tokens: int


class Usage(BaseModel):
    """The model's own tokens, of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    audio: AudioUsage


class TokenProbability(BaseModel):
    """`bytes` are exact; half a character is a replacement character in `token`."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TokenProbability):
    top_logprobs: list[TokenProbability]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


# ---------------------------------------------------------------------------------------------------- chat completions


class FunctionCall(BaseModel):
    """`arguments` are JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    """`content` is null where tools are called and nothing is said beside. `reasoning_content`: what the model thought,
    where its thoughts are told apart."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(BaseModel):
    """`label_probabilities` where a `choice` and `logprobs` were asked for together."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason | Literal["tool_calls"]
    label_probabilities: dict[str, float] = {}


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    name: str = ""
    arguments: str


class ToolCallDelta(BaseModel):
    """The first of a call has all fields, and no arguments yet; those that follow have `index` and more arguments."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionDelta


class ChatDelta(BaseModel):
    """The role comes once for each choice, in its first chunk; the last chunk of a choice has an empty delta."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCallDelta] = []


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: Logprobs | None
    finish_reason: FinishReason | Literal["tool_calls"] | None
    label_probabilities: dict[str, float] = {}


class ChatCompletionChunk(BaseModel):
    """`usage` is there with `stream_options.include_usage`: null but in the last chunk, which has no choices; with
    `continuous_usage_stats` too, each chunk tells the usage so far."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


# --------------------------------------------------------------------------------------------------------- completions


class TextLogprobs(BaseModel):
    """Lists side by side, one entry for each token. `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextPiece(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None
    label_probabilities: dict[str, float] = {}


class TextChoice(TextPiece):
    finish_reason: FinishReason


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class TextCompletionChunk(BaseModel):
    """`usage` as in a chunk of a chat completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextPiece]
    usage: Usage | None = None


# -------------------------------------------------------------------------------------------------------------- tokens


class Tokens(BaseModel):
    """`max_model_len`: the tokens that the model takes, with its answer, where it is known. `token_strs` where asked
    for."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(BaseModel):
    prompt: str


# ------------------------------------------------------------------------------------------------------ audio


class TokenUsageDetails(BaseModel):
    audio_tokens: int
    text_tokens: int


class TranscriptionUsage(BaseModel):
    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: TokenUsageDetails
    audio: AudioUsage


class DurationUsage(BaseModel):
    type: Literal["duration"]
    seconds: float
    audio: AudioUsage


class Transcription(BaseModel):
    """`finish_reason` where the model filled its window, so that the transcript may lack its end."""

    text: str
    logprobs: list[TokenProbability] = []
    usage: TranscriptionUsage
    finish_reason: Literal["length"] = "length"


class TranscriptionSegment(BaseModel):
    """What no model here tells is empty or 0: `tokens` and `no_speech_prob`."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class VerboseTranscription(BaseModel):
    """For `response_format`: verbose_json. `language` is "unknown" where neither you nor the model tells it."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    text: str
    segments: list[TranscriptionSegment]
    usage: DurationUsage
    finish_reason: Literal["length"] = "length"


class TranscriptDelta(BaseModel):
    type: Literal["transcript.text.delta"]
    delta: str
    logprobs: list[TokenProbability] = []


class TranscriptDone(Transcription):
    type: Literal["transcript.text.done"]


class TranscriptEvent(RootModel[TranscriptDelta | TranscriptDone]):
    """An event of a transcription's stream. `[DONE]` follows the last."""


# ------------------------------------------------------------------------------------------------- models, probes


class ModelAudio(BaseModel):
    """What audio the model takes, at `sampling_rate` hertz after resampling; a null is no known limit."""

    sampling_rate: int
    max_seconds_per_window: float | None
    max_seconds_per_clip: float
    max_clips: int
    formats: list[str]
    long_audio: Literal["error", "truncate", "chunk"]
    batching: str
    why: str


class Model(BaseModel):
    """What a worker tells is absent until one has: `audio`, and how calls of tools and thoughts are read; null where
    they are not."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    audio: ModelAudio | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Status(BaseModel):
    status: Literal["ok", "unavailable"]


class Version(BaseModel):
    version: str


class ErrorFields(BaseModel):
    """`message` is a sentence for people, `param` the place in the request, `code` what programs decide by."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorFields
