"""Makes torchaudio importable beside a CPU build of torch.

PyPI's torchaudio wheel links CUDA: where torch has none, its optional C++ extension cannot load and the import fails.
Resampling, mel filters and spectrograms are pure torch and need no extension, so a stand-in that says "not available"
goes into its place before torchaudio is first imported, by us or by transformers.
"""

from __future__ import annotations

import sys
from types import ModuleType

import torch

_EXTENSION = "torchaudio._extension"


def install() -> None:
    """Call before anything imports torchaudio. Does nothing where torch has CUDA."""
    if torch.version.cuda is not None or _EXTENSION in sys.modules:
        return
    stand_in = ModuleType(_EXTENSION)
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = False  # type: ignore[attr-defined]
    stand_in._IS_ALIGN_AVAILABLE = False  # type: ignore[attr-defined]
    stand_in.fail_if_no_align = lambda function: function  # type: ignore[attr-defined]
    sys.modules[_EXTENSION] = stand_in
