"""The contract between a model and the engine: what someone implements to have a model served.

    conversation ── prepare ──▶ prompts ── engine: prefill, decode steps ──▶ token ids ── tokenizer ──▶ text

A model turns a conversation into prompts and brings an unmodified transformers module; the engine batches, samples and
streams. Models know nothing of requests, HTTP, batching or the audio's origin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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
    """What the engine prefills in one go.

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


class PrefillFailed(Exception):
    """A prompt cannot be prefilled, and the rows are as they were before. Raise it from what the module raised."""


class Rows(Protocol):
    """The live rows of a model: its key/value state, dense in rows 0..n-1."""

    def insert(self, prompt: Prompt) -> torch.Tensor:
        """Prefill `prompt` into a new last row; the logits of its prompt tokens, shape (tokens, vocabulary).

        Raises `PrefillFailed` where only this prompt is at fault. Anything else says that the rows are broken.
        """

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row; the logits of the next ones, shape (rows, vocabulary)."""

    def remove(self, row: int) -> None:
        """Drop a row; the last row moves into its place."""


class CausalModel(ABC):
    """A model that writes one token after another.

    A subclass sets the attributes in `setup`, which runs once in the worker process.
    """

    capabilities: Capabilities
    tokenizer: Tokenizer
    module: torch.nn.Module
    end_ids: frozenset[int]  # a token of these ends the answer
    banned_ids: tuple[int, ...] = ()  # never sampled, such as audio placeholders
    banned_first_ids: tuple[int, ...] = ()  # not as an answer's first token

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
        """Whether the answer to a prompt is no text at all, judged by its logits, shape (tokens, vocabulary)."""
        return False

    def make_rows(self) -> Rows | None:
        """The model's own rows; `None` lets the engine keep key/value slots for `module`."""
        return None
