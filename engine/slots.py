"""Key/value slots: the live rows of an unmodified transformers encoder-decoder module, batched for decoding.

All rows end at one shared write column, so a step writes one slice and no scatter, and the attention mask is the
ordinary one of a left-padded batch:

                 lo                    hi
    row 0   . . .|k k k k k k k k k k k|<- next column, written by every row
    row 1   . . . . . . . .|k k k k k k|
    row 2   . . . . .|k k k k k k k k k|

A new prompt is copied to the columns just left of `hi` in a new last row; a row that leaves is overwritten by the last
one. Where `hi` reaches the capacity, the window moves to the left, or the buffers double. Cross-attention keys and
values are computed once, at prefill, and kept for each row. Nothing here knows requests, sampling or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from models.base import PrefillFailed, Prompt

FIRST_CAPACITY = 256  # columns; the buffers double from here


@dataclass
class _Window:
    """The columns in use, `lo` to `hi`, of the first `rows` rows. Shared by all layers."""

    rows: int = 0
    lo: int = 0
    hi: int = 0


class _SlotLayer(DynamicLayer):
    """Self-attention keys and values of one layer: two buffers of shape (rows, heads, capacity, head width)."""

    def __init__(self, window: _Window, like: torch.Tensor) -> None:
        super().__init__()
        self._window = window
        heads, width = like.shape[1], like.shape[3]
        self.buffers = [like.new_zeros((1, heads, FIRST_CAPACITY, width)) for _ in range(2)]
        self.is_initialized = True

    @property
    def capacity(self) -> int:
        return self.buffers[0].shape[2]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the module's attention in a decode step: append a column, give back the window."""
        w = self._window
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[: w.rows, :, w.hi] = new[:, :, 0]
        used_keys, used_values = (buffer[: w.rows, :, w.lo : w.hi + 1] for buffer in self.buffers)
        return used_keys, used_values

    def get_seq_length(self) -> int:
        return self._window.hi - self._window.lo

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def reserve(self, rows: int, capacity: int) -> None:
        """Grow the buffers to at least so many rows and columns."""
        old_rows, _, old_capacity, _ = self.buffers[0].shape
        if rows > old_rows or capacity > old_capacity:
            rows = 2 * old_rows if rows > old_rows else old_rows
            capacity = max(2 * old_capacity, capacity) if capacity > old_capacity else old_capacity
            self.buffers = [_grown(buffer, rows, capacity) for buffer in self.buffers]

    def shift(self, columns: int) -> None:
        """Move the window's contents by so many columns, to the right where positive."""
        w = self._window
        for buffer in self.buffers:
            moved = buffer[: w.rows, :, w.lo : w.hi].clone()
            buffer[: w.rows, :, w.lo + columns : w.hi + columns] = moved

    def put(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Right-align a prompt's keys and values, each (1, heads, length, width), at the write column."""
        hi = self._window.hi
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[row, :, hi - new.shape[2] : hi] = new[0]

    def copy_row(self, source: int, target: int) -> None:
        w = self._window
        for buffer in self.buffers:
            buffer[target, :, w.lo : w.hi] = buffer[source, :, w.lo : w.hi]


def _grown(buffer: torch.Tensor, rows: int, capacity: int) -> torch.Tensor:
    grown = buffer.new_zeros((rows, buffer.shape[1], capacity, buffer.shape[3]))
    grown[: buffer.shape[0], :, : buffer.shape[2]] = buffer
    return grown


class EncoderDecoderRows:
    """`models.base.Rows` over a transformers module of an encoder and a decoder, such as Whisper."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module: Any = module
        self._device = next(module.parameters()).device
        self._window = _Window()
        self._lengths: list[int] = []
        self._layers: list[_SlotLayer] = []
        self._cross: list[list[torch.Tensor]] = []  # layer, then keys and values: (rows, heads, positions, width)

    @torch.inference_mode()
    def insert(self, prompt: Prompt) -> torch.Tensor:
        own, cross = DynamicCache(), DynamicCache()
        logits = self._prefill(prompt, EncoderDecoderCache(own, cross))
        length = own.get_seq_length()
        if not self._layers:
            self._layers = [_SlotLayer(self._window, layer.keys) for layer in own.layers]
        self._make_room(length)
        self._insert_cross(cross)
        for slots, layer in zip(self._layers, own.layers, strict=True):
            slots.put(self._window.rows, layer.keys, layer.values)
        self._window.rows += 1
        self._lengths.append(length)
        self._set_lo()
        return logits[0]

    def _prefill(self, prompt: Prompt, caches: EncoderDecoderCache) -> torch.Tensor:
        """Run the prompt through the module. The rows are not touched yet, so whatever it raises concerns it alone."""
        try:
            inputs = {name: self._placed(tensor) for name, tensor in prompt.inputs.items()}
            output = self._module(**inputs, past_key_values=caches, use_cache=True)
        except Exception as error:
            raise PrefillFailed from error
        logits: torch.Tensor = output.logits
        return logits

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the module's device and, for a float, in its type."""
        return tensor.to(self._device, self._module.dtype if tensor.is_floating_point() else None)

    def _make_room(self, length: int) -> None:
        """Room for one more row of `length` columns left of the write column."""
        w = self._window
        if not w.rows:
            w.lo = w.hi = length
        shift = max(0, length - w.hi)
        for layer in self._layers:
            layer.reserve(w.rows + 1, w.hi + shift + 1)
            if shift:
                layer.shift(shift)
        w.lo, w.hi = w.lo + shift, w.hi + shift

    def _insert_cross(self, cross: DynamicCache) -> None:
        row = self._window.rows
        if not self._cross:
            self._cross = [[torch.empty_like(layer.keys), torch.empty_like(layer.values)] for layer in cross.layers]
        for buffers, layer in zip(self._cross, cross.layers, strict=True):
            for i, new in enumerate((layer.keys, layer.values)):
                assert new.shape[2] == buffers[i].shape[2], "encoder outputs of one length"
                if row >= len(buffers[i]):
                    buffers[i] = torch.cat([buffers[i], torch.empty_like(buffers[i])])
                buffers[i][row] = new[0]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        self._make_column()
        w, device = self._window, self._device
        lengths = torch.tensor(self._lengths, device=device)
        columns = torch.arange(w.hi - w.lo + 1, device=device)
        logits: torch.Tensor = self._module(
            encoder_outputs=self._encoder_outputs(),
            decoder_input_ids=torch.tensor(tokens, device=device)[:, None],
            decoder_attention_mask=(columns[None] >= (w.hi - w.lo - lengths)[:, None]).long(),
            decoder_position_ids=lengths[:, None],
            past_key_values=self._caches(),
            use_cache=True,
        ).logits
        self._lengths = [length + 1 for length in self._lengths]
        w.hi += 1
        return logits[:, -1]

    def _make_column(self) -> None:
        """Room for one more column. Moves the window only where half of the columns are free, so that a column is
        copied but once in many steps."""
        w, capacity = self._window, self._layers[0].capacity
        if w.hi < capacity:
            return
        if 2 * w.lo < capacity:
            for layer in self._layers:
                layer.reserve(w.rows, w.hi + 1)
            return
        for layer in self._layers:
            layer.shift(-w.lo)
        w.lo, w.hi = 0, w.hi - w.lo

    def _encoder_outputs(self) -> BaseModelOutput:
        """A stand-in: with cross-attention cached, the decoder reads only its number of rows."""
        width = self._module.config.d_model
        hidden = torch.zeros((1, 1, width), device=self._device, dtype=self._module.dtype)
        return BaseModelOutput(last_hidden_state=hidden.expand(self._window.rows, 1, width))

    def _caches(self) -> EncoderDecoderCache:
        cross = DynamicCache()
        for keys, values in self._cross:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys[: self._window.rows], values[: self._window.rows]
            cross.layers.append(layer)
        caches = EncoderDecoderCache(Cache(layers=self._layers), cross)
        caches.is_updated = dict.fromkeys(range(len(self._layers)), True)
        return caches

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        last = self._window.rows - 1
        if row != last:
            for layer in self._layers:
                layer.copy_row(last, row)
            for buffers in self._cross:
                for buffer in buffers:
                    buffer[row] = buffer[last]
            self._lengths[row] = self._lengths[last]
        self._lengths.pop()
        self._window.rows = last
        self._set_lo()

    def _set_lo(self) -> None:
        self._window.lo = self._window.hi - max(self._lengths, default=0)
