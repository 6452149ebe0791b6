"""What a prompt is made of, so that two can be told apart: names for its audio's contents, and its tokens with those
names in the places of the audio."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.base import Prompt

# Inputs of a decoder-only module that speak of tokens, shape (1, tokens). All others are features of the audio.
TOKEN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


def features(prompt: Prompt) -> dict[str, torch.Tensor]:
    """The inputs that are made of audio: an encoder-decoder's are all but its decoder's."""
    if "decoder_input_ids" in prompt.inputs:
        return {name: tensor for name, tensor in prompt.inputs.items() if not name.startswith("decoder_")}
    return {name: tensor for name, tensor in prompt.inputs.items() if name not in TOKEN_INPUTS}


def audio_keys(prompt: Prompt) -> tuple[bytes, ...]:
    """Names of the audio's contents as the module gets them, so what made the features is in the name, too. One name
    for each audio where every feature tensor has a row for each, else one for all. It reads all features: some
    milliseconds, not for the engine's thread."""
    tensors = features(prompt)
    if not tensors:
        return ()
    lengths = {len(tensor) if tensor.dim() else 0 for tensor in tensors.values()}
    if len(lengths) == 1 and (count := lengths.pop()):
        return tuple(_hash({name: tensor[i] for name, tensor in tensors.items()}) for i in range(count))
    return (_hash(tensors),)


def _hash(tensors: Mapping[str, torch.Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


@dataclass(frozen=True, eq=False)
class Identity:
    """A prompt as a row of 64-bit numbers: its token ids, and in the places of audio a number made of the content's
    name. Two prompts whose rows begin alike have the same keys and values there (two contents have one number of 63
    bits by chance only).

    `spans`: where each audio stands, [start, stop). `separable`: a feature row belongs to each span.
    """

    tokens: npt.NDArray[np.int64]
    spans: tuple[tuple[int, int], ...]
    separable: bool

    def first_whole(self, num_tokens: int) -> int:
        """The longest beginning of at most so many tokens that cuts through no audio."""
        for start, stop in self.spans:
            if start < num_tokens < stop:
                return start
        return num_tokens

    def audio_from(self, token: int) -> list[int]:
        """Which spans stand at `token` or behind."""
        return [i for i, (start, _) in enumerate(self.spans) if start >= token]


def identify(prompt: Prompt, keys: Sequence[bytes], placeholder_ids: Sequence[int]) -> Identity:
    """The identity of a decoder-only module's prompt, whose audio has the names `keys`."""
    ids = prompt.inputs["input_ids"][0].numpy().astype(np.int64)
    spans = _runs(np.isin(ids, placeholder_ids))
    separable = len(spans) == len(keys)
    names = list(keys) if separable else [hashlib.sha256(b"".join(keys)).digest()] * len(spans)
    for name, (start, stop) in zip(names, spans, strict=True):
        ids[start:stop] = -1 - int.from_bytes(name[:8], "little") // 2  # below zero: no token id
    return Identity(ids, spans, separable)


def _runs(mask: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
    return tuple((int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True))
