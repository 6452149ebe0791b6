"""Logits to token ids, all rows at once, each row by its own request's settings.

A row's choice depends on nothing but its own logits and its own generator, so an answer is the same alone and in
company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MIN_TEMPERATURE = 1e-4  # below it logits overflow float32, and the likeliest token is certain anyway


@dataclass(frozen=True)
class RowSampling:
    """One row's settings. `temperature` 0 takes the likeliest token; `generator` is the row's own."""

    temperature: float
    top_p: float
    generator: torch.Generator | None


def sample(logits: torch.Tensor, rows: Sequence[RowSampling]) -> list[int]:
    """One token id for each row of `logits`, shape (rows, vocabulary)."""
    tokens = logits.argmax(-1)
    drawn = [i for i, row in enumerate(rows) if row.temperature >= MIN_TEMPERATURE]
    if drawn:
        tokens[drawn] = _draw(logits[drawn].float(), [rows[i] for i in drawn])
    return [int(token) for token in tokens.tolist()]


def _draw(logits: torch.Tensor, rows: Sequence[RowSampling]) -> torch.Tensor:
    """Draw from each row's nucleus. argmax(p / e) with e ~ Exp(1) is a draw from p (the exponential race), and lets
    every row use its own generator."""
    temperatures = torch.tensor([row.temperature for row in rows], device=logits.device)
    probabilities = (logits / temperatures[:, None]).softmax(-1)
    if any(row.top_p < 1 for row in rows):
        probabilities = _nucleus(probabilities, torch.tensor([row.top_p for row in rows], device=logits.device))
    noise = torch.empty(probabilities.shape)  # drawn on the CPU: a seed means the same on every device
    for values, row in zip(noise, rows, strict=True):
        values.exponential_(generator=row.generator)
    return (probabilities / noise.to(probabilities.device)).argmax(-1)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero all but the likeliest tokens that together reach `top_p` (Holtzman et al. 2019); at least one stays."""
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= top_p.clamp(min=torch.finfo(before.dtype).tiny)[:, None], 0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
