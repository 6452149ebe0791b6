"""Which rows serve a model: its own, those of a decoder or of an encoder-decoder, or a single one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from engine.caches import EncoderCache, PrefixCache
from engine.decoder import DecoderRows
from engine.encoder_decoder import EncoderDecoderRows
from engine.memory import key_value_bytes
from engine.serial import SerialRows, has_recurrent_state
from engine.slots import SlotCache
from models.base import CausalModel, Rows

log = logging.getLogger("eardrum.engine")

MB = 1_000_000


@dataclass(frozen=True)
class EngineOptions:
    """`max_rows` answers are decoded side by side. `prefill_tokens` of a text prompt are computed between two steps.
    `kv_tokens`: tokens whose keys and values all rows may hold together, rows times columns; `None` measures the free
    memory. What is kept of audio and prompts is bounded in MB; 0 keeps nothing. `compiled`: decode steps of
    decoder-only modules go through `torch.compile`, with CUDA graphs where there is CUDA."""

    max_rows: int = 16
    prefill_tokens: int = 512
    kv_tokens: int | None = None
    encoder_cache_mb: int = 0
    prefix_cache_mb: int = 0
    compiled: bool = False


class RowsFactory:
    """Makes fresh rows of one model. What is kept from request to request survives them."""

    def __init__(self, model: CausalModel, options: EngineOptions) -> None:
        self._model = model
        self._options = options
        self.max_rows = options.max_rows
        self.is_serial = False
        if model.make_rows() is not None:
            return
        module: Any = model.module
        self._device = next(module.parameters()).device
        self._encoder_cache = EncoderCache(module, options.encoder_cache_mb * MB)
        self._prefix_cache = PrefixCache(options.prefix_cache_mb * MB)
        self._max_bytes = key_value_bytes(self._device) if options.kv_tokens is None else None
        if options.compiled and module.config.is_encoder_decoder:
            log.warning("decode steps of an encoder-decoder are not compiled; they run uncompiled")
        if not module.config.is_encoder_decoder and has_recurrent_state(module):
            self.max_rows, self.is_serial = 1, True
            log.warning("the model keeps recurrent state, which rows cannot share: it answers one request at a time")

    def make(self) -> Rows:
        own = self._model.make_rows()
        if own is not None:
            return own
        module: Any = self._model.module
        self._encoder_cache.clear()
        self._prefix_cache.clear()
        if self.is_serial:
            return SerialRows(module)
        first_rows = self.max_rows if self._options.compiled else 1  # each new size is compiled anew
        slots = SlotCache(self.max_rows, self._options.kv_tokens, self._max_bytes, first_rows)
        if module.config.is_encoder_decoder:
            return EncoderDecoderRows(module, slots, self._encoder_cache)
        return DecoderRows(
            module,
            slots,
            self._model.placeholder_ids,
            self._encoder_cache,
            self._prefix_cache,
            self._options.compiled,
        )
