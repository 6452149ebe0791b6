"""The rows of a decoder-only module: a text decoder, with or without an audio encoder that writes into its prompt.

A prompt is prefilled alone, by the very call that the module's own `generate` makes, so padding never touches an
encoder. Decoding runs all rows together over the slots.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from engine.caches import EncoderCache, PrefixCache
from engine.compiled import WholeStep
from engine.modules import placed, prefill_errors, takes
from engine.prompts import TOKEN_INPUTS, features, identify
from engine.slots import KeyValues, SlotCache, taken_from
from models.base import Prefill, Prompt

log = logging.getLogger("eardrum.engine")


@dataclass(frozen=True, eq=False)
class DecoderState:
    """A row off the slots. `offset`: what the module adds to an index to have its position (multimodal rotary positions
    number audio and images otherwise than text)."""

    values: KeyValues
    offset: int = 0


class DecoderRows:
    """`models.base.Rows` over a transformers module with `input_ids` and one self-attention cache."""

    def __init__(
        self,
        module: torch.nn.Module,
        slots: SlotCache,
        placeholder_ids: Sequence[int],
        encoder_cache: EncoderCache,
        prefix_cache: PrefixCache,
        compiled: bool = False,
    ) -> None:
        self._module: Any = module
        self._device = next(module.parameters()).device
        self._slots = slots
        self._offsets: list[int] = []
        self.placeholder_ids = placeholder_ids
        self.encoder_cache = encoder_cache
        self.prefix_cache = prefix_cache
        self._inner: Any = getattr(module, "model", module)
        self.has_multimodal_positions = hasattr(self._inner, "rope_deltas")
        self._whole_step = WholeStep(module, slots, self._device, self.has_multimodal_positions) if compiled else None
        self._takes_logits_to_keep = takes(module, "logits_to_keep")

    @property
    def max_tokens(self) -> int | None:
        return self._slots.max_tokens

    def begin(self, prompt: Prompt, audio_keys: Sequence[bytes]) -> Prefill:
        return DecoderPrefill(self, prompt, audio_keys)

    @torch.inference_mode()
    def insert(self, state: DecoderState) -> None:
        with prefill_errors():
            self._slots.insert(state.values.to(self._device))
        self._offsets.append(state.offset)

    @torch.inference_mode()
    def set_aside(self, row: int) -> DecoderState:
        return DecoderState(self._slots.row(row).copied_to_host(), self._offsets[row])

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        self._slots.make_column()
        positions = [length + offset for length, offset in zip(self._slots.lengths, self._offsets, strict=True)]
        logits = self._compiled_step(tokens, positions)
        if logits is None:
            inputs = {"input_ids": torch.tensor(tokens)[:, None], "attention_mask": self._slots.mask(self._device)}
            logits = self.forward(inputs, self._slots.cache, torch.tensor(positions)[:, None])[:, -1]
        self._slots.advance()
        return logits

    def _compiled_step(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor | None:
        """`None` where there is none, for good after the first that fails: not every module can be compiled."""
        if self._whole_step is None:
            return None
        try:
            return self._whole_step.logits(tokens, positions)
        except Exception as error:
            log.warning("the decode step cannot be compiled (%s: %s); it runs uncompiled", type(error).__name__, error)
            self._whole_step = None
            return None

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        self._slots.remove(row)
        self._offsets[row] = self._offsets[-1]
        self._offsets.pop()

    @torch.inference_mode()
    def score(self, state: DecoderState, continuations: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        ids = padded(continuations)
        rows, width = ids.shape
        length = state.values.num_tokens
        positions = torch.arange(length, length + width).expand(rows, -1) + state.offset
        logits = self.forward(
            {"input_ids": ids, "attention_mask": torch.ones((rows, length + width), dtype=torch.long)},
            state.values.to(self._device).expanded(rows),
            positions=positions,
            logits_to_keep=width,
        )
        return [row[: len(tokens)] for row, tokens in zip(logits, continuations, strict=True)]

    def forward(
        self,
        inputs: dict[str, torch.Tensor],
        cache: Any,
        positions: torch.Tensor | None = None,
        logits_to_keep: int = 1,
    ) -> torch.Tensor:
        """Logits of the last `logits_to_keep` tokens, or of all. `positions`, shape (rows, tokens), where the module
        does not number them itself."""
        options: dict[str, Any] = {"logits_to_keep": logits_to_keep} if self._takes_logits_to_keep else {}
        if positions is not None:
            multimodal = positions[None].expand(3, -1, -1)  # temporal, height, width: of text all three are the same
            options["position_ids"] = (multimodal if self.has_multimodal_positions else positions).to(self._device)
        inputs = placed(self._module, inputs)
        logits: torch.Tensor = self._module(**inputs, past_key_values=cache, use_cache=True, **options).logits
        return logits

    def position_offset(self) -> int:
        """Of the prompt that the module has just prefilled."""
        deltas = getattr(self._inner, "rope_deltas", None)
        return 0 if deltas is None else int(deltas.reshape(-1)[0])


class DecoderPrefill(Prefill):
    """A prompt whose first tokens have been computed, or found. What is left of it goes in pieces where it is text
    only; with audio in it, it goes whole."""

    def __init__(self, rows: DecoderRows, prompt: Prompt, audio_keys: Sequence[bytes]) -> None:
        super().__init__()
        self._rows = rows
        self._prompt = prompt
        self._audio_keys = audio_keys
        self._identity = identify(prompt, audio_keys, rows.placeholder_ids)
        # Multimodal positions depend on what came before; and audio that no token stands for would go unnoticed.
        self._reusable = not audio_keys or bool(self._identity.spans and not rows.has_multimodal_positions)
        self._cache = DynamicCache()  # without a config: layers of sliding windows keep all, too, as the slots do
        self._done = 0
        self._find_prefix()

    def _find_prefix(self) -> None:
        prefix = self._rows.prefix_cache.longest(self._identity) if self._reusable else None
        if prefix is None:
            return
        audio_left = len(self._identity.audio_from(prefix.num_tokens))
        if self._identity.separable or audio_left in (0, len(self._identity.spans)):
            self._cache = prefix.expanded(1)
            self._done = self.num_cached_tokens = prefix.num_tokens

    @torch.inference_mode()
    def advance(self, max_tokens: int) -> None:
        start, total = self._done, len(self._identity.tokens)
        audio = self._identity.audio_from(start)
        stop = min(total, start + max_tokens) if self._reusable and not audio else total
        with prefill_errors(), self._rows.encoder_cache.naming(self._names(audio)):
            logits = self._compute(start, stop, audio)
        self._done = stop
        if stop == total:
            self._finish(logits)

    def _names(self, audio: Sequence[int]) -> Sequence[bytes]:
        """Names of the audio that the encoder is given."""
        if not self._identity.separable or not audio:
            return self._audio_keys if audio else ()
        return [self._audio_keys[i] for i in audio]

    def _compute(self, start: int, stop: int, audio: Sequence[int]) -> torch.Tensor:
        if start == 0 and stop == len(self._identity.tokens):
            return self._rows.forward(dict(self._prompt.inputs), self._cache)
        return self._rows.forward(self._inputs(start, stop, audio), self._cache, torch.arange(start, stop)[None])

    def _inputs(self, start: int, stop: int, audio: Sequence[int]) -> dict[str, torch.Tensor]:
        """The module's inputs for the tokens from `start` to `stop`, and for the audio among them."""
        inputs = {name: t[:, start:stop] for name, t in self._prompt.inputs.items() if name in TOKEN_INPUTS}
        inputs["attention_mask"] = torch.ones((1, stop), dtype=torch.long)
        if len(audio) == len(self._identity.spans):
            return inputs | features(self._prompt)
        return inputs | {name: tensor[audio] for name, tensor in features(self._prompt).items() if audio}

    def _finish(self, logits: torch.Tensor) -> None:
        values = taken_from(self._cache)
        self.state = DecoderState(values, self._rows.position_offset() if self._audio_keys else 0)
        self.logits = logits[0]
        if self._reusable:
            self._rows.prefix_cache.put(self._identity, values)


def padded(continuations: Sequence[Sequence[int]]) -> torch.Tensor:
    """One row of ids for each, filled up at the end: a causal module's earlier tokens do not see later ones."""
    width = max(map(len, continuations))
    return torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in continuations])
