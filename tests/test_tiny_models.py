"""The tiny models: what they answer depends on what they hear and read, so a comparison of two ways to compute it can
fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from tests.support.tiny_models import (
    CHAT_MODELS,
    ENCODER_DECODERS,
    TEXT_MODELS,
    Inputs,
    TinyModel,
    build,
    greedy,
    sweep,
)

RISING = sweep(1.1, start_hz=200, stop_hz=3000)
FALLING = sweep(2.3, start_hz=2500, stop_hz=400)
QUESTION = "What is it?"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For matrices as small as these, threads only wait for one another: on a busy machine eight times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_telling(model: TinyModel, prompts: list[Inputs]) -> None:
    """No two prompts have the same answer, the answers hold many tokens, and none stands for audio."""
    answers = [greedy(model, prompt, max_new_tokens=16) for prompt in prompts]
    assert all(one != other for one, other in itertools.combinations(answers, 2))
    assert all(len(set(answer)) >= 5 for answer in answers)
    assert not {token for answer in answers for token in answer} & set(model.audio_token_ids)


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_chat_models_answer_to_audio_and_text(name: str) -> None:
    """Another clip, none, two in either order, or another question: another answer."""
    model = build(name)
    clips = [[RISING], [FALLING], [], [RISING, FALLING], [FALLING, RISING]]
    prompts = [model.make_inputs(each, QUESTION) for each in clips]
    assert_telling(model, [*prompts, model.make_inputs([RISING], "Who is it?")])


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_models_answer_to_text(name: str) -> None:
    """Another question, another answer."""
    model = build(name)
    assert_telling(model, [model.make_inputs([], text) for text in (QUESTION, "Who is it?", "")])


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_answer_to_audio_and_text(name: str) -> None:
    """Another clip, or another beginning: another answer."""
    model = build(name)
    assert_telling(model, [model.make_inputs([clip], text) for clip in (RISING, FALLING) for text in (QUESTION, "")])


@pytest.mark.parametrize("name", CHAT_MODELS)
def test_each_clip_has_a_run_of_placeholders_of_its_own(name: str) -> None:
    """As many as the clip has alone."""
    model = build(name)

    def runs(*clips: object) -> list[int]:
        is_audio = torch.isin(model.make_inputs(clips, QUESTION)["input_ids"][0], torch.tensor(model.audio_token_ids))
        return [len(list(run)) for audio, run in itertools.groupby(is_audio.tolist()) if audio]

    assert runs(RISING, FALLING) == runs(RISING) + runs(FALLING)
    assert runs() == []


def test_a_build_is_the_same_each_time() -> None:
    """Whatever the state of torch's generator, which is left as it was."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = build.__wrapped__("moonshine").module.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    first = build("moonshine").module.state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
