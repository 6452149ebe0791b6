"""The embedded model: real weights in transformers' own module, the same answers as `generate()` gives."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin, WhisperFeatureExtractor

from audio.decode import DecodeLimits, decode_file, read_waveform
from engine.encoder_decoder import EncoderDecoderRows
from engine.prompts import audio_keys
from engine.rows import EngineOptions, RowsFactory
from errors import BadRequest
from models.base import Clip, Prompt, Turn
from models.whisper import MODEL_BIN_SHA256, WINDOW_S, Whisper, embedded_whisper, log_mel
from tests.support.causal import EngineRun
from tests.support.speech import CLIPS, DATA
from wire import Job, JobId, Sampling, Structure

LIMITS = DecodeLimits(100, 1 << 28, 5, 1)
NAMES = [clip.name for clip in CLIPS]


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    model = embedded_whisper()
    model.setup("cpu", "auto")
    return model


def waveform(name: str, directory: Path) -> np.ndarray:
    (directory / "out").write_bytes(b"")
    decode_file(str(DATA / name), str(directory / "out"), 16_000, LIMITS)
    return read_waveform(str(directory / "out"))


def transcribe(model: Whisper, waveforms: list[np.ndarray], max_rows: int = 16, **sampling: object) -> list[str]:
    """All at once through an engine of their own."""
    run = EngineRun(model, max_rows, encoder_cache_mb=50)
    for i, samples in enumerate(waveforms):
        run.submit(str(i), *model.prepare((Turn("user", (Clip((samples,)),)),)), **sampling)
    run.finish()
    return [run.texts[str(i), 0] for i in range(len(waveforms))]


def generate(model: Whisper, samples: np.ndarray) -> str:
    """transformers' own greedy loop on the same module, one clip alone."""
    (prompt,) = model.prepare((Turn("user", (Clip((samples,)),)),))
    (end,) = model.end_ids
    config = GenerationConfig(
        max_length=448,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=list(model.banned_ids),
        begin_suppress_tokens=list(model.banned_first_ids),
    )
    ids = GenerationMixin.generate(
        model.module,
        inputs=prompt.inputs["input_features"],
        decoder_input_ids=prompt.inputs["decoder_input_ids"],
        generation_config=config,
    )
    return model.tokenizer.decode(ids[0].tolist(), skip_special_tokens=True).strip()


def test_log_mel_is_that_of_transformers(tmp_path: Path, whisper: Whisper) -> None:
    """To the rounding of float32."""
    extractor = WhisperFeatureExtractor()
    for name in ("jfk.wav", "cv-en-no.mp3"):
        samples = waveform(name, tmp_path)
        expected = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features[0]
        ours = log_mel(torch.from_numpy(samples), whisper._mel_filters)
        assert ours.shape == expected.shape
        assert torch.allclose(ours, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers' advice on generation settings
def test_batched_answers_are_those_of_generate_alone(tmp_path: Path, whisper: Whisper) -> None:
    """All clips at once, joining and leaving at different steps, word for word; in few rows and in many."""
    waveforms = [waveform(name, tmp_path) for name in NAMES]
    alone = [generate(whisper, samples) for samples in waveforms]
    assert transcribe(whisper, waveforms, max_rows=16) == alone
    assert transcribe(whisper, waveforms[:6], max_rows=3) == alone[:6]


def with_text_before(whisper: Whisper, prompt: Prompt, text: str) -> Prompt:
    """A longer prompt, as Whisper takes it: what was said before, then the start."""
    before = [whisper._id("<|startofprev|>"), *whisper.tokenizer.encode(text, add_special_tokens=False).ids]
    ids = torch.cat([torch.tensor([before]), prompt.inputs["decoder_input_ids"]], dim=1)
    return replace(prompt, inputs={**prompt.inputs, "decoder_input_ids": ids})


def test_slots_grow_shift_and_close_holes_exactly(whisper: Whisper, tmp_path: Path, monkeypatch) -> None:
    """With tiny buffers, rows that come late and leave early, every logit is that of the row alone."""
    monkeypatch.setattr("engine.slots.FIRST_CAPACITY", 4)
    prompts = [
        whisper.prepare((Turn("user", (Clip((waveform(name, tmp_path),)),)),))[0] for name in ("jfk.wav", *NAMES[6:9])
    ]
    prompts[2] = with_text_before(whisper, prompts[2], " The gentle reader will remember what was said before.")
    factory = RowsFactory(whisper, EngineOptions(max_rows=8))
    rows = factory.make()
    assert isinstance(rows, EncoderDecoderRows)
    prefills = [rows.begin(prompt, audio_keys(prompt)) for prompt in prompts]
    for prefill in prefills:
        prefill.advance(100)
    alone = [factory.make() for _ in prompts]
    for i, prefill in enumerate(prefills):
        alone[i].insert(prefill.state)
    live: list[int] = []
    tokens = {i: int(prefill.logits[-1].argmax()) for i, prefill in enumerate(prefills)}
    joins = {0: 0, 2: 1, 3: 2, 9: 3}
    leaves = {6: 1, 12: 0, 20: 3}
    for step in range(40):
        if step in joins:
            rows.insert(prefills[joins[step]].state)
            live.append(joins[step])
        if step in leaves:
            at = live.index(leaves[step])
            rows.remove(at)
            live[at] = live[-1]
            live.pop()
        together = rows.step([tokens[i] for i in live])
        for row, i in enumerate(live):
            expected = alone[i].step([tokens[i]])[0]
            assert torch.allclose(together[row], expected, atol=1e-3), f"step {step}, prompt {i}"
            tokens[i] = int(expected.argmax())
    assert rows._slots.capacity > 4


@pytest.mark.parametrize("level", [0.0, 0.001, 0.01, 0.1])
def test_silence_and_noise_are_answered_with_nothing(whisper: Whisper, level: float) -> None:
    """Whisper alone would say "you"."""
    noise = np.random.default_rng(0).standard_normal(80_000).astype(np.float32) * np.float32(level)
    assert transcribe(whisper, [noise]) == [""]


def test_a_structure_is_kept_in_silence_too(whisper: Whisper) -> None:
    """Who asks for yes or no gets one of them."""
    run = EngineRun(whisper)
    (prompt,) = whisper.prepare((Turn("user", (Clip((np.zeros(16_000, np.float32),)),)),))
    structure = Structure("choice", "structured_outputs.choice", choices=("yes", "no"))
    run.submit("x", prompt, job=Job(JobId(0, "x"), (), Sampling(), structure=structure))
    run.finish()
    assert run.texts["x", 0] in ("yes", "no")


def test_hushed_and_noisy_speech_is_heard(whisper: Whisper, tmp_path: Path) -> None:
    """The check for speech drops none."""
    jfk = waveform("jfk.wav", tmp_path)
    noise = np.random.default_rng(1).standard_normal(len(jfk)).astype(np.float32)
    quiet, noisy, late = transcribe(
        whisper, [jfk * np.float32(0.001), jfk + noise * np.float32(0.02), np.append(np.zeros(16_000 * 15, "f"), jfk)]
    )
    assert all("what your country can do for you" in text for text in (quiet, noisy, late))


def test_max_tokens_and_window(whisper: Whisper, tmp_path: Path) -> None:
    """A prompt leaves room for an answer of 446 tokens, and tells how many tokens stand for audio."""
    (prompt,) = whisper.prepare((Turn("user", (Clip((waveform("jfk.wav", tmp_path),)),)),))
    assert (prompt.num_tokens, prompt.num_audio_tokens, prompt.max_new_tokens) == (552, 550, 446)
    assert transcribe(whisper, [waveform("jfk.wav", tmp_path)], max_tokens=3) == ["And so my"]


def test_a_conversation_without_audio_is_refused(whisper: Whisper) -> None:
    """There is nothing to transcribe."""
    with pytest.raises(BadRequest, match="no audio"):
        whisper.prepare((Turn("user", ("What do you hear?",)),))


def test_wrong_or_missing_weights_say_what_to_do(whisper: Whisper, tmp_path: Path) -> None:
    """Another file under the same name is not loaded."""
    shutil.copytree(whisper._directory, tmp_path / "model")
    with (tmp_path / "model" / "model.bin").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\0\1\2\3")
    with pytest.raises(ValueError, match="pip install"):
        Whisper(tmp_path / "model", MODEL_BIN_SHA256).setup("cpu", "auto")
    (tmp_path / "model" / "model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="--model"):
        Whisper(tmp_path / "model", MODEL_BIN_SHA256).setup("cpu", "auto")


def test_the_window_is_whispers(whisper: Whisper) -> None:
    """What the capabilities promise is what the front end takes."""
    assert whisper.capabilities.max_seconds_per_window == WINDOW_S
    assert log_mel(torch.zeros(WINDOW_S * 16_000), whisper._mel_filters).shape == (80, 3000)
