"""What `--model` is served by: the model loaded, and the engine that fits it.

    CausalModel ──▶ Engine         continuous batching
    TextModel   ──▶ BatchEngine    a batch at a time
    cascade     ──▶ CascadeEngine  two engines, one behind the other

The three engines look the same from here on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from audio.decode import FORMATS
from config import Settings
from dialects import ToolStyle
from engine.batching import BatchEngine
from engine.engine import Engine, EngineEvent
from engine.grammar import Grammar
from engine.rows import EngineOptions
from engine.tokens import Told
from models import registry
from models.base import CausalModel, Conversation, TextModel
from models.cards import as_card_says, read_card
from models.loading import LoadOptions
from wire import Batching, Capabilities, Heard, Job, JobId
from worker.cascade import CascadeEngine, is_cascade, split_settings


class Request(Protocol):
    """What an engine answers; made by its own `Requests`, and known to nobody else."""

    @property
    def id(self) -> JobId: ...


class Requests(Protocol):
    """Makes requests. Several threads may call it at once, never the engine's."""

    def compile(self, job: Job) -> Grammar | None:
        """What the job's answer must look like. May take seconds. Raises `BadRequest`."""

    def prepare(self, job: Job, conversation: Conversation, heard: Heard, grammar: Grammar | None) -> Request:
        """The request of a job, whose messages and audio are `conversation`. Raises `BadRequest`."""

    def tokens(self, job: Job, conversation: Conversation, heard: Heard) -> Told:
        """The answer to a job that asks for no more than tokens, as `prepare` gets it. Raises `BadRequest`."""


class AnyEngine(Protocol):
    """Requests in, events out, one step at a time: expire, admit, decode. Called from one thread."""

    @property
    def requests(self) -> Requests: ...

    @property
    def idle(self) -> bool: ...

    @property
    def batching(self) -> tuple[Batching, str]:
        """How requests share the model, and why."""

    def submit(self, request: Any) -> None:
        """Take a request that its own `requests` have made."""

    def cancel(self, job_id: JobId) -> None:
        """Drop a request, wherever it is. An unknown one is no error."""

    def expire(self, now: float) -> Sequence[EngineEvent]:
        """Drop the requests whose deadline is before `now`, in seconds of the machine's monotonic clock."""

    def admit(self) -> Sequence[EngineEvent]: ...

    def decode(self) -> Sequence[EngineEvent]: ...

    def reset(self) -> None:
        """Forget all requests."""


@dataclass(frozen=True)
class Served:
    """A loaded model's engine, what the model takes, and the model itself; none for a cascade, which is two."""

    engine: AnyEngine
    capabilities: Capabilities
    model: CausalModel | TextModel | None = None


def load(settings: Settings, device: str, heed_card: bool = True) -> Served:
    """Load what `settings.model` names onto `device`, and batch it as its card says, or else as it says itself. Raises
    `OSError` and `ValueError` for what the operator can mend."""
    if is_cascade(settings.model):
        return _load_cascade(settings, device)
    return serve(_load_model(settings, device, heed_card), settings)


def _load_cascade(settings: Settings, device: str) -> Served:
    """Both models are loaded before either's engine measures what memory is left. Raises `ValueError` for deaf ears."""
    ears_settings, llm_settings = split_settings(settings)
    hears = _load_model(ears_settings, device)
    if hears.capabilities.max_clips == 0:
        raise ValueError(f"--model {ears_settings.model} reads text only, and cannot be the ears of a cascade.")
    answers = _load_model(llm_settings, device)
    ears, llm = serve(hears, ears_settings), serve(answers, llm_settings)
    engine = CascadeEngine(ears.engine, llm.engine)
    batching, why = engine.batching
    of_llm = llm.capabilities
    capabilities = replace(ears.capabilities, tools=of_llm.tools, reasoning=of_llm.reasoning, max_clips=None)
    return Served(engine, replace(capabilities, batching=batching, why=why))


def _load_model(settings: Settings, device: str, heed_card: bool = True) -> CausalModel | TextModel:
    model = registry.create(settings.model, load_options(settings))
    model.setup(device, settings.dtype)
    model.capabilities = _as_settings_say(model, settings)
    return as_card_says(model, read_card(settings.model, settings.cards_path)) if heed_card else model


def _as_settings_say(model: CausalModel | TextModel, settings: Settings) -> Capabilities:
    """How the model's calls and thoughts are read. Raises `ValueError` for one that could never call anything."""
    tools: ToolStyle | None
    asked = settings.tool_call_parser
    if asked == "auto":
        tools = model.capabilities.tools
    elif asked == "none":
        tools = None
    elif isinstance(model, CausalModel) and model.takes_tools:
        tools = asked
    else:
        raise ValueError(f"--tool-call-parser {asked}: this model has no chat template that knows tools.")
    reasoning = None if settings.reasoning_parser == "none" else settings.reasoning_parser
    return replace(model.capabilities, tools=tools, reasoning=reasoning)


def serve(model: CausalModel | TextModel, settings: Settings) -> Served:
    """The engine of a model that is set up."""
    engine: AnyEngine
    engine = BatchEngine(model) if isinstance(model, TextModel) else Engine(model, engine_options(settings))
    batching, why = engine.batching
    return Served(engine, replace(model.capabilities, batching=batching, why=why, formats=FORMATS), model)


def load_options(settings: Settings) -> LoadOptions:
    return LoadOptions(
        device_map=settings.device_map,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        attn_implementation=settings.attn_implementation,
        quantization=settings.quantization,
        adapter=settings.adapter,
    )


def engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        max_rows=settings.max_rows,
        prefill_tokens=settings.prefill_tokens,
        kv_tokens=settings.kv_tokens,
        encoder_cache_mb=settings.encoder_cache_mb,
        prefix_cache_mb=settings.prefix_cache_mb,
        compiled=settings.compile,
        workers_per_device=settings.workers_per_device,
    )
