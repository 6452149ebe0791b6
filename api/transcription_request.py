"""OpenAI's transcription and translation requests as we read them, from a form or from JSON, to a `Job`. Pure.

Strict in types, liberal in what it ignores; what is asked for and cannot be done is refused. In a form all values are
text, so a number or a switch is read from it, and an empty one counts as not given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, from_json

from api.form import Form, Unsupported, bad_request
from api.languages import NAMES
from api.schema import InputAudio
from config import Settings
from errors import BadRequest
from wire import AudioPart, Job, JobId, LongAudio, Message, Sampling, TextPart, Transcribe

Format = Literal["json", "text", "verbose_json", "srt", "vtt"]
TIMED: frozenset[Format] = frozenset({"verbose_json", "srt", "vtt"})
LISTS = ("timestamp_granularities", "include", "keywords", "languages")
TRANSLATION = "Translate the speech in this audio into English. Answer with the translation only."

_INNER = re.compile(r"(\w+)\[(\w+)\]")  # an object's field, as forms have them


def _code(value: str) -> str:
    code = value.strip().lower()
    if code not in NAMES:
        raise PydanticCustomError("language", "Expected a language's ISO 639-1 code, such as en or de")
    return code


def _granularity(value: str) -> str:
    if value == "word":
        raise PydanticCustomError("words", "This server cannot tell the times of words; ask for segment")
    return value


def _strategy(value: Any) -> Any:
    """An object may come as its JSON text. Audio that must be cut is cut at its pauses; how cannot be set."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = from_json(value)
        except ValueError:
            raise PydanticCustomError("strategy", STRATEGIES) from None
    if value is None or value == "auto" or value == {"type": "server_vad"}:
        return value
    raise PydanticCustomError("strategy", STRATEGIES)


STRATEGIES = 'Expected "auto", or {"type": "server_vad"} without settings, as the server cuts at pauses by itself'

Granularity = Annotated[Literal["word", "segment"], AfterValidator(_granularity)]


class TranscriptionRequest(Form):
    """The fields that are used, and two that are refused. All others are ignored."""

    model: str
    language: Annotated[str, AfterValidator(_code)] | None = None
    prompt: str | None = None
    response_format: Format | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    timestamp_granularities: list[Granularity] | None = None
    include: list[Literal["logprobs"]] | None = None
    stream: bool | None = None
    chunking_strategy: Annotated[Any, BeforeValidator(_strategy)] = None
    keywords: Unsupported = None  # of OpenAI's newer models, as is the next
    languages: Unsupported = None
    long_audio: LongAudio | None = None  # ours
    input_audio: InputAudio | None = None  # of a JSON body

    @property
    def format(self) -> Format:
        return self.response_format or "json"

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.include)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.timestamp_granularities and self.format != "verbose_json":
            raise _misfit("timestamp_granularities", "with `response_format`: verbose_json only")
        if self.include and self.format != "json":
            raise _misfit("include", "with `response_format`: json only")
        if self.stream and self.format in TIMED:
            raise _misfit("stream", "with `response_format`: json or text only")
        return self


def _misfit(field: str, where: str) -> PydanticCustomError:
    return PydanticCustomError("misfit", "`{field}` goes {where}", {"field": field, "where": where})


def parse_json(body: bytes) -> TranscriptionRequest:
    """The request in a JSON body. Raises `BadRequest`."""
    try:
        request = TranscriptionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _bad_request(error) from None
    if request.input_audio is None:
        raise BadRequest("`input_audio` is missing.", "input_audio")
    return request


def parse_form(fields: Mapping[str, Sequence[str]]) -> TranscriptionRequest:
    """The request in a form's fields. Raises `BadRequest`."""
    try:
        return TranscriptionRequest.model_validate(_values(fields), strict=False)
    except ValidationError as error:
        raise _bad_request(error) from None


def _bad_request(error: ValidationError) -> BadRequest:
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "misfit":
        return BadRequest(f"{first['msg']}.", first["ctx"]["field"])
    return bad_request(error)


def _values(fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A form's fields as JSON would have them."""
    values: dict[str, Any] = {}
    for name, given in fields.items():
        plain = name.removesuffix("[]")
        texts = [text for text in given if text]
        if plain in LISTS:
            values.setdefault(plain, []).extend(texts)
        elif inner := _INNER.fullmatch(name):
            outer = values.setdefault(inner[1], {})
            if isinstance(outer, dict) and texts:
                outer[inner[2]] = texts[-1]
        elif len(texts) > 1 and name in TranscriptionRequest.model_fields:
            raise BadRequest(f"`{name}` is given more than once.", name)
        elif texts:
            values[name] = texts[0]
    values.pop("input_audio", None)  # in a form, the audio is the file
    return values


def build_job(
    request: TranscriptionRequest,
    job_id: JobId,
    audio: AudioPart,
    spool_bytes: int,
    translate: bool,
    settings: Settings,
) -> Job:
    """Greedy unless the client says otherwise, and in pieces where the audio is long unless the operator does."""
    if request.prompt is not None and len(request.prompt) > settings.max_text_chars:
        raise BadRequest(f"`prompt` has more than {settings.max_text_chars} characters.", "prompt")
    task = Transcribe(request.language, request.prompt or None, translate, timestamps=request.format in TIMED)
    return Job(
        job_id,
        (Message("user", (audio, TextPart(instruction(task, settings.transcription_prompt)))),),
        Sampling(temperature=request.temperature or 0.0, top_logprobs=0 if request.wants_logprobs else None),
        spool_bytes=spool_bytes,
        long_audio=request.long_audio or settings.long_audio or "chunk",
        task=task,
    )


def instruction(task: Transcribe, transcription_prompt: str) -> str:
    """The task in words, for models that are told so."""
    lines = [TRANSLATION if task.translate else transcription_prompt]
    if task.language is not None:
        lines.append(f"The speech is in {NAMES[task.language]}.")
    if task.prompt is not None:
        lines.append(f"This may help with names and spelling: {task.prompt}")
    return "\n".join(lines)
