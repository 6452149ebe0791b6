"""The contract between a model and the engine: what someone implements to have a model served.

    conversation ── prepare ──▶ prompts ── engine: prefill, decode steps ──▶ token ids ── tokenizer ──▶ text

A model turns a conversation into prompts and brings an unmodified transformers module; the engine batches, samples and
streams. Models know nothing of requests, HTTP, batching or the audio's origin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from wire import Capabilities, Role


@dataclass(frozen=True, eq=False)
class Clip:
    """One audio of the conversation, whole: windows of float32 samples at the model's rate, in order, each of shape
    (samples,). There is one window unless the audio is longer than `max_seconds_per_window`."""

    windows: tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class Turn:
    role: Role
    parts: tuple[str | Clip, ...]


Conversation = tuple[Turn, ...]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the engine prefills.

    `inputs`: the module's keyword arguments for a batch of one, on the CPU; the engine moves them to the module's
    device and type. `num_tokens` counts the prompt's tokens, of which
    `num_audio_tokens` stand for audio. `max_new_tokens` is the room that the model's window leaves for the answer.
    `lead`: where a conversation takes several prompts, what joins this one's text to the text before; the text's own
    leading blanks are dropped for it. `None`: the text stays as it is.
    """

    inputs: Mapping[str, torch.Tensor]
    num_tokens: int
    num_audio_tokens: int
    max_new_tokens: int
    lead: str | None = None

    @property
    def token_ids(self) -> list[int]:
        """What the decoder reads; empty where the model has rows of its own."""
        ids = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        return [] if ids is None else ids[0].tolist()

    @property
    def num_columns(self) -> int:
        """Tokens whose keys and values the decoder keeps: an encoder-decoder's audio is not among them."""
        ids = self.inputs.get("decoder_input_ids", self.inputs.get("input_ids"))
        return self.num_tokens if ids is None else ids.shape[1]


class PrefillFailed(Exception):
    """A prompt cannot be prefilled or placed, and the rows are as they were before. Raise it from what was raised."""


RowState = Any  # what a row holds, off the rows: made and read by one `Rows` only


@dataclass(eq=False)
class Prefill:
    """A prompt on its way into a row, computed at once or, by a subclass, in pieces. `logits`: those of its last
    tokens, shape (tokens, vocabulary), at least of the very last; `None` while pieces are missing. `num_cached_tokens`
    were taken over from an earlier prompt."""

    state: RowState = None
    logits: torch.Tensor | None = None
    num_cached_tokens: int = 0

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


class CausalModel(ABC):
    """A model that writes one token after another.

    A subclass sets the attributes in `setup`, which runs once in the worker process.
    """

    capabilities: Capabilities
    tokenizer: Tokenizer
    module: torch.nn.Module
    end_ids: frozenset[int]  # a token of these ends the answer
    placeholder_ids: tuple[int, ...] = ()  # what stands for audio in a prompt; never sampled, never biased
    banned_ids: tuple[int, ...] = ()  # never sampled either
    banned_first_ids: tuple[int, ...] = ()  # not as an answer's first token

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

    def hears_nothing(self, prompt_logits: torch.Tensor) -> bool:
        """Whether the answer to a prompt is no text at all, judged by its logits, shape (tokens, vocabulary); those of
        all tokens for an encoder-decoder, of the last one otherwise."""
        return False

    def make_rows(self) -> Rows | None:
        """The model's own rows; `None` lets the engine keep key/value slots for `module`."""
        return None
