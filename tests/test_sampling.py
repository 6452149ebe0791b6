"""Each row is sampled by its own settings, alone or in company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine import sampling
from engine.sampling import RowSampler, sample
from models.base import GREEDY, Defaults
from wire import Sampling


def row(temperature: float = 1.0, seed: int = 0, prompt_ids: tuple[int, ...] = (), **settings: object) -> RowSampler:
    return RowSampler(Sampling(seed=seed, temperature=temperature, **settings), GREEDY, 0, prompt_ids)


def drawn(logits: torch.Tensor, sampler: RowSampler, count: int = 300) -> set[int]:
    """Everything that comes up in many draws from the same logits."""
    return {sample(logits[None].clone(), [sampler])[0] for _ in range(count)}


def noise(rows: int, vocabulary: int = 1000, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(1))


def test_temperature_zero_takes_the_likeliest() -> None:
    """Whatever the other rows do."""
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert sample(logits.clone(), [row(0), row(0)]) == [1, 0]
    assert sample(logits.clone(), [row(1e-38), row(1e-5)]) == [1, 0]
    assert sample(logits.clone(), [row(2.0), row(0)])[1] == 0


@given(st.integers(1, 700), st.integers(1, 5), st.integers(0, 2**31))
def test_the_largest_value_is_found_and_of_equal_ones_the_first(vocabulary: int, rows: int, seed: int) -> None:
    """As torch finds it, in vocabularies of any size."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 50, (rows, vocabulary), generator=generator).float()
    assert torch.equal(sampling._argmax(values), values.argmax(-1))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
        "top_p": st.sampled_from([0.0, 0.3, 0.9, 1.0]),
        "top_k": st.sampled_from([0, 1, 5, 300, 2000]),
        "min_p": st.sampled_from([0.0, 0.05, 1.0]),
        "presence_penalty": st.sampled_from([0.0, 1.5]),
        "frequency_penalty": st.sampled_from([0.0, -1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "logit_bias": st.sampled_from([(), ((3, 5.0), (4, -100.0))]),
    },
)


@settings(max_examples=60)
@given(SETTINGS, st.lists(SETTINGS, min_size=1, max_size=7), st.integers(0, 2**31))
def test_a_row_chooses_the_same_in_any_company(own: dict, others: list[dict], seed: int) -> None:
    """Over several steps, by its own settings, penalties and random numbers."""
    logits = noise(len(others) + 1)
    alone, together = row(seed=seed, **own), row(seed=seed, **own)
    company = [row(seed=i, **other) for i, other in enumerate(others)]
    for _ in range(4):
        expected = sample(logits[:1].clone(), [alone])
        assert sample(logits.clone(), [together, *company])[0] == expected[0]


def test_a_seed_draws_the_same_on_every_machine() -> None:
    """The tokens are part of the promise: they must not change from version to version."""
    sampler = row(1.0, seed=7)
    assert [sample(noise(1), [sampler])[0] for _ in range(5)] == [620, 223, 513, 599, 809]


def test_choices_of_one_request_draw_apart() -> None:
    """With a seed and without, also a negative one."""
    for seed in (3, None, -(2**63)):
        draws = {RowSampler(Sampling(seed=seed), Defaults(), choice).random.random() for choice in range(4)}
        assert len(draws) == 4


def test_rounding_does_not_change_a_draw() -> None:
    """Logits that differ as from company to company: of 20,000 draws from a flat distribution hardly one moves."""
    logits = noise(20, 1000, scale=0.5)
    nudged = logits + 1e-6 * noise(20, 1000)
    samplers = [[row(1.0, seed=i) for i in range(20)] for _ in range(2)]
    moved = sum(
        one != other
        for _ in range(1000)
        for one, other in zip(sample(logits.clone(), samplers[0]), sample(nudged.clone(), samplers[1]), strict=True)
    )
    assert moved <= 3


def test_draws_follow_the_probabilities() -> None:
    """20,000 draws from (0.5, 0.3, 0.2) come within one percent point."""
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3).clone()
    sampler = row()
    tokens = torch.tensor(sample(logits, [sampler] * 20_000))
    shares = torch.bincount(tokens, minlength=3) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.01)


def test_what_is_impossible_is_never_drawn() -> None:
    """Not even by the smallest random number."""

    class Zeros:
        def standard_exponential(self, out: np.ndarray) -> None:
            out[:] = 0.0

    logits = torch.full((1, 50), -torch.inf)
    logits[0, [10, 20]] = torch.tensor([0.0, 1.0])
    sampler = row()
    sampler.random = Zeros()
    assert sample(logits.clone(), [sampler]) == [20]


def test_unlikely_tokens_come_as_rarely_as_they_are_likely() -> None:
    """One in a hundred million each, 50,000 of them: in 2,000 draws at most a few, not one in three hundred."""
    logits = torch.full((50_000,), 1e-8).log()
    logits[0] = 0.0
    unlikely = sum(token != 0 for token in sample(logits.expand(2_000, -1).clone(), [row()] * 2_000))
    assert unlikely <= 6


def test_top_p_keeps_the_nucleus_only() -> None:
    """0.5 alone does not reach 0.6, so two tokens stay; a top_p of 0 keeps the likeliest."""
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    assert drawn(logits, row(top_p=0.6)) == {1, 2}
    assert drawn(logits, row(top_p=0.0)) == {1}


def test_a_nucleus_of_very_many_tokens_is_found_whole() -> None:
    """Also where it is wider than the tokens that are looked at first."""
    flat = torch.zeros(4 * sampling.NUCLEUS_TOKENS) + torch.arange(4 * sampling.NUCLEUS_TOKENS) * 1e-4
    seen = drawn(flat, row(top_p=0.9), 3000)
    assert len(seen) > 2 * sampling.NUCLEUS_TOKENS
    assert min(seen) >= 0.08 * len(flat)


@pytest.mark.parametrize(
    ("narrowing", "processors"),
    [
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"min_p": 0.1}, [MinPLogitsWarper(0.1)]),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"top_k": 40, "top_p": 0.5}, [TopKLogitsWarper(40), TopPLogitsWarper(0.5)]),
        (
            {"min_p": 0.02, "top_k": 30, "top_p": 0.8},
            [MinPLogitsWarper(0.02), TopKLogitsWarper(30), TopPLogitsWarper(0.8)],
        ),
    ],
)
def test_what_may_be_drawn_is_what_transformers_leaves(narrowing: dict, processors: list) -> None:
    """The same tokens pass as transformers' own filters let pass, at a temperature that is not 1."""
    logits = noise(1, 300)[0]
    left = LogitsProcessorList([TemperatureLogitsWarper(1.7), *processors])(
        torch.zeros((1, 0), dtype=torch.long), logits[None]
    )
    expected = set(torch.isfinite(left[0]).nonzero()[:, 0].tolist())
    assert drawn(logits, row(1.7, **narrowing), 4000) <= expected
    probabilities = (logits / 1.7).softmax(-1)[None]
    sampling._drop_unlikely(probabilities, [row(1.7, **narrowing)])
    if "top_k" in narrowing or "top_p" in narrowing:
        least = sampling._smallest([row(1.7, **narrowing)], probabilities)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    assert set(probabilities[0].nonzero()[:, 0].tolist()) == expected


def test_presence_and_frequency_are_openais() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the answer and not the prompt."""
    logits = torch.tensor([1.0, 0.9, 0.4])
    assert [sample(logits[None].clone(), [greedy])[0] for greedy in [row(0, presence_penalty=0.5)] * 4] == [0, 1, 0, 0]
    assert [sample(logits[None].clone(), [greedy])[0] for greedy in [row(0, frequency_penalty=0.5)] * 4] == [0, 1, 0, 2]
    assert sample(logits[None].clone(), [row(0, presence_penalty=0.5, prompt_ids=(0,))]) == [0]


def test_repetition_is_that_of_transformers() -> None:
    """Over prompt and answer."""
    logits = noise(1, 50)
    sampler = row(0, repetition_penalty=1.8, prompt_ids=(4, 9))
    said = [4, 9]
    for _ in range(8):
        expected = RepetitionPenaltyLogitsProcessor(1.8)(torch.tensor([said]), logits.clone()).argmax().item()
        assert sample(logits.clone(), [sampler]) == [expected]
        said.append(expected)


def test_ids_of_the_prompt_that_have_no_logit_are_not_counted() -> None:
    """Such as a placeholder behind the vocabulary's end."""
    logits = noise(1, 50)
    inside, outside = (row(0, repetition_penalty=1.8, prompt_ids=ids) for ids in ((4, 9), (4, 50, -1, 9)))
    assert sample(logits.clone(), [outside]) == sample(logits.clone(), [inside])
    assert outside.seen is not None
    assert torch.equal(outside.seen, inside.seen)


def test_a_new_prompt_is_counted_anew_and_the_draw_goes_on() -> None:
    """Words are new again; random numbers are not the same again."""
    sampler, other = row(1.0, repetition_penalty=1.8), row(1.0)
    first = [sample(noise(1), [each])[0] for each in (sampler, other)]
    assert first[0] == first[1]
    sampler.begin((4,))
    assert sampler.tally(noise(1)[0])[1].nonzero()[:, 0].tolist() == [4]
    assert sampler.random.random() == other.random.random()


def test_logit_bias_adds_to_the_logit() -> None:
    """-100 forbids and 100 forces, each in its own row."""
    logits = torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.5, 0.0]])
    assert sample(logits, [row(0, logit_bias=((0, -100.0),)), row(0, logit_bias=((2, 100.0),))]) == [1, 2]
