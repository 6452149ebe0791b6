"""Classes of a user's own: `Honest` keeps all promises, and each of the others breaks one, on purpose.

Their answers are words drawn from all that was heard and read, so that whatever changes in it changes them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.asks import Ask
from models.fake import FakeModel, FakeRows

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


class SharesSeed(Honest):
    """All of a batch is drawn as its first request wants it."""

    def _words(self, ask: Ask, batch: Sequence[Ask]) -> list[str]:
        return super()._words(replace(ask, seed=batch[0].seed), batch)


class NeverTheSame(Honest):
    """It draws where it was asked for the likeliest."""

    def _generator(self, ask: Ask, heard: str) -> random.Random:
        return random.Random(random.random())


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
    """Each answer that nobody waited for to its end stays in it."""

    def setup(self, device: str) -> None:
        self._num_left = 0

    def generate(self, batch: list[Ask]) -> Iterator[list[str | None]]:
        steps = list(super().generate(batch))
        for i, step in enumerate(steps):
            try:
                yield step
            except GeneratorExit:
                self._num_left += i + 1 < len(steps)
                raise

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        return [*super()._heard(ask, batch), str(self._num_left).encode()]


class RefusesSystem(Honest):
    """It breaks on a role that it does not know."""

    def _heard(self, ask: Ask, batch: Sequence[Ask]) -> list[Any]:
        roles = {"user": 0, "assistant": 1}
        assert all(roles[message["role"]] >= 0 for message in ask.messages)
        return super()._heard(ask, batch)


class Miscounts(Honest):
    """Short words are no tokens to it where it counts, but where it ends an answer they are."""

    def count_tokens(self, text: str) -> int:
        return sum(len(word) > 3 for word in text.split())


class TranscribesBackwards(Honest):
    """Three words for each audio, the last audio first."""

    def _words(self, ask: Ask, batch: Sequence[Ask]) -> list[str]:
        drawn = [random.Random(audio.tobytes()) for audio in reversed(ask.audios)]
        return [each.choice(WORDS) for each in drawn for _ in range(3)]


class AtOnce(Honest):
    """It keeps its promises, but does not stream."""

    def generate(self, batch: list[Ask]) -> list[str]:
        return ["".join(self._pieces(ask, batch)) for ask in batch]


class DoesNotLoad(Honest):
    """Its weights are gone."""

    def setup(self, device: str) -> None:
        raise OSError("the weights are gone")


# ------------------------------------------------------------------------------------------------- those with `prepare`


class HonestInputs:
    """The inputs of a tiny Qwen2-Audio, which hears 30 seconds of each clip."""

    sampling_rate = 16_000
    max_seconds: float | None = 30

    def setup(self, device: str) -> None:
        from tests.support.directories import _tokenizer
        from tests.support.tiny_models import build

        tiny = build("qwen2_audio")
        self.module, self.placeholder_ids, self._inputs = tiny.module, tiny.audio_token_ids, tiny.make_inputs
        self.tokenizer = _tokenizer("<|AUDIO|>")

    def prepare(self, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, heard = [self.tokenizer.bos_token_id], []
        for block in (block for message in messages for block in message["content"]):
            if block["type"] == "audio":
                heard.append(self._inputs([self._normalised(block["audio"])], ""))
                ids += heard[-1]["input_ids"][0, 1:].tolist()
            else:
                ids += self._encode(block["text"])
        features = {name: self._joined([each[name] for each in heard]) for name in (heard[0] if heard else ())}
        input_ids = torch.tensor([ids])
        return {**features, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, split_special_tokens=True).input_ids

    def _normalised(self, audio: np.ndarray) -> np.ndarray:
        return audio

    def _joined(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(rows) if len({row.shape for row in rows}) == 1 else rows[0]


class TakesPlaceholders(HonestInputs):
    """What a user writes is encoded with all that it may name."""

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids


class CutsFeatures(HonestInputs):
    """Its extractor cuts at 30 seconds, and it does not know."""

    max_seconds = None


class NormalisesAndCuts(CutsFeatures):
    """What it does not hear still changes how loud it hears the rest."""

    def _normalised(self, audio: np.ndarray) -> np.ndarray:
        return audio / np.abs(audio).max()


class ReversesFeatures(HonestInputs):
    """The features come in the order in which the audios did not."""

    def _joined(self, rows: list[torch.Tensor]) -> torch.Tensor:
        return super()._joined(rows[::-1])


# ------------------------------------------------------------------------------------------- one with rows of its own


class Crowded(FakeModel):
    """What a row says depends on whether there is another."""

    def make_rows(self) -> FakeRows:
        (end,) = self.end_ids
        return _CrowdedRows(self.vocabulary_size, end, ())


class _CrowdedRows(FakeRows):
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        logits = super().step(tokens)
        return logits.roll(1, dims=-1) if len(tokens) > 1 else logits
