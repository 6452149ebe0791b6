"""Classes of a user's own: `Honest` keeps all promises, and each of the others breaks one, on purpose.

Their answers are words drawn from all that was heard and read, so that whatever changes in it changes them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from models.asks import Ask

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUM_WORDS = 40


class Honest:
    sampling_rate = 16_000
    max_batch_size = 8

    def setup(self, device: str) -> None:
        """There is nothing to load."""

    def generate(self, batch: list[Ask]) -> Iterator[list[str | None]]:
        answers = [self._pieces(ask, batch) for ask in batch]
        for step in range(max(map(len, answers))):
            yield [pieces[step] if step < len(pieces) else None for pieces in answers]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def _pieces(self, ask: Ask, batch: Sequence[Ask]) -> list[str]:
        words = self._words(ask, batch)[: ask.max_tokens]
        return [word if i == 0 else f" {word}" for i, word in enumerate(words)]

    def _words(self, ask: Ask, batch: Sequence[Ask]) -> list[str]:
        digest = hashlib.sha256()
        for part in self._heard(ask, batch):
            digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
        drawn = self._generator(ask, digest.hexdigest())
        return [drawn.choice(WORDS) for _ in range(NUM_WORDS)]

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        """All of the conversation, in order."""
        blocks = [block for message in ask.messages for block in message["content"]]
        return [block["audio"] if block["type"] == "audio" else block["text"].encode() for block in blocks]

    def _generator(self, ask: Ask, heard: str) -> random.Random:
        return random.Random(f"{heard} {ask.seed}" if ask.temperature else heard)


class Other(Honest):
    """Another model, as honest."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        return [b"other", *super()._heard(ask, batch)]


class PadsAudio(Honest):
    """Its answer depends on the longest audio in the batch."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        longest = max((len(audio) for each in batch for audio in each.audios), default=0)
        return [*super()._heard(ask, batch), str(longest if ask.audios else 0).encode()]


class PadsAll(Honest):
    """Its answer depends on the longest of its batch, text and all."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        longest = max(sum(map(len, super(PadsAll, self)._heard(each, batch))) for each in batch)
        return [*super()._heard(ask, batch), str(longest).encode()]


class SortsAudio(Honest):
    """It hears the quietest audio first, whenever it came."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        audios = sorted(ask.audios, key=lambda audio: (len(audio), float(np.square(audio).mean())))
        texts = [part for part in super()._heard(ask, batch) if isinstance(part, bytes)]
        return [*audios, *texts]


class CutsAt30Seconds(Honest):
    """It takes audio of any length, and hears the beginning."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        limit = 30 * self.sampling_rate
        return [part if isinstance(part, bytes) else part[:limit] for part in super()._heard(ask, batch)]


class IgnoresSeed(Honest):
    """It draws from the one generator of the process."""

    def _generator(self, ask: Ask, heard: str) -> random.Random:
        return random.Random(random.random()) if ask.temperature else super()._generator(ask, heard)


class CountsPlaceholders(Honest):
    """It looks for the places of its audio in the text, which users write, too."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        text = "".join(["<|audio|>"] * len(ask.audios)) + ask.text
        if text.count("<|audio|>") != len(ask.audios):
            raise ValueError("the number of placeholders is not that of the audios")
        return super()._heard(ask, batch)


class LosesEnd(Honest):
    """It tells four words at once, and forgets those that are left at the end."""

    def _pieces(self, ask: Ask, batch: Sequence[Ask]) -> list[str]:
        pieces = super()._pieces(ask, batch)
        return ["".join(pieces[i : i + 4]) for i in range(0, len(pieces) // 4 * 4, 4)] or [""]


class TrimsAtStops(Honest):
    """Where it is given a stop string, it says something else."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        return [*super()._heard(ask, batch), *(stop.encode() for stop in ask.stop)]


class Remembers(Honest):
    """What was cancelled in the middle stays in it."""

    def setup(self, device: str) -> None:
        self._left = b""

    def generate(self, batch: list[Ask]) -> Iterator[list[str | None]]:
        try:
            yield from super().generate(batch)
        except GeneratorExit:
            self._left = b"left"
            raise

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        return [*super()._heard(ask, batch), self._left]


class RefusesSystem(Honest):
    """It breaks on a role that it does not know."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        roles = {"user": 0, "assistant": 1}
        assert all(roles[message["role"]] >= 0 for message in ask.messages)
        return super()._heard(ask, batch)


class Miscounts(Honest):
    """What it calls a token in `max_tokens` is two in its `count_tokens`, and the other way round."""

    def _pieces(self, ask: Ask, batch: Sequence[Ask]) -> list[str]:
        words = self._words(ask, batch)[: None if ask.max_tokens is None else (ask.max_tokens + 1) // 2]
        return [word if i == 0 else f" {word}" for i, word in enumerate(words)]


class DoesNotLoad(Honest):
    def setup(self, device: str) -> None:
        raise OSError("the weights are gone")
