"""Each row is sampled by its own settings, alone or in company."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling import RowSampling, sample


def row(temperature: float = 1.0, top_p: float = 1.0, seed: int = 0) -> RowSampling:
    return RowSampling(temperature, top_p, torch.Generator().manual_seed(seed))


def test_temperature_zero_takes_the_likeliest() -> None:
    """Whatever the other rows do."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert sample(logits, [row(0), row(0)]) == [1, 0]
    assert sample(logits, [row(1e-38), row(1e-5)]) == [1, 0]
    assert sample(logits, [row(2.0), row(0)])[1] == 0


@given(st.integers(0, 2**31), st.integers(1, 7))
def test_a_seeded_row_draws_the_same_in_any_company(seed: int, others: int) -> None:
    """Its noise is its own."""
    logits = torch.randn(others + 1, 50, generator=torch.Generator().manual_seed(1))
    alone = sample(logits[:1], [row(1.0, 0.9, seed)])
    together = sample(logits, [row(1.0, 0.9, seed), *(row(0.7, 1.0, i) for i in range(others))])
    assert together[0] == alone[0]


def test_draws_follow_the_probabilities() -> None:
    """20,000 draws from (0.5, 0.3, 0.2) come within one percent point."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor(sample(logits, [RowSampling(1.0, 1.0, generator)] * 20_000))
    shares = torch.bincount(tokens, minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.01)


def test_top_p_keeps_the_nucleus_only() -> None:
    """0.5 alone does not reach 0.6, so two tokens stay; a top_p of 0 keeps the likeliest."""
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(logits[None], [RowSampling(1.0, 0.6, generator)])[0] for _ in range(200)}
    assert drawn == {1, 2}
    assert {sample(logits[None], [RowSampling(1.0, 0.0, generator)])[0] for _ in range(50)} == {1}
