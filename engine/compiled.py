"""The decode step in shapes that stay the same, so that it can be compiled and replayed as a CUDA graph.

Here a step takes the buffers whole, all rows and all columns, whatever is in use: their sizes are the buckets, as they
double. The write column and the mask are tensors. A graph is captured anew only when the buffers have grown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from engine.slots import SlotCache, SlotLayer

MAX_SHAPES = 32  # sizes of the buffers that are compiled for


def compile_module(module: torch.nn.Module, device: torch.device) -> Callable[..., Any]:
    """The module compiled for fixed shapes; on CUDA as graphs. Compiles when it is first called."""
    torch._dynamo.config.recompile_limit = MAX_SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # by itself it would go on uncompiled, over whole buffers
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(module, mode=mode, dynamic=False)


class _WholeLayer(DynamicLayer):
    """A slot layer of which a step sees all."""

    is_compileable = True

    def __init__(self, layer: SlotLayer, column: torch.Tensor) -> None:
        super().__init__()
        self._layer_buffers = list(layer.buffers)
        self._column = column
        self.is_initialized = True
        for tensor in (*self._layer_buffers, column):
            torch._dynamo.mark_static_address(tensor)  # a CUDA graph may write to it in place

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        own_keys, own_values = self._layer_buffers
        own_keys.index_copy_(2, self._column, keys)
        own_values.index_copy_(2, self._column, values)
        return own_keys, own_values

    def get_seq_length(self) -> Any:
        """The write column, as a tensor: an integer would be compiled into the graph."""
        return self._column

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._layer_buffers[0].shape[2], 0


class WholeStep:
    """Decode steps of one module over whole buffers. `multimodal_positions`: the module wants three of each."""

    def __init__(
        self, module: torch.nn.Module, slots: SlotCache, device: torch.device, multimodal_positions: bool
    ) -> None:
        self._call = compile_module(module, device)
        self._slots = slots
        self._device = device
        self._multimodal_positions = multimodal_positions
        self._column = torch.zeros(1, dtype=torch.long, device=device)
        self._cache: Cache | None = None
        self._generation = -1

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Those of the next tokens, shape (rows, vocabulary). Raises whatever compiling raises; the step can then be
        made again, as it only writes its own column."""
        rows, total = len(tokens), self._slots.num_rows
        unused = [0] * (total - rows)
        position_ids = self._tensor([*positions, *unused])[:, None]
        self._column.fill_(self._slots.window.hi)
        output = self._call(
            input_ids=self._tensor([*tokens, *unused])[:, None],
            attention_mask=self._mask(),
            position_ids=position_ids[None].expand(3, -1, -1) if self._multimodal_positions else position_ids,
            past_key_values=self._whole_cache(),
            use_cache=True,
        )
        logits: torch.Tensor = output.logits[:rows, -1]
        return logits

    def _whole_cache(self) -> Cache:
        """The same object as long as the buffers are the same, or the graph would be captured anew."""
        if self._cache is None or self._generation != self._slots.generation:
            self._generation = self._slots.generation
            self._cache = Cache(layers=[_WholeLayer(layer, self._column) for layer in self._slots.layers])
        return self._cache

    def _mask(self) -> torch.Tensor:
        """Each row's own columns. An unused row has the column that it writes: a row of nothing would give NaN."""
        hi = self._slots.window.hi
        lengths = [*self._slots.lengths, *[0] * (self._slots.num_rows - len(self._slots.lengths))]
        first = hi - self._tensor(lengths)
        columns = torch.arange(self._slots.capacity, device=self._device)
        return ((columns[None] >= first[:, None]) & (columns[None] <= hi)).long()

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)
