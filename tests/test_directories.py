"""The saved tiny models load as others from Hugging Face do, and their answers depend on what they hear and read."""

from __future__ import annotations

import base64
import io
import itertools
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.directories import (
    CHAT,
    CTC,
    ENCODER_DECODERS,
    STRING_TEMPLATES,
    TEXT,
    TRANSDUCERS,
    save,
)
from tests.support.tiny_models import SAMPLING_RATE, Waveform, sweep

RISING = sweep(1.1, start_hz=200, stop_hz=3000)
FALLING = sweep(2.3, start_hz=2500, stop_hz=400)
QUESTION = "What is it?"
ONE_CLIP_ONLY = {"audioflamingo3", "glmasr", "qwen3_asr"}

Loaded = tuple[transformers.PreTrainedModel, Any]


def load(directory: Path) -> Loaded:
    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    processor = transformers.AutoProcessor.from_pretrained(directory, local_files_only=True)
    architecture = getattr(transformers, config.architectures[0])
    return architecture.from_pretrained(directory, local_files_only=True), processor


def block(clip: Waveform, processor: Any) -> dict[str, Any]:
    """Voxtral's processor takes files only."""
    if not isinstance(processor, transformers.VoxtralProcessor):
        return {"type": "audio", "audio": clip}
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, SAMPLING_RATE, 0, "NONE", ""))
        wav.writeframes((clip * 32767).astype("<i2").tobytes())
    return {"type": "audio", "base64": "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()}


def render(processor: Any, content: object) -> transformers.BatchFeature:
    """Voxtral's processor finds "pt" itself, and warns of some of the rest."""
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    return processor.apply_chat_template([{"role": "user", "content": content}], return_tensors="pt", **options)


def answer(loaded: Loaded, inputs: dict[str, torch.Tensor]) -> list[int]:
    module, _ = loaded
    ids = module.generate(**inputs, max_new_tokens=16, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def ask(loaded: Loaded, clips: Sequence[Waveform], text: str = QUESTION) -> list[int]:
    blocks = [*(block(clip, loaded[1]) for clip in clips), {"type": "text", "text": text}]
    return answer(loaded, render(loaded[1], blocks if clips else text))


def assert_telling(answers: Sequence[Sequence[object]]) -> None:
    """No two are the same, and each says several things."""
    assert all(one != other for one, other in itertools.combinations(answers, 2))
    assert all(len(set(answer)) >= 5 for answer in answers)


@pytest.mark.parametrize("name", CHAT)
def test_chat_models_answer_to_audio_and_text(name: str, tmp_path: Path) -> None:
    """Another clip, none, or another question: another answer."""
    loaded = load(save(name, tmp_path))
    answers = [ask(loaded, clips) for clips in ([RISING], [FALLING], [])]
    assert_telling([*answers, ask(loaded, [RISING], "Who is it?")])


@pytest.mark.parametrize("name", sorted({*CHAT} - ONE_CLIP_ONLY))
def test_some_chat_models_tell_the_order_of_clips(name: str, tmp_path: Path) -> None:
    loaded = load(save(name, tmp_path))
    assert_telling([ask(loaded, clips) for clips in ([RISING, FALLING], [FALLING, RISING], [RISING])])


@pytest.mark.parametrize("name", sorted(ONE_CLIP_ONLY))
def test_other_chat_models_take_one_clip_at_most(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="they must match 1:1"):
        ask(load(save(name, tmp_path)), [RISING, FALLING])


@pytest.mark.parametrize("name", STRING_TEMPLATES)
def test_a_template_for_strings_takes_nothing_else(name: str, tmp_path: Path) -> None:
    """Blocks are an error; with the placeholder in the string the answer depends on the clip."""
    module, processor = load(save(name, tmp_path))
    with pytest.raises(TypeError):
        ask((module, processor), [RISING])
    messages = [{"role": "user", "content": processor.audio_token + QUESTION}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompts = [processor(text=text, audio=[clip], return_tensors="pt") for clip in (RISING, FALLING)]
    assert_telling([answer((module, processor), prompt) for prompt in prompts])


@pytest.mark.parametrize("name", TEXT)
def test_text_models_answer_to_text(name: str, tmp_path: Path) -> None:
    loaded = load(save(name, tmp_path))
    assert_telling([ask(loaded, [], text) for text in (QUESTION, "Who is it?")])


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_answer_to_audio(name: str, tmp_path: Path) -> None:
    module, processor = load(save(name, tmp_path))
    inputs = [processor(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt") for clip in (RISING, FALLING)]
    assert_telling([module.generate(**each, max_new_tokens=16)[0].tolist() for each in inputs])


@pytest.mark.parametrize("name", CTC)
def test_ctc_models_answer_to_audio(name: str, tmp_path: Path) -> None:
    """Another clip, another text; some frames are blank."""
    module, processor = load(save(name, tmp_path))
    inputs = [processor(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt") for clip in (RISING, FALLING)]
    with torch.no_grad():
        ids = [module(**each).logits.argmax(-1) for each in inputs]
    assert_telling([processor.batch_decode(each)[0] for each in ids])
    assert any(module.config.pad_token_id in each for each in ids)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
@pytest.mark.parametrize("name", TRANSDUCERS)
def test_transducers_answer_to_audio(name: str, tmp_path: Path) -> None:
    """Another clip, another text; a step may be blank, and the steps end with the clip."""
    module, processor = load(save(name, tmp_path))
    inputs = [processor(clip, sampling_rate=SAMPLING_RATE) for clip in (RISING, FALLING)]
    outputs = [module.generate(**each) for each in inputs]
    assert_telling([processor.batch_decode(each.sequences, skip_special_tokens=True)[0] for each in outputs])
    for each, output in zip(inputs, outputs, strict=True):
        num_frames = module.get_audio_features(**each).last_hidden_state.shape[1]
        assert output.durations.sum() >= num_frames
    assert any(module.config.blank_token_id in output.sequences[:, 1:] for output in outputs)  # it is first in all


@pytest.mark.parametrize("name", (*CHAT, *STRING_TEMPLATES, *TEXT, *ENCODER_DECODERS, *CTC, *TRANSDUCERS))
def test_the_tokenizer_knows_the_ids_of_the_model(name: str, tmp_path: Path) -> None:
    """All that it can write, and those with a meaning."""
    module, processor = load(save(name, tmp_path))
    tokenizer = getattr(processor, "tokenizer", processor)
    assert len(tokenizer) == module.config.get_text_config(decoder=True).vocab_size
    assert None not in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    if hasattr(processor, "audio_token"):
        assert tokenizer.convert_tokens_to_ids(processor.audio_token) == module.config.audio_token_id
    if name not in CTC and name not in TRANSDUCERS:
        assert tokenizer.eos_token_id == module.generation_config.eos_token_id


@pytest.mark.parametrize("name", ("voxtral", "whisper", "parakeet_tdt"))
def test_a_save_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again = save(name, tmp_path / "first"), save(name, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), state)
    names = sorted(path.name for path in first.iterdir())
    assert all((first / name).read_bytes() == (again / name).read_bytes() for name in names)
