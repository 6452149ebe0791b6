"""How checkpoints are loaded: the operator's choices, as transformers understands them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadOptions:
    """The words are those of transformers' `from_pretrained`. `quantization`: int8, or a quantization config in JSON.
    `adapter`: a LoRA adapter's directory or hub id."""

    device_map: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    quantization: str | None = None
    adapter: str | None = None


def torch_dtype(device: str, dtype: str) -> torch.dtype:
    """The type of a model's weights. `dtype`: float32, bfloat16, float16, or auto: what the device computes fast and
    without loss worth mentioning."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32
