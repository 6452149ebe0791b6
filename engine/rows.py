"""Which rows serve a model: its own, those of a decoder or of an encoder-decoder, or a single one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from engine.caches import EncoderCache, PrefixCache
from engine.decoder import DecoderRows
from engine.encoder_decoder import EncoderDecoderRows
from engine.memory import key_value_bytes
from engine.modules import takes
from engine.serial import SerialRows, has_recurrent_state
from engine.slots import SlotCache, taken_from
from models.base import CausalModel, Rows

log = logging.getLogger("eardrum.engine")

MB = 1_000_000


@dataclass(frozen=True)
class EngineOptions:
    """`max_rows` answers are decoded side by side. `prefill_tokens` of a text prompt are computed between two steps.
    `kv_tokens`: tokens whose keys and values all rows may hold together, rows times columns; `None` measures the free
    memory, which `workers_per_device` share. What is kept of audio and prompts is bounded in MB; 0 keeps nothing.
    `compiled`: decode steps of decoder-only modules go through `torch.compile`, with CUDA graphs where there is CUDA.
    """

    max_rows: int = 16
    prefill_tokens: int = 512
    kv_tokens: int | None = None
    encoder_cache_mb: int = 0
    prefix_cache_mb: int = 0
    compiled: bool = False
    workers_per_device: int = 1


class RowsFactory:
    """Makes fresh rows of one model. What is kept from request to request survives them."""

    def __init__(self, model: CausalModel, options: EngineOptions) -> None:
        self._model = model
        self._options = options
        self.max_rows = options.max_rows
        self.reason_for_one_row = ""
        if model.make_rows() is not None:
            return
        module: Any = model.module
        self._device = next(module.parameters()).device
        self._encoder_cache = EncoderCache(module, options.encoder_cache_mb * MB)
        self._prefix_cache = PrefixCache(options.prefix_cache_mb * MB)
        self._max_bytes = key_value_bytes(self._device, options.workers_per_device)
        if reason := _reason_for_one_row(module):
            self.max_rows, self.reason_for_one_row = 1, reason
            log.warning("the model %s: it answers one request at a time", reason)
        self._max_tokens = options.kv_tokens or (None if self.reason_for_one_row else self._measured(module))
        self._warn(module)

    def _measured(self, module: Any) -> int | None:
        """How many tokens fit, from what a prompt of one token takes; `None` where that needs audio: then the first
        request shows it."""
        if self._max_bytes is None or module.config.is_encoder_decoder:
            return None
        cache = DynamicCache()
        with torch.inference_mode():
            ids = torch.zeros((1, 1), dtype=torch.long, device=self._device)
            module(input_ids=ids, past_key_values=cache, use_cache=True)
        return max(1, self._max_bytes // taken_from(cache).num_bytes)

    def _warn(self, module: Any) -> None:
        if self._options.compiled and (self.reason_for_one_row or module.config.is_encoder_decoder):
            log.warning("--compile is for decoder-only models whose rows share a step; this one runs uncompiled")
        if getattr(module.config, "has_lora_adapter", False):
            log.warning("the model has an adapter for audio only; it is left as it is loaded, for text, too")

    def make(self) -> Rows:
        own = self._model.make_rows()
        if own is not None:
            return own
        module: Any = self._model.module
        if self.reason_for_one_row and not module.config.is_encoder_decoder:
            return SerialRows(module)
        _refuse_several_devices(module)
        self._encoder_cache.clear()
        self._prefix_cache.clear()
        first_rows = self.max_rows if self._options.compiled else 1  # each new size is compiled anew
        slots = SlotCache(self.max_rows, self._max_tokens, self._max_bytes, first_rows)
        if module.config.is_encoder_decoder:
            return EncoderDecoderRows(module, slots, self.max_rows, self._encoder_cache)
        return DecoderRows(
            module,
            slots,
            self._model.placeholder_ids,
            self._encoder_cache,
            self._prefix_cache,
            self._options.compiled,
        )

    def learn(self, max_tokens: int | None) -> None:
        """What measuring has shown holds for rows that are made later, too."""
        self._max_tokens = max_tokens


def _refuse_several_devices(module: Any) -> None:
    """Raises `ValueError` for a module whose layers compute on several devices, as accelerate's map of it says: slots
    are on one. What is only kept on the host or the disk computes on the device of the rest."""
    devices = {str(device) for device in getattr(module, "hf_device_map", {}).values()} - {"cpu", "disk"}
    if len(devices) > 1:
        raise ValueError(
            f"--device-map spreads the model over several devices ({', '.join(sorted(devices))}); this server keeps "
            "all keys and values on one: leave --device-map out, or name one device."
        )


def _reason_for_one_row(module: Any) -> str:
    """Why the module's rows cannot share a step; empty where they can."""
    if module.config.is_encoder_decoder:
        return "" if takes(module, "decoder_position_ids") else "takes no decoder_position_ids"
    if has_recurrent_state(module):
        return "keeps recurrent state"
    return "" if takes(module, "position_ids") else "takes no position_ids"
