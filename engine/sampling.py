"""Logits to token ids, all rows at once, each row by its own request's settings.

    logits ─ bias, penalties ─▶ softmax at the temperature ─ min_p, top_k, top_p ─▶ a race by the row's own generator

A row's choice depends on nothing but its own logits and its own generator, so an answer is the same alone and in
company. Ties are kept or dropped together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch

from models.base import Defaults
from wire import Sampling

MIN_TEMPERATURE = 1e-4  # below it logits overflow float32, and the likeliest token is certain anyway
LEAST_NOISE = 1e-38  # float32; what a token's probability is divided by is never 0

# Most nuclei are small: so many of the likeliest tokens are looked at first, and so many times as many for rows where
# these do not reach top_p.
NUCLEUS_TOKENS = 128
WIDER = 16

BLOCK = 128  # values that are compared at once

T = TypeVar("T")


class RowSampler:
    """One sequence's settings, and what it has said so far where that matters. `defaults` hold where the request says
    nothing. `prompt_ids`: what a repetition penalty counts as said before."""

    def __init__(self, sampling: Sampling, defaults: Defaults, choice: int, prompt_ids: Sequence[int] = ()) -> None:
        self.settings = sampling
        self.temperature = _given(sampling.temperature, defaults.temperature)
        self.top_p = _given(sampling.top_p, defaults.top_p)
        self.top_k = _given(sampling.top_k, defaults.top_k)
        self.repetition_penalty = _given(sampling.repetition_penalty, defaults.repetition_penalty)
        self.seed(choice)
        self.begin(prompt_ids)

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """A prompt's answer begins. All penalties count anew: a window of a long audio is answered as it is alone, and
        not kept from words for having been said in another. The draw goes on where it was."""
        self._prompt_ids = prompt_ids if self.repetition_penalty != 1 else ()
        self.counts: torch.Tensor | None = None  # of each token in the answer, shape (vocabulary,)
        self.seen: torch.Tensor | None = None  # whether a token is in the prompt or the answer

    def seed(self, choice: int) -> None:
        """Each choice of a request draws apart. The same seed means the same on every machine and device."""
        seed = self.settings.seed
        entropy = None if seed is None else [seed % 2**64, choice]
        self.random = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        s = self.settings
        return bool(s.presence_penalty or s.frequency_penalty or self.repetition_penalty != 1)

    @property
    def narrows(self) -> bool:
        """Whether fewer than all tokens may be drawn."""
        return self.top_p < 1 or self.top_k > 0

    def record(self, token: int) -> None:
        """The token has been chosen."""
        if self.counts is not None and self.seen is not None:
            self.counts[token] += 1
            self.seen[token] = True

    def tally(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`counts` and `seen`, kept from the first time on; `like` has the vocabulary's shape."""
        if self.counts is None or self.seen is None:
            self.counts = torch.zeros_like(like)
            self.seen = torch.zeros_like(like, dtype=torch.bool)
            self.seen[with_logit(self._prompt_ids, len(like))] = True
        return self.counts, self.seen


def with_logit(ids: Iterable[int], size: int) -> list[int]:
    """Those of `ids` that are among the `size` logits: a placeholder may be behind the vocabulary's end."""
    return [token for token in ids if 0 <= token < size]


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def sample(logits: torch.Tensor, rows: Sequence[RowSampler]) -> list[int]:
    """One token id for each row of `logits`, shape (rows, vocabulary), float32; they may be changed."""
    _bias(logits, rows)
    _penalise(logits, rows)
    drawn = [i for i, row in enumerate(rows) if not row.is_greedy]
    if len(drawn) == len(rows):
        tokens = _draw(logits, rows)
    else:
        tokens = _argmax(logits)
        if drawn:
            tokens[drawn] = _draw(logits[drawn], [rows[i] for i in drawn])
    chosen: list[int] = tokens.tolist()
    for row, token in zip(rows, chosen, strict=True):
        row.record(token)
    return chosen


def _bias(logits: torch.Tensor, rows: Sequence[RowSampler]) -> None:
    biased = [(i, *pair) for i, row in enumerate(rows) for pair in row.settings.logit_bias]
    if biased:
        at, ids, values = zip(*biased, strict=True)
        places = torch.tensor(at, device=logits.device), torch.tensor(ids, device=logits.device)
        logits.index_put_(places, torch.tensor(values, device=logits.device, dtype=logits.dtype), accumulate=True)


def _penalise(logits: torch.Tensor, rows: Sequence[RowSampler]) -> None:
    """Presence and frequency as OpenAI defines them, over the answer to the prompt; repetition as Keskar et al. 2019
    (CTRL) do, over prompt and answer: what was said before is divided by the penalty where it is likely, multiplied
    where it is not."""
    penalised = [i for i, row in enumerate(rows) if row.has_penalties]
    if not penalised:
        return
    chosen = [rows[i] for i in penalised]
    tallies = [row.tally(logits[0]) for row in chosen]
    counts, seen = torch.stack([counts for counts, _ in tallies]), torch.stack([seen for _, seen in tallies])
    part = logits[penalised]
    repetition = _column([row.repetition_penalty for row in chosen], part)
    part = torch.where(seen, torch.where(part > 0, part / repetition, part * repetition), part)
    part -= _column([row.settings.frequency_penalty for row in chosen], part) * counts
    part -= _column([row.settings.presence_penalty for row in chosen], part) * (counts > 0)
    logits[penalised] = part


def _draw(logits: torch.Tensor, rows: Sequence[RowSampler]) -> torch.Tensor:
    """Draw from each row's distribution by the exponential race: argmax(p / e) with e ~ Exp(1) falls on each token with
    its probability p. One number to invert the cumulative sum by would be cheaper, but of 50,000 tokens some border is
    always so near that rounding, which depends on the company, moves it past the number; here the first is ahead of the
    second by far."""
    probabilities = (logits / _column([row.temperature for row in rows], logits)).softmax(-1)
    _drop_unlikely(probabilities, rows)
    if any(row.narrows for row in rows):
        probabilities.masked_fill_(probabilities < _smallest(rows, probabilities), 0)
    return _argmax(probabilities / _noise(rows, probabilities))


def _noise(rows: Sequence[RowSampler], like: torch.Tensor) -> torch.Tensor:
    """Exp(1) for each token, in the shape of `like`. Drawn in float64: float32 draws are 0 more often than an unlikely
    token may win."""
    noise = np.empty(like.shape)
    for values, row in zip(noise, rows, strict=True):
        row.random.standard_exponential(out=values)
    return torch.from_numpy(noise).to(like.device, like.dtype).clamp_(min=LEAST_NOISE)


def _drop_unlikely(probabilities: torch.Tensor, rows: Sequence[RowSampler]) -> None:
    """min_p: only what is at least that share as likely as the likeliest (Nguyen et al. 2024)."""
    if any(row.settings.min_p for row in rows):
        least = _column([row.settings.min_p for row in rows], probabilities) * probabilities.amax(-1, keepdim=True)
        probabilities.masked_fill_(probabilities < least, 0)


def _smallest(rows: Sequence[RowSampler], probabilities: torch.Tensor, width: int = NUCLEUS_TOKENS) -> torch.Tensor:
    """The smallest probability that each row's top_k and top_p keep, shape (rows, 1), among the `width` likeliest; 0
    for a row that has neither.

    The nucleus is the shortest beginning of the ordered tokens that reaches top_p of what top_k leaves (Holtzman et al.
    2019); at least one token stays.
    """
    vocabulary = probabilities.shape[-1]
    width = min(max(width, *(row.top_k for row in rows)), vocabulary)
    top_k = torch.tensor([[row.top_k or vocabulary] for row in rows], device=probabilities.device)
    ordered = probabilities.topk(width).values if width < vocabulary else probabilities.sort(descending=True).values
    cumulative = ordered.cumsum(-1, dtype=torch.float64)
    of_top_k = cumulative.gather(-1, top_k.clamp(max=width) - 1)
    total = torch.where(top_k <= width, of_top_k, probabilities.sum(-1, keepdim=True, dtype=torch.float64))
    places = torch.arange(width, device=probabilities.device)
    reached = cumulative - ordered >= _column([row.top_p for row in rows], cumulative) * total
    last = ((places < top_k) & (~reached | (places == 0))).sum(-1, keepdim=True) - 1
    narrows = torch.tensor([[row.narrows] for row in rows], device=probabilities.device)
    smallest = torch.where(narrows, ordered.gather(-1, last), 0)
    wide = (
        (narrows & (last == width - 1) & (top_k > width))[:, 0].nonzero()[:, 0].tolist() if width < vocabulary else []
    )
    if wide:
        smallest[wide] = _smallest([rows[i] for i in wide], probabilities[wide], WIDER * width)
    return smallest


def _argmax(values: torch.Tensor) -> torch.Tensor:
    """The place of the largest value in each row; of equal ones the first. In two levels: torch finds a maximum with
    vector instructions and its place without, which takes 0.9 instead of 0.1 ms for 32 rows of 16,000 on a CPU."""
    whole = values.shape[-1] // BLOCK * BLOCK
    rest = values[:, whole:]
    if not whole:
        return rest.argmax(-1)
    blocks = values[:, :whole].unflatten(-1, (-1, BLOCK))
    block = blocks.amax(-1).argmax(-1)
    front: torch.Tensor = block * BLOCK + blocks[torch.arange(len(values), device=values.device), block].argmax(-1)
    if not rest.shape[-1]:
        return front
    behind = rest.argmax(-1) + whole
    return torch.where(_at(values, front) >= _at(values, behind), front, behind)


def _at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Each row's value at its place."""
    return values.gather(-1, places[:, None])[:, 0]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
