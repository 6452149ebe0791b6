"""Where the model runs. Asked in the main process, which must not import torch: it could not fork any more."""

from __future__ import annotations

import shutil
import subprocess
from importlib import metadata
from typing import Literal

Accelerator = Literal["cpu", "cuda"]


def choose_accelerator(device: str) -> Accelerator:
    """`auto` is CUDA where there is a GPU and a torch that can use it, else the CPU. Raises `LookupError` for a device
    that is not there."""
    if device == "cuda" and not _has_gpu():
        raise LookupError("No CUDA device is here: nvidia-smi lists none. See --device.")
    if device != "auto":
        return device  # type: ignore[return-value]
    return "cuda" if _has_gpu() and not metadata.version("torch").endswith("+cpu") else "cpu"


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0
