"""Small things that all rows do with a transformers module."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from models.base import PrefillFailed


@contextmanager
def prefill_errors() -> Iterator[None]:
    """Whatever is raised inside is one prompt's affair, and leaves the rows as they were."""
    try:
        yield
    except Exception as error:
        raise PrefillFailed from error


def placed(module: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inputs on the module's device and, where they are floats, in its type."""
    device, dtype = next(module.parameters()).device, module.dtype
    return {name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()}


def takes(module: torch.nn.Module, name: str) -> bool:
    """Whether the module's `forward` has an argument of this name. One that only `**kwargs` would swallow is ignored
    by the module, and does not count."""
    return name in inspect.signature(module.forward).parameters
