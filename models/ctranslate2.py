"""Reads a CTranslate2 Whisper file (`model.bin`) into the state dict of transformers' Whisper.

The format, little-endian (CTranslate2, `python/ctranslate2/specs/model_spec.py`):

    uint32 version, string spec name, uint32 revision
    uint32 number of variables; each a string name, uint8 rank, uint32 per dimension, uint8 type, uint32 bytes, data
    uint32 number of aliases; each two strings, alias and target
    a string: uint16 length (with its NUL), bytes, NUL

This file knows the format and the names, and loads nothing else.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

Variables = dict[str, torch.Tensor]

BINARY_VERSIONS = (4, 5, 6)
_FLOAT_TYPES: dict[int, type[np.generic]] = {0: np.float32, 4: np.float16}
_INT_TYPES: dict[int, type[np.generic]] = {1: np.int8, 2: np.int16, 3: np.int32}
_LAYER = re.compile(r"(?:encoder|decoder)/layer_(\d+)/")


class _Reader:
    """A cursor over a memory-mapped file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants writable memory
        self._position = 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self._buffer, self._position)
        self._position += struct.calcsize("<" + code)
        return int(value)

    def string(self) -> str:
        length = self.number("H")
        start, self._position = self._position, self._position + length
        return self._buffer[start : start + length - 1].decode()

    def variable(self) -> torch.Tensor:
        shape = [self.number("I") for _ in range(self.number("B"))]
        kind, num_bytes = self.number("B"), self.number("I")
        types = _FLOAT_TYPES | _INT_TYPES
        if kind not in types:
            raise ValueError(f"CTranslate2 type {kind} is not supported")
        dtype = np.dtype(types[kind])
        array = np.frombuffer(self._buffer, dtype, num_bytes // dtype.itemsize, self._position)
        self._position += num_bytes
        return torch.from_numpy(array.reshape(shape))


def read_variables(path: Path) -> Variables:
    """The variables of a Whisper `model.bin` by name, aliases resolved, sharing the file's memory map.

    Raises `ValueError` for another format, another kind of model or quantised weights.
    """
    reader = _Reader(path)
    version = reader.number("I")
    if version not in BINARY_VERSIONS:
        raise ValueError(f"{path}: CTranslate2 binary version {version} is not supported")
    spec = reader.string()
    reader.number("I")  # revision
    if spec != "WhisperSpec":
        raise ValueError(f"{path}: holds a {spec}, not a Whisper model")
    variables = {reader.string(): reader.variable() for _ in range(reader.number("I"))}
    for _ in range(reader.number("I")):
        alias, target = reader.string(), reader.string()
        variables[alias] = variables[target]
    if any(name.endswith("weight_scale") for name in variables):
        raise ValueError(f"{path}: quantised weights are not supported; convert the model to float16 or float32")
    return variables


def num_layers(variables: Mapping[str, torch.Tensor], side: str) -> int:
    """How many layers the `encoder` or `decoder` has."""
    return 1 + max(int(m[1]) for name in variables if name.startswith(side) and (m := _LAYER.match(name)))


def whisper_state_dict(variables: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The variables under the names of `WhisperForConditionalGeneration`, in float32."""
    state: dict[str, torch.Tensor] = {}
    for side in ("encoder", "decoder"):
        target = f"model.{side}"
        state[f"{target}.embed_positions.weight"] = variables[f"{side}/position_encodings/encodings"].float()
        _norm(variables, f"{side}/layer_norm", f"{target}.layer_norm", state)
        for layer in range(num_layers(variables, side)):
            _layer(variables, f"{side}/layer_{layer}", f"{target}.layers.{layer}", state)
    for conv in ("conv1", "conv2"):
        _linear(variables, f"encoder/{conv}", f"model.encoder.{conv}", state)
    _linear(variables, "decoder/embeddings", "model.decoder.embed_tokens", state)
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def _layer(variables: Mapping[str, torch.Tensor], source: str, target: str, state: dict[str, torch.Tensor]) -> None:
    """One transformer layer. CTranslate2 stacks q, k, v of self-attention, and k, v of cross-attention."""
    _norm(variables, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm", state)
    _stacked(variables, f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv", state)
    _linear(variables, f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj", state)
    if f"{source}/attention/linear_0/weight" in variables:
        _norm(variables, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm", state)
        _stacked(variables, f"{source}/attention/linear_0", f"{target}.encoder_attn", "q", state)
        _stacked(variables, f"{source}/attention/linear_1", f"{target}.encoder_attn", "kv", state)
        _linear(variables, f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj", state)
    _norm(variables, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", state)
    _linear(variables, f"{source}/ffn/linear_0", f"{target}.fc1", state)
    _linear(variables, f"{source}/ffn/linear_1", f"{target}.fc2", state)


def _linear(variables: Mapping[str, torch.Tensor], source: str, target: str, state: dict[str, torch.Tensor]) -> None:
    state[f"{target}.weight"] = variables[f"{source}/weight"].float()
    if f"{source}/bias" in variables:
        state[f"{target}.bias"] = variables[f"{source}/bias"].float()


def _norm(variables: Mapping[str, torch.Tensor], source: str, target: str, state: dict[str, torch.Tensor]) -> None:
    state[f"{target}.weight"] = variables[f"{source}/gamma"].float()
    state[f"{target}.bias"] = variables[f"{source}/beta"].float()


def _stacked(
    variables: Mapping[str, torch.Tensor], source: str, target: str, parts: str, state: dict[str, torch.Tensor]
) -> None:
    """Projections stacked in one matrix, such as "qkv". Whisper's keys have no bias; the file holds zeros for it."""
    weights = variables[f"{source}/weight"].float().chunk(len(parts))
    biases = variables[f"{source}/bias"].float().chunk(len(parts))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        state[f"{target}.{part}_proj.weight"] = weight
        if part != "k":
            state[f"{target}.{part}_proj.bias"] = bias
