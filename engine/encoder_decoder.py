"""The rows of an encoder-decoder module, such as Whisper: slots for the decoder's own keys and values, and for each row
what the cross-attention made of its audio, computed once, at prefill.

Encoder outputs of different lengths stand side by side, filled up at the end, where the module takes a mask for them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from engine.caches import EncoderCache
from engine.decoder import padded
from engine.modules import placed, prefill_errors
from engine.slots import KeyValues, SlotCache, taken_from
from models.base import Prefill, Prompt


@dataclass(frozen=True, eq=False)
class EncoderDecoderState:
    """A row off the slots. `mask`: which encoder positions are audio, shape (positions,)."""

    own: KeyValues
    cross: KeyValues
    mask: torch.Tensor


class CrossAttention:
    """Keys and values of the encoder's outputs, for each layer two buffers of shape (rows, heads, positions, width)."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._buffers: list[list[torch.Tensor]] = []
        self._mask = torch.empty((0, 0), dtype=torch.long)

    @property
    def num_positions(self) -> int:
        return self._mask.shape[1]

    def insert(self, row: int, state: EncoderDecoderState) -> None:
        """Where there is no memory for it, raises what torch raises, and all is as it was."""
        length = len(state.mask)
        layers = [layer for layer in state.cross.layers if layer is not None]
        old = self._buffers or [[tensor[:0, :, :0] for tensor in layer] for layer in layers]
        rows, positions = old[0][0].shape[0], old[0][0].shape[2]
        if row >= rows or length > positions:
            rows = max(row + 1, min(2 * rows, self._max_rows)) if row >= rows else rows
            positions = max(length, positions)
            old = [[_grown(buffer, rows, positions) for buffer in buffers] for buffers in old]
            mask = self._mask.to(state.mask.device).new_zeros((rows, positions))
            mask[: self._mask.shape[0], : self._mask.shape[1]] = self._mask
            self._mask = mask
        self._buffers = old
        self._mask[row] = 0
        self._mask[row, :length] = state.mask
        for buffers, layer in zip(self._buffers, layers, strict=True):
            for buffer, tensor in zip(buffers, layer, strict=True):
                buffer[row, :, length:] = 0  # masked, but 0 times the last tenant's NaN would be NaN
                buffer[row, :, :length] = tensor[0]

    def row(self, row: int) -> KeyValues:
        """A row's contents, filled up as they stand; views."""
        return KeyValues(tuple((keys[row : row + 1], values[row : row + 1]) for keys, values in self._buffers))

    def mask(self, rows: int) -> torch.Tensor:
        return self._mask[:rows]

    def caches(self, rows: int) -> DynamicCache:
        """A transformers cache that holds the first `rows` rows."""
        return KeyValues(tuple((keys[:rows], values[:rows]) for keys, values in self._buffers)).as_cache()

    def move(self, source: int, target: int) -> None:
        self._mask[target] = self._mask[source]
        for buffers in self._buffers:
            for buffer in buffers:
                buffer[target] = buffer[source]


def _grown(buffer: torch.Tensor, rows: int, positions: int) -> torch.Tensor:
    grown = buffer.new_zeros((rows, buffer.shape[1], positions, buffer.shape[3]))
    grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return grown


class EncoderDecoderRows:
    """`models.base.Rows` over a transformers module with an encoder and `decoder_input_ids`."""

    def __init__(self, module: torch.nn.Module, slots: SlotCache, max_rows: int, encoder_cache: EncoderCache) -> None:
        self._module: Any = module
        self._device = next(module.parameters()).device
        self._slots = slots
        self._max_rows = max_rows
        self._cross = CrossAttention(max_rows)
        self._encoder_cache = encoder_cache
        self._stand_in = torch.empty(0)

    @property
    def max_tokens(self) -> int | None:
        return self._slots.max_tokens

    @property
    def _encoded(self) -> Any:
        """The encoder's last output; a decode step is given its like."""
        return self._encoder_cache.last_output

    def begin(self, prompt: Prompt, audio_keys: Sequence[bytes]) -> Prefill:
        return _EncoderDecoderPrefill(self, prompt, audio_keys)

    @torch.inference_mode()
    def prefill(
        self, prompt: Prompt, audio_keys: Sequence[bytes]
    ) -> tuple[EncoderDecoderState, torch.Tensor, Sequence[int]]:
        """The state and the logits, shape (tokens, vocabulary), of a prompt alone, and the tokens that the model has
        told itself. The rows are not touched."""
        own, cross = DynamicCache(), DynamicCache()
        inputs = placed(self._module, prompt.inputs)
        with self._encoder_cache.naming(audio_keys):
            output = self._module(**inputs, past_key_values=EncoderDecoderCache(own, cross), use_cache=True)
        mask = self._encoder_mask(cross)
        logits = output.logits[0]
        ids: Sequence[int] = ()
        if prompt.follow_up is not None:
            ids = prompt.follow_up(logits[-1])
            assert len(ids) == prompt.num_following, "a prompt keeps its length"
            logits = torch.cat([logits, self._extend(own, cross, mask, ids)])
        return EncoderDecoderState(taken_from(own), taken_from(cross), mask), logits, ids

    def _extend(self, own: DynamicCache, cross: DynamicCache, mask: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        """Append tokens to a prompt that is in the caches; the logits after each, shape (tokens, vocabulary)."""
        start = own.get_seq_length()
        logits = self._decode(
            torch.tensor([ids]),
            torch.ones((1, start + len(ids)), dtype=torch.long),
            torch.arange(start, start + len(ids))[None],
            EncoderDecoderCache(own, cross),
            mask[None],
        )
        return logits[0]

    def _encoder_mask(self, cross: DynamicCache) -> torch.Tensor:
        mask = getattr(self._encoded, "attention_mask", None)
        if mask is None:
            return torch.ones(cross.layers[0].keys.shape[2], dtype=torch.long, device=self._device)
        own: torch.Tensor = mask[0].long()
        return own

    @torch.inference_mode()
    def insert(self, state: EncoderDecoderState) -> None:
        with prefill_errors():
            self._check_length(state)
            self._cross.insert(self._slots.window.rows, state)
            self._slots.insert(state.own.to(self._device), self._max_rows * self._bytes_beside(state))

    def _bytes_beside(self, state: EncoderDecoderState) -> int:
        """What a row takes beside its slot: cross-attention, and its part of the stand-in."""
        hidden: torch.Tensor = self._encoded.last_hidden_state
        return state.cross.num_bytes + len(state.mask) * hidden.shape[-1] * hidden.element_size()

    def _check_length(self, state: EncoderDecoderState) -> None:
        """Rows of different encoder lengths need a mask, and not all modules take one. Without, the buffers must be
        just as long as what is in them."""
        if self._takes_mask or not self._cross.num_positions or len(state.mask) == self._cross.num_positions:
            return
        if self._slots.window.rows:
            raise ValueError("the module takes no mask for encoder outputs of different lengths: serve it in one row")
        self._cross = CrossAttention(self._max_rows)

    @property
    def _takes_mask(self) -> bool:
        return hasattr(self._encoded, "attention_mask")

    @torch.inference_mode()
    def set_aside(self, row: int) -> EncoderDecoderState:
        own, cross = self._slots.row(row).copied_to_host(), self._cross.row(row).copied_to_host()
        return EncoderDecoderState(own, cross, self._cross.mask(row + 1)[row].clone())

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        self._slots.make_column()
        rows = self._slots.window.rows
        logits = self._decode(
            torch.tensor(tokens)[:, None],
            self._slots.mask(self._device),
            torch.tensor(self._slots.lengths)[:, None],
            EncoderDecoderCache(self._slots.cache, self._cross.caches(rows)),
            self._cross.mask(rows),
        )
        self._slots.advance()
        return logits[:, -1]

    def _decode(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        caches: EncoderDecoderCache,
        encoder_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Logits after each of `ids`, shape (rows, tokens), over cached cross-attention."""
        caches.is_updated = dict.fromkeys(range(len(caches.cross_attention_cache.layers)), True)
        logits: torch.Tensor = self._module(
            encoder_outputs=self._encoder_outputs(encoder_mask),
            decoder_input_ids=ids.to(self._device),
            decoder_attention_mask=mask.to(self._device),
            decoder_position_ids=positions.to(self._device),
            past_key_values=caches,
            use_cache=True,
        ).logits
        return logits

    def _encoder_outputs(self, mask: torch.Tensor) -> Any:
        """A stand-in: with cross-attention cached, the decoder reads only its size and its mask."""
        rows, positions = mask.shape
        outputs = copy.copy(self._encoded)
        outputs["last_hidden_state"] = self._stand_in_like(outputs.last_hidden_state, rows, positions)
        if self._takes_mask:
            outputs["attention_mask"] = mask
        return outputs

    def _stand_in_like(self, like: torch.Tensor, rows: int, positions: int) -> torch.Tensor:
        """Shape (rows, positions, width), in memory of its own, as some decoders write into it. One buffer for all
        steps, as nobody reads what is in it."""
        size = rows * positions * like.shape[-1]
        if self._stand_in.numel() < size:
            self._stand_in = like.new_zeros(size)
        return self._stand_in[:size].view(rows, positions, -1)

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        last = self._slots.window.rows - 1
        if row != last:
            self._cross.move(last, row)
        self._slots.remove(row)

    @torch.inference_mode()
    def score(self, state: EncoderDecoderState, continuations: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        ids = padded(continuations)
        rows, width = ids.shape
        length = state.own.num_tokens
        caches = EncoderDecoderCache(state.own.to(self._device).expanded(rows), state.cross.expanded(rows))
        logits = self._decode(
            ids,
            torch.ones((rows, length + width), dtype=torch.long),
            torch.arange(length, length + width).expand(rows, -1),
            caches,
            state.mask.expand(rows, -1),
        )
        return [row[: len(tokens)] for row, tokens in zip(logits, continuations, strict=True)]


class _EncoderDecoderPrefill(Prefill):
    """Goes at once: the prompt is a few tokens, and the work is the encoder's."""

    def __init__(self, rows: EncoderDecoderRows, prompt: Prompt, audio_keys: Sequence[bytes]) -> None:
        super().__init__()
        self._rows, self._prompt, self._audio_keys = rows, prompt, audio_keys

    def advance(self, max_tokens: int) -> None:
        with prefill_errors():
            self.state, self.logits, self.following = self._rows.prefill(self._prompt, self._audio_keys)
