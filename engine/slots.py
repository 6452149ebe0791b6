"""Key/value slots: the live rows of an unmodified transformers decoder, batched for decoding.

All rows end at one shared write column, so a step writes one slice and no scatter, and the attention mask is the
ordinary one of a left-padded batch. Distances between a row's own columns are kept, so sliding windows are right, too:

                 lo                    hi
    row 0   . . .|k k k k k k k k k k k|<- next column, written by every row
    row 1   . . . . . . . .|k k k k k k|
    row 2   . . . . .|k k k k k k k k k|

A new row is copied to the columns just left of `hi`; a row that leaves is overwritten by the last one. Where `hi`
reaches the capacity, the window moves to the left, or the buffers grow. Nothing here knows modules, requests or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

FIRST_CAPACITY = 256  # columns; the buffers double from here

LayerState = tuple[torch.Tensor, torch.Tensor] | None  # keys and values, (1, heads, tokens, width); `None`: keeps none


@dataclass(frozen=True, eq=False)
class KeyValues:
    """One row's keys and values off the slots, layer by layer. Layers that share another's keep none."""

    layers: tuple[LayerState, ...]

    @property
    def num_tokens(self) -> int:
        return next(layer[0].shape[2] for layer in self.layers if layer is not None)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers if layer for tensor in layer)

    def first(self, num_tokens: int) -> KeyValues:
        """Those of the first tokens only; a view."""
        return KeyValues(
            tuple(layer and (layer[0][:, :, :num_tokens], layer[1][:, :, :num_tokens]) for layer in self.layers)
        )

    def to(self, device: torch.device) -> KeyValues:
        return KeyValues(tuple(layer and (layer[0].to(device), layer[1].to(device)) for layer in self.layers))

    def copied_to_host(self) -> KeyValues:
        return KeyValues(tuple(layer and (_host_copy(layer[0]), _host_copy(layer[1])) for layer in self.layers))

    def expanded(self, rows: int) -> DynamicCache:
        """A transformers cache that begins with them in each of `rows` rows. What is appended does not touch them."""
        return KeyValues(
            tuple(layer and _pair([t.expand(rows, -1, -1, -1) for t in layer]) for layer in self.layers)
        ).as_cache()

    def as_cache(self) -> DynamicCache:
        """A transformers cache that begins with them."""
        cache = DynamicCache()
        for state in self.layers:
            layer = DynamicLayer()
            if state is not None:
                layer.lazy_initialization(*state)
                layer.keys, layer.values = state
            cache.layers.append(layer)
        return cache


def taken_from(cache: DynamicCache) -> KeyValues:
    """What a module has written into a cache of one row."""
    return KeyValues(tuple((layer.keys, layer.values) if layer.is_initialized else None for layer in cache.layers))


@dataclass
class Window:
    """The columns in use, `lo` to `hi`, of the first `rows` rows. Shared by all layers."""

    rows: int = 0
    lo: int = 0
    hi: int = 0

    @property
    def span(self) -> int:
        return self.hi - self.lo


class SlotLayer(DynamicLayer):
    """Keys and values of one layer: two buffers of shape (rows, heads, capacity, head width)."""

    def __init__(self, window: Window, state: LayerState) -> None:
        super().__init__()
        self._window = window
        self.buffers = [tensor.new_empty((0, tensor.shape[1], 0, tensor.shape[3])) for tensor in state or ()]
        self.is_initialized = True

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by the module's attention in a decode step: append a column, give back the window."""
        w = self._window
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[: w.rows, :, w.hi] = new[:, :, 0]
        used_keys, used_values = (buffer[: w.rows, :, w.lo : w.hi + 1] for buffer in self.buffers)
        return used_keys, used_values

    def get_seq_length(self) -> int:
        return self._window.span

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._window.span + query_length, 0

    def resized(self, rows: int, capacity: int, hi: int) -> list[torch.Tensor]:
        """New buffers with the window's contents ending at column `hi`."""
        w = self._window
        resized = [buffer.new_zeros((rows, buffer.shape[1], capacity, buffer.shape[3])) for buffer in self.buffers]
        for new, old in zip(resized, self.buffers, strict=True):
            new[: w.rows, :, hi - w.span : hi] = old[: w.rows, :, w.lo : w.hi]
        return resized


class SlotCache:
    """The rows of all layers, at most `max_rows`. `max_tokens` bounds rows times columns; where it is not given,
    `max_bytes` does, once the first row has shown what a column takes. Whoever inserts and steps keeps to the bounds.
    `first_rows`: so many have buffers from the first."""

    def __init__(
        self, max_rows: int, max_tokens: int | None = None, max_bytes: int | None = None, first_rows: int = 1
    ) -> None:
        self.window = Window()
        self.lengths: list[int] = []  # of each row
        self.max_tokens = max_tokens
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._first_rows = first_rows
        self.layers: list[SlotLayer] = []
        self.num_rows = self.capacity = 0  # of the buffers
        self.generation = 0  # of the buffers: another number, other buffers

    @property
    def cache(self) -> Cache:
        """What the module's decode step is called with."""
        return Cache(layers=self.layers)

    def mask(self, device: torch.device) -> torch.Tensor:
        """Which columns of the window, and the next one, are a row's own: (rows, columns), of 0 and 1."""
        columns = torch.arange(self.window.span + 1, device=device)
        first = self.window.span - torch.tensor(self.lengths, device=device)
        return (columns[None] >= first[:, None]).long()

    def insert(self, state: KeyValues, other_bytes: int = 0) -> None:
        """A new last row. Where there is no memory for it, raises what torch raises, and all is as it was.
        `other_bytes` of the memory are for what rows hold elsewhere."""
        if not self.layers:
            self.layers = [SlotLayer(self.window, layer) for layer in state.layers]
            if self.max_tokens is None and self._max_bytes is not None:
                self.max_tokens = max(1, (self._max_bytes - other_bytes) * state.num_tokens // state.num_bytes)
        w, length = self.window, state.num_tokens
        if not w.rows:
            w.lo = w.hi = 0
        self._make_room(w.rows + 1, max(w.span, length))
        for layer, values in zip(self.layers, state.layers, strict=True):
            for buffer, tensor in zip(layer.buffers, values or (), strict=True):
                buffer[w.rows] = 0  # a masked column counts as 0 times what it holds, and the last row's may be NaN
                buffer[w.rows, :, w.hi - length : w.hi] = tensor[0]
        w.rows += 1
        self.lengths.append(length)
        self._set_lo()

    def row(self, row: int) -> KeyValues:
        """A row's contents; views."""
        hi, length = self.window.hi, self.lengths[row]
        return KeyValues(
            tuple(
                _pair([buffer[row : row + 1, :, hi - length : hi] for buffer in layer.buffers]) for layer in self.layers
            )
        )

    def make_column(self) -> None:
        """Room for the column that the next step writes."""
        if self.window.hi == self.capacity:
            self._make_room(self.window.rows, self.window.span)

    def advance(self) -> None:
        """The step has written its column."""
        self.window.hi += 1
        self.lengths = [length + 1 for length in self.lengths]

    def remove(self, row: int) -> None:
        w, last = self.window, self.window.rows - 1
        if row != last:
            for layer in self.layers:
                for buffer in layer.buffers:
                    buffer[row, :, w.lo : w.hi] = buffer[last, :, w.lo : w.hi]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        w.rows = last
        self._set_lo()

    def _make_room(self, rows: int, span: int) -> None:
        """See to it that `rows` rows and `span` columns left of the write column fit, and the column itself. Moves the
        window only where half of the columns are free, so that a column is copied but once in many steps."""
        w = self.window
        if rows <= self.num_rows and span <= w.hi < self.capacity:
            return
        fits = rows <= self.num_rows and span < self.capacity
        if fits and (w.hi < span or 2 * span <= self.capacity or not self._can_grow(rows, span)):
            self._shift(span - w.hi)
        else:
            self._resize(rows, span)

    def _can_grow(self, rows: int, span: int) -> bool:
        return self._sizes(rows, span)[1] > self.capacity

    def _sizes(self, rows: int, span: int) -> tuple[int, int]:
        """Rows and columns of new buffers: doubled where they must grow, within the bounds. Columns are doubled from
        one first size, so that few sizes ever come up."""
        num_rows, capacity = self.num_rows, self.capacity or FIRST_CAPACITY
        if rows > num_rows:
            num_rows = max(rows, self._first_rows, min(2 * num_rows, self._max_rows))
        elif 2 * span > capacity:
            capacity *= 2
        while capacity <= span:
            capacity *= 2
        if self.max_tokens is not None:
            num_rows = max(rows, min(num_rows, self.max_tokens // (span + 1)))
            capacity = max(span + 1, min(capacity, self.max_tokens // num_rows))
        return num_rows, capacity

    def _resize(self, rows: int, span: int) -> None:
        if not self.window.rows:
            self._drop_buffers()
        num_rows, capacity = self._sizes(rows, span)
        resized = [layer.resized(num_rows, capacity, span) for layer in self.layers]
        for layer, buffers in zip(self.layers, resized, strict=True):
            layer.buffers = buffers
        self.num_rows, self.capacity = num_rows, capacity
        self.generation += 1
        self.window.lo, self.window.hi = span - self.window.span, span

    def _drop_buffers(self) -> None:
        """There is nothing in them, and old and new ones need not exist side by side."""
        for layer in self.layers:
            layer.buffers = [buffer[:0, :, :0].clone() for buffer in layer.buffers]
        self.num_rows = self.capacity = 0

    def _shift(self, columns: int) -> None:
        """Move the window by so many columns, to the right where positive. All memory that it takes is taken before
        anything moves."""
        w = self.window
        windows = [(buffer, buffer[: w.rows, :, w.lo : w.hi]) for layer in self.layers for buffer in layer.buffers]
        scratch = {window.shape: torch.empty_like(window) for _, window in windows}
        for buffer, window in windows:
            copy = scratch[window.shape].copy_(window)
            buffer[: w.rows, :, w.lo + columns : w.hi + columns] = copy
        w.lo, w.hi = w.lo + columns, w.hi + columns

    def _set_lo(self) -> None:
        self.window.lo = self.window.hi - max(self.lengths, default=0)


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", copy=True)


def _pair(tensors: Sequence[torch.Tensor]) -> LayerState:
    return (tensors[0], tensors[1]) if tensors else None
