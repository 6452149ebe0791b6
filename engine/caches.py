"""What is kept of earlier requests, so that nothing is computed twice: encoded audio, and prompts' keys and values.

Both are bounded in bytes, forget what was not used for the longest time, and are used from the engine's thread only,
where one prefill follows the other: requests with the same audio that come together find the first one's work.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from engine.prompts import Identity
from engine.slots import KeyValues

K = TypeVar("K")
V = TypeVar("V")

# Where modules keep what turns features into audio embeddings: the first that a module has, the least deep.
AUDIO_ENCODERS = ("audio_tower", "audio_encoder", "speech_encoder", "audio_embed.encoder", "encoder")

MIN_PREFIX_TOKENS = 16  # shorter beginnings, such as a template's, are not worth a piece of their own
MAX_PREFIXES = 256


class ByteBoundedCache(Generic[K, V]):
    """Least recently used goes first. A value larger than the bound is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[tuple[K, V]]:
        return iter([(key, value) for key, (value, _) in self._entries.items()])

    def get(self, key: K) -> V | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def has_room(self, num_bytes: int) -> bool:
        """Whether a value of so many bytes would be kept."""
        return num_bytes <= self._max_bytes

    def put(self, key: K, value: V, num_bytes: int) -> None:
        self.drop(key)
        if not self.has_room(num_bytes):
            return
        self._entries[key] = value, num_bytes
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, key: K) -> None:
        if key in self._entries:
            self.num_bytes -= self._entries.pop(key)[1]

    def clear(self) -> None:
        self._entries.clear()
        self.num_bytes = 0


class EncoderCache:
    """Stands before a module's audio encoder: while a prompt with known audio is prefilled (`naming`), the encoder's
    output is taken from here, where it is, and kept otherwise. The module itself is as it was, but for this door.
    What is kept is never what was given out: decoders write into it.

    `last_output`: what the encoder gave, or would have given, when it was last called.
    """

    def __init__(self, module: torch.nn.Module, max_bytes: int) -> None:
        self._outputs: ByteBoundedCache[tuple[bytes, int], Any] = ByteBoundedCache(max_bytes)
        self._name: bytes | None = None
        self._calls = 0
        self.hits = self.misses = 0
        self.last_output: Any = None
        self._encode: Callable[..., Any]
        encoder = _audio_encoder(module)
        if encoder is not None:
            before = getattr(encoder.forward, "__self__", None)  # another engine's door is not entered twice
            self._encode = before._encode if isinstance(before, EncoderCache) else encoder.forward
            encoder.forward = self._forward

    @contextmanager
    def naming(self, keys: Sequence[bytes]) -> Iterator[None]:
        """While inside, the encoder is called with the audio that `keys` name, all of it and in this order."""
        self._name = hashlib.sha256(b"".join(keys)).digest() if keys else None
        self._calls = 0
        try:
            yield
        finally:
            self._name = None

    def clear(self) -> None:
        self._outputs.clear()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._name is None:
            self.last_output = self._encode(*args, **kwargs)
            return copy.copy(self.last_output)  # modules write the projected embeddings into the output
        self.last_output = self._known(args, kwargs)
        return copy.deepcopy(self.last_output)  # and some add to its tensors in place

    def _known(self, args: Any, kwargs: Any) -> Any:
        assert self._name is not None, "called inside `naming`"
        key = self._name, self._calls  # a module may call its encoder several times, for windows of the audio
        self._calls += 1
        output = self._outputs.get(key)
        self.hits, self.misses = self.hits + (output is not None), self.misses + (output is None)
        if output is None:
            output = self._encode(*args, **kwargs)
            self._outputs.put(key, output, _num_bytes(output))
        return output


def _audio_encoder(module: torch.nn.Module) -> Any:
    names = sorted((name for name, _ in module.named_modules()), key=lambda name: name.count("."))
    for wanted in AUDIO_ENCODERS:
        for name in names:
            if f".{name}".endswith(f".{wanted}"):
                return module.get_submodule(name)
    return None


def _num_bytes(output: Any) -> int:
    if isinstance(output, torch.Tensor):
        return output.nbytes
    values = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    return sum(map(_num_bytes, values))


class PrefixCache:
    """Keys and values of recent prompts. A prompt that begins as one of them is computed from there on only."""

    def __init__(self, max_bytes: int) -> None:
        self._states: ByteBoundedCache[bytes, tuple[Identity, KeyValues]] = ByteBoundedCache(max_bytes)

    def clear(self) -> None:
        self._states.clear()

    def longest(self, identity: Identity) -> KeyValues | None:
        """The keys and values of the longest known beginning that is worth it. Never of the whole prompt: the last
        token has to be computed for its logits."""
        best, best_key, best_state = MIN_PREFIX_TOKENS - 1, None, None
        for key, (known, state) in self._states:
            length = identity.first_whole(min(_num_common(known, identity), len(identity.tokens) - 1))
            if length > best:
                best, best_key, best_state = length, key, state
        if best_key is None or best_state is None:
            return None
        self._states.get(best_key)  # it was of use
        return best_state.first(best)

    def put(self, identity: Identity, state: KeyValues) -> None:
        """Keep a prompt, in the place of those that it begins with: they are in it."""
        if len(identity.tokens) < MIN_PREFIX_TOKENS or not self._states.has_room(state.num_bytes):
            return
        for key, (known, _) in self._states:
            if _num_common(known, identity) == len(known.tokens):
                self._states.drop(key)
        self._states.put(identity.tokens.tobytes(), (identity, state), state.num_bytes)
        while len(self._states) > MAX_PREFIXES:
            self._states.drop(next(iter(self._states))[0])


def _num_common(one: Identity, other: Identity) -> int:
    """How many tokens two prompts have in common, from the first on."""
    length = min(len(one.tokens), len(other.tokens))
    different = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    return int(different[0]) if len(different) else length
