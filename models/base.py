"""The contract between a model and the engine: what someone implements to have a model served.

    conversation ── prepare ──▶ prompts ── engine: prefill, decode steps ──▶ token ids ── tokenizer ──▶ text

A model turns a conversation into prompts and brings an unmodified transformers module; the engine batches, samples and
streams. Models know nothing of requests, HTTP, batching or the audio's origin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from errors import BadRequest
from wire import AS_USUAL, Capabilities, Role, Sampling, Templating, ToolCall, Tools, Transcribe


@dataclass(frozen=True, eq=False)
class Clip:
    """One audio of the conversation, whole: windows of float32 samples at the model's rate, in order, each of shape
    (samples,). There is one window unless the audio is longer than `max_seconds_per_window`."""

    windows: tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class Turn:
    """What `wire.Message` is, with its audio."""

    role: Role
    parts: tuple[str | Clip, ...]
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None


Conversation = tuple[Turn, ...]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the engine prefills.

    `inputs`: the module's keyword arguments for a batch of one, on the CPU; the engine moves them to the module's
    device and type. `num_tokens` counts the prompt's tokens, of which
    `num_audio_tokens` stand for audio. `max_new_tokens` is the room that the model's window leaves for the answer.
    `lead`: where a conversation takes several prompts, what joins this one's text to the text before; the text's own
    leading blanks are dropped for it. `None`: the text stays as it is. `is_continued`: the answer goes on in the middle
    of the prompt's text, and does not begin anew, which some tokenizers write otherwise. `follow_up`, of an
    encoder-decoder: makes the `num_following` last tokens of the prompt from the logits after those before, shape
    (vocabulary,), so that a model may tell the language itself. `num_context`: so many of the first tokens are what
    was said before. `language`: what the audio's is, as an ISO 639 code, where it is known; `languages`: what
    tokens of `follow_up` say about it. `opening`: what the prompt has written of the answer itself, such as a tag
    before thoughts. `first_timestamp`: tokens from this id on are times, and the
    answer tells them, see `engine.timestamps`; `None`: they are never written.
    """

    inputs: Mapping[str, torch.Tensor]
    num_tokens: int
    num_audio_tokens: int
    max_new_tokens: int
    lead: str | None = None
    is_continued: bool = False
    follow_up: Callable[[torch.Tensor], Sequence[int]] | None = None
    num_following: int = 0
    num_context: int = 0
    language: str | None = None
    languages: Mapping[int, str] = field(default_factory=dict)
    opening: str = ""
    first_timestamp: int | None = None

    @property
    def token_ids(self) -> list[int]:
        """What the decoder reads; empty where the model has rows of its own."""
        ids = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        return [] if ids is None else ids[0].tolist()

    def language_by(self, following: Sequence[int]) -> str | None:
        """The audio's language, where it is known, or told by the tokens that `follow_up` has made."""
        return next((self.languages[id_] for id_ in following if id_ in self.languages), self.language)

    @property
    def num_columns(self) -> int:
        """Tokens whose keys and values the decoder keeps: an encoder-decoder's audio is not among them."""
        ids = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        return self.num_tokens if ids is None else ids.shape[1] + self.num_following


class PrefillFailed(Exception):
    """A prompt cannot be prefilled or placed, and the rows are as they were before. Raise it from what was raised."""


RowState = Any  # what a row holds, off the rows: made and read by one `Rows` only


@dataclass(eq=False)
class Prefill:
    """A prompt on its way into a row, computed at once or, by a subclass, in pieces. `logits`: those of its last
    tokens, shape (tokens, vocabulary), at least of the very last; `None` while pieces are missing. `num_cached_tokens`
    were taken over from an earlier prompt. `following`: what the prompt's `follow_up` has made."""

    state: RowState = None
    logits: torch.Tensor | None = None
    num_cached_tokens: int = 0
    following: Sequence[int] = ()

    def advance(self, max_tokens: int) -> None:
        """Compute the next piece, of about so many tokens at most. Raises `PrefillFailed`."""


class Rows(Protocol):
    """The live rows of a model: its key/value state, dense in rows 0..n-1."""

    @property
    def max_tokens(self) -> int | None:
        """The bound on rows times columns; `None` while it is unknown, or where there is none."""

    def begin(self, prompt: Prompt, audio_keys: Sequence[bytes]) -> Prefill:
        """Prepare to prefill; computes nothing. `audio_keys` name the contents of the prompt's audio, see
        `engine.prompts`."""

    def insert(self, state: RowState) -> None:
        """Put a copy of a prefilled prompt, or of a row that was set aside, into a new last row. Raises
        `PrefillFailed`, where there is no memory, and leaves all as it was."""

    def set_aside(self, row: int) -> RowState:
        """A copy of what a row holds, in the host's memory; the row itself stays until it is removed."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; the logits of the next ones, shape (rows, vocabulary)."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row moves into its place."""

    def score(self, state: RowState, continuations: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The logits after each token of each continuation of a prefilled prompt, one (tokens, vocabulary) each. The
        rows are not touched."""


@dataclass(frozen=True)
class Defaults:
    """How a model's answers are sampled where a request says nothing. Temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    repetition_penalty: float = 1.0


GREEDY = Defaults(temperature=0.0)


def refuse_templating(templating: Templating) -> None:
    """For a model without a chat template. Variables say nothing to it, and are no reason to refuse. Raises
    `BadRequest`."""
    wanted = {"continue_final_message": templating.continues, "add_generation_prompt": not templating.opens}
    for name, is_wanted in wanted.items():
        if is_wanted:
            raise BadRequest(f"`{name}`: this model has no chat template that could do this. Leave it out.", name)


def no_plain_text() -> BadRequest:
    """Of a model that knows no text but conversations, or none at all."""
    return BadRequest("`prompt`: this model answers conversations only. Ask /v1/chat/completions.", "prompt")


class CausalModel(ABC):
    """A model that writes one token after another.

    A subclass sets the attributes in `setup`, which runs once in the worker process.
    """

    capabilities: Capabilities
    defaults: Defaults = GREEDY
    tokenizer: Tokenizer
    module: torch.nn.Module
    end_ids: frozenset[int]  # a token of these ends the answer
    max_model_len: int | None = None  # tokens of the decoder, prompt and answer together, where it is known
    placeholder_ids: tuple[int, ...] = ()  # what stands for audio in a prompt; never sampled, never biased
    banned_ids: tuple[int, ...] = ()  # never sampled either
    banned_first_ids: tuple[int, ...] = ()  # not as an answer's first token
    timestamp_ids: range = range(0)  # of the banned ones, those that are sampled where a prompt wants times
    takes_tools: bool = False  # `prepare_by` makes something of them

    @property
    def vocabulary_size(self) -> int:
        """The number of the module's logits; a tokenizer may have fewer tokens."""
        config: Any = self.module.config
        return int(config.get_text_config(decoder=True).vocab_size)

    @abstractmethod
    def setup(self, device: str, dtype: str) -> None:
        """Load the model. `dtype`: auto, float32, bfloat16 or float16."""

    @abstractmethod
    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        """The prompts of a conversation, answered one after another and joined.

        Called from several threads at once, never from the engine's. Raises `BadRequest` for a conversation that the
        model cannot take.
        """

    def prepare_by(
        self, conversation: Conversation, templating: Templating = AS_USUAL, tools: Tools | None = None
    ) -> Sequence[Prompt]:
        """As `prepare`, where the client says how the chat template is to be applied, or the model may be told of
        tools. Overridden by one that has a template. Raises `BadRequest`."""
        assert tools is None, "a model that takes none is given none"
        refuse_templating(templating)
        return self.prepare(conversation)

    def prepare_plain(self, text: str) -> Prompt:
        """The prompt of a text that is to be continued, with no template around it; else as `prepare`."""
        raise no_plain_text()

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Prompt]:
        """As `prepare`, for one clip and, behind it, an instruction that says the task in words: a model that has its
        own way to be told overrides this. Raises `BadRequest` for what it cannot do."""
        return self.prepare(conversation)

    def hears_nothing(self, prompt_logits: torch.Tensor) -> bool:
        """Whether the answer to a prompt is no text at all, judged by its logits, shape (tokens, vocabulary); those of
        all tokens behind its context for an encoder-decoder, of the last one otherwise."""
        return False

    def make_rows(self) -> Rows | None:
        """The model's own rows; `None` lets the engine keep key/value slots for `module`."""
        return None


@dataclass(frozen=True, eq=False)
class Question:
    """What a `TextModel` is asked: a conversation, and how the answer is to be sampled."""

    conversation: Conversation
    sampling: Sampling


class TextModel(ABC):
    """A model that brings its own loop and gives text, such as a class with a `generate`, or a CTC transcriber.

    The engine gathers questions into batches; a batch runs to its end before the next begins. A subclass sets the
    attributes in `setup`, which runs once in the worker process.
    """

    capabilities: Capabilities
    max_batch_size: int = 1

    @abstractmethod
    def setup(self, device: str, dtype: str) -> None:
        """Load the model. `dtype`: auto, float32, bfloat16 or float16."""

    @abstractmethod
    def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
        """The answers, piece by piece: each item holds the next text for each question, in order. "" is no news, `None`
        says that the question's answer is complete. Closed early where nobody waits any more."""

    def split(self, conversation: Conversation) -> Sequence[Conversation]:
        """The questions of a conversation, which are answered one after another and joined by blanks: one for each
        window of a clip that comes in several. Raises `BadRequest` for a conversation that the model cannot take."""
        return one_window_each(conversation)

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Conversation]:
        """As `split`, for one clip and, behind it, an instruction that says the task in words: a model that heeds no
        text overrides this. Raises `BadRequest` for what it cannot do."""
        return self.split(conversation)

    def group(self, question: Question) -> Hashable:
        """Only questions of the same group share a batch."""
        return None

    def count_tokens(self, text: str) -> int:
        """For `usage` and `max_tokens`. Without a tokenizer, a piece of text counts as one."""
        return 1 if text else 0


def clips_of(conversation: Conversation) -> list[Clip]:
    """All audio of a conversation, in order."""
    return [part for turn in conversation for part in turn.parts if isinstance(part, Clip)]


def transcribed_windows(conversation: Conversation) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """What a recogniser hears, to whom text in the messages says nothing: each window of each clip, and before it the
    lead that joins its transcript to the one before. Raises `BadRequest` where there is no audio."""
    clips = clips_of(conversation)
    if not clips:
        raise BadRequest(
            "This model transcribes speech, and the messages hold no audio. "
            "Add a content part of type `audio_url` or `input_audio`.",
            "messages",
        )
    return [("\n" if i == 0 else " ", window) for clip in clips for i, window in enumerate(clip.windows)]


def refuse_steering(task: Transcribe) -> None:
    """For a recogniser that only ever writes what it hears. Raises `BadRequest`."""
    if task.translate:
        raise BadRequest("This model writes down what is said, and does not translate.", "model")
    if task.language is not None:
        raise BadRequest("`language`: this model cannot be told the language of the speech. Leave it out.", "language")
    if task.prompt is not None:
        raise BadRequest("`prompt`: this model hears audio only, and heeds no text. Leave it out.", "prompt")


def refuse_shorter(conversation: Conversation, num_samples: int) -> None:
    """Raises `BadRequest` for a clip of fewer samples: encoders' convolutions need some, and fail or fall silent."""
    shortest = min((len(window) for clip in clips_of(conversation) for window in clip.windows), default=num_samples)
    if shortest < num_samples:
        raise BadRequest(
            f"An audio has {shortest} samples at the model's rate; this model needs {num_samples} to hear anything.",
            "messages",
        )


def refuse_overflow(features: Iterable[torch.Tensor]) -> None:
    """Raises `BadRequest` for features that are no finite numbers: the samples were too large for them."""
    if not all(bool(tensor.isfinite().all()) for tensor in features if tensor.is_floating_point()):
        raise BadRequest("The audio's samples are so large that no features can be computed of it.", "messages")


def one_window_each(conversation: Conversation) -> list[Conversation]:
    """A conversation whose one long clip comes in several windows, as one conversation for each window. Raises
    `BadRequest` where several clips are long: no order of their windows would mean anything."""
    long = [clip for clip in clips_of(conversation) if len(clip.windows) > 1]
    if len(long) > 1:
        raise BadRequest(
            "Several audios are longer than the model hears at once, and only one can be answered in pieces. "
            "Send one long audio in a request.",
            "messages",
        )
    if not long:
        return [conversation]
    return [_replaced(conversation, long[0], Clip((window,))) for window in long[0].windows]


def _replaced(conversation: Conversation, old: Clip, new: Clip) -> Conversation:
    return tuple(
        replace(turn, parts=tuple(new if part is old else part for part in turn.parts)) for turn in conversation
    )
