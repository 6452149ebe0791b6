"""The one row of a module whose rows cannot share a step: one with recurrent state (Mamba, linear attention), which has
no columns to align, or one that numbers positions by itself. It answers one request after another, over transformers'
own cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from engine.modules import placed, prefill_errors, takes
from models.base import Prefill, Prompt


def has_recurrent_state(module: torch.nn.Module) -> bool:
    """Whether the module's cache has layers that are no list of keys and values."""
    config: Any = module.config
    layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


@dataclass(frozen=True, eq=False)
class SerialState:
    cache: DynamicCache
    num_tokens: int


class SerialRows:
    """`models.base.Rows` with a single row, over a decoder-only transformers module."""

    max_tokens = None  # one row's memory is bounded by the model's window

    def __init__(self, module: torch.nn.Module) -> None:
        self._module: Any = module
        self._takes_positions = takes(module, "position_ids")
        self._row: SerialState | None = None

    def begin(self, prompt: Prompt, audio_keys: Sequence[bytes]) -> Prefill:
        return _SerialPrefill(self, prompt)

    @torch.inference_mode()
    def prefill(self, prompt: Prompt) -> tuple[SerialState, torch.Tensor]:
        """The state and the last token's logits of a prompt alone."""
        cache = DynamicCache(config=self._module.config.get_text_config(decoder=True))
        logits = self._forward(dict(prompt.inputs), cache)
        return SerialState(cache, prompt.num_columns), logits[:, -1]

    def _forward(self, inputs: dict[str, torch.Tensor], cache: DynamicCache) -> torch.Tensor:
        inputs = placed(self._module, inputs)
        logits: torch.Tensor = self._module(**inputs, past_key_values=cache, use_cache=True).logits
        return logits

    def insert(self, state: SerialState) -> None:
        assert self._row is None, "there is one row"
        with prefill_errors():
            self._row = copy.deepcopy(state)

    def set_aside(self, row: int) -> SerialState:
        assert self._row is not None, "there is a row"
        return copy.deepcopy(self._row)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        assert self._row is not None, "there is a row"
        self._row, logits = self._append(self._row, tokens)
        return logits

    def _append(self, state: SerialState, tokens: Sequence[int]) -> tuple[SerialState, torch.Tensor]:
        """The row with one more token, and the logits of the next, shape (1, vocabulary)."""
        length = state.num_tokens
        inputs = {
            "input_ids": torch.tensor([tokens]),
            "attention_mask": torch.ones((1, length + 1), dtype=torch.long),
        }
        if self._takes_positions:
            inputs["position_ids"] = torch.tensor([[length]])
        return SerialState(state.cache, length + 1), self._forward(inputs, state.cache)[:, -1]

    def remove(self, row: int) -> None:
        self._row = None

    @torch.inference_mode()
    def score(self, state: SerialState, continuations: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [self._score(copy.deepcopy(state), tokens) for tokens in continuations]

    def _score(self, state: SerialState, tokens: Sequence[int]) -> torch.Tensor:
        logits = []
        for token in tokens:
            state, after = self._append(state, [token])
            logits.append(after)
        return torch.cat(logits)


class _SerialPrefill(Prefill):
    """Goes at once."""

    def __init__(self, rows: SerialRows, prompt: Prompt) -> None:
        super().__init__()
        self._rows, self._prompt = rows, prompt

    def advance(self, max_tokens: int) -> None:
        with prefill_errors():
            self.state, self.logits = self._rows.prefill(self._prompt)
