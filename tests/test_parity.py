"""Every kind of model answers in company, token for token, as transformers' own `generate` does with it alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import MoonshineStreamingConfig, MoonshineStreamingForConditionalGeneration

from engine import compiled
from engine.caches import EncoderCache
from engine.request import Label, Request
from models.base import Prompt
from tests.support.causal import EngineRun, TinyCausal
from tests.support.tiny_models import (
    CHAT_MODELS,
    ENCODER_DECODERS,
    END,
    GAIN,
    SPECIAL,
    TEXT_MODELS,
    VOCABULARY,
    TinyModel,
    build,
    greedy,
    sweep,
)
from wire import JobId, Sampling

NEW_TOKENS = 24
CLIPS = [sweep(1.2, 200, 900), sweep(2.1, 1500, 300), sweep(0.7, 500, 4000), sweep(1.7, 3000, 3500)]
TEXTS = ["what is said?", "a much longer question about the sound", "and?", "who speaks", "once more, please: what?"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # transformers' advice on generation settings


@pytest.fixture(autouse=True)
def _small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that slots grow and close up many times."""
    monkeypatch.setattr("engine.slots.FIRST_CAPACITY", 8)


def inputs_of(name: str) -> list[tuple[list[np.ndarray], str]]:
    """Twelve prompts: audio and text mixed for a chat model, clips of all lengths for an encoder-decoder."""
    if name in TEXT_MODELS:
        return [([], f"{TEXTS[i % 5]} {i}") for i in range(12)]
    if name in ENCODER_DECODERS:
        return [([CLIPS[i % 4]], TEXTS[i % 5]) for i in range(12)]
    return [([] if i % 3 == 2 else [CLIPS[i % 4]], f"{TEXTS[i % 5]} {i}") for i in range(12)]


@cache
def reference(name: str) -> list[list[int]]:
    """Each prompt's greedy answer, alone, as far as its end."""
    tiny = build(name)
    answers = [greedy(tiny, tiny.make_inputs(*inputs), NEW_TOKENS) for inputs in inputs_of(name)]
    return [answer[: answer.index(END)] if END in answer else answer for answer in answers]


def answers(name: str, max_rows: int = 5, gap: int = 3, **options: object) -> tuple[list[list[int]], EngineRun]:
    """The same prompts through one engine, one coming every `gap` steps."""
    model = TinyCausal(build(name))
    run = EngineRun(model, max_rows, **options)
    for i, inputs in enumerate(inputs_of(name)):
        run.submit(str(i), model.prompt(*inputs), max_tokens=NEW_TOKENS)
        for _ in range(gap):
            run.step()
    run.finish()
    assert not run.failed
    return [run.tokens(str(i)) for i in range(12)], run


@pytest.mark.parametrize("name", [*CHAT_MODELS, *TEXT_MODELS, *ENCODER_DECODERS])
def test_answers_in_company_are_those_of_generate_alone(name: str) -> None:
    """Staggered arrivals, more requests than rows, audio and text in one step, buffers that grow and close up."""
    expected = reference(name)
    assert len({tuple(answer) for answer in expected}) >= 8, "answers depend on the input"
    assert answers(name)[0] == expected


@pytest.mark.parametrize("prefix_cache_mb", [0, 100])
@pytest.mark.parametrize("name", [*CHAT_MODELS, *ENCODER_DECODERS])
def test_answers_are_the_same_with_caches_on(name: str, prefix_cache_mb: int) -> None:
    """Each prompt twice: encoded audio, and prefixes where they are kept, are taken from the first time."""
    model = TinyCausal(build(name))
    run = EngineRun(model, 5, encoder_cache_mb=100, prefix_cache_mb=prefix_cache_mb)
    for i, inputs in enumerate(inputs_of(name) * 2):
        run.submit(str(i), model.prompt(*inputs), max_tokens=NEW_TOKENS)
        run.step()
    run.finish()
    assert [run.tokens(str(i)) for i in range(24)] == reference(name) * 2
    if not prefix_cache_mb or name in ENCODER_DECODERS:
        assert run.engine._factory._encoder_cache.hits >= 8  # of 8 with audio, and more where a clip came again
    elif name != "qwen2_5_omni":  # multimodal positions: its prompts with audio are computed whole
        again = [i for i in range(12, 24) if len(inputs_of(name)[i - 12][1]) > 16]
        assert all(run.ends[str(i), 0].usage.cached_tokens > 0 for i in again)


def moonshine_streaming() -> TinyModel:
    """Its decoder adds positions to the encoder's output in place, in each call."""
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    sizes = {"hidden_size": 32, "intermediate_size": 64, **heads}
    encoder = {"sliding_windows": ((16, 4), (16, 0)), **sizes}
    config = MoonshineStreamingConfig(encoder_config=encoder, vocab_size=VOCABULARY, **sizes, **SPECIAL)
    moonshine = build("moonshine")
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        module = MoonshineStreamingForConditionalGeneration(config).eval()
        for weight in module.parameters():
            if weight.dim() >= 2:
                weight.mul_(GAIN)
    module.generation_config = moonshine.module.generation_config
    return replace(moonshine, module=module)


def test_a_decoder_that_writes_into_the_encoders_output_is_given_its_own() -> None:
    """Neither other rows nor what is kept for the next question are changed by it."""
    tiny = moonshine_streaming()
    model = TinyCausal(tiny)
    prompts = [model.prompt([CLIPS[i % 4]], TEXTS[i % 5]) for i in range(8)]
    expected = [greedy(tiny, dict(prompt.inputs), NEW_TOKENS) for prompt in prompts]
    run = EngineRun(model, 4, encoder_cache_mb=100)
    for i, prompt in enumerate(prompts * 2):
        run.submit(str(i), prompt, max_tokens=NEW_TOKENS, ignore_eos=True)
        run.step()
    run.finish()
    assert run.engine._factory._encoder_cache.hits == 12
    assert [run.tokens(str(i)) for i in range(16)] == expected * 2
    assert len({tuple(each) for each in expected}) >= 6


@pytest.mark.parametrize("name", ["qwen2_text", "gemma4", "qwen2_audio", "whisper", "moonshine"])
def test_rows_that_are_set_aside_for_memory_go_on_where_they_stopped(name: str) -> None:
    """With memory for little more than one row, every answer comes, and is the same."""
    model = TinyCausal(build(name))
    widest = max(model.prompt(*inputs).num_columns for inputs in inputs_of(name)) + NEW_TOKENS
    together, run = answers(name, kv_tokens=2 * widest + 20, gap=1)
    assert together == reference(name)
    assert run.engine._rows._slots.num_rows * run.engine._rows._slots.capacity <= 2 * widest + 20


@pytest.mark.parametrize("name", ["qwen2_text", "gemma4", "qwen2_5_omni"])
def test_a_text_prompt_in_pieces_is_answered_as_in_one(name: str) -> None:
    """Pieces of 5 tokens, while others run."""
    assert answers(name, prefill_tokens=5, gap=9)[0] == reference(name)


@pytest.mark.parametrize("name", ["qwen2_text", "qwen2_audio", "gemma4", "qwen2_5_omni"])
def test_compiled_steps_keep_their_shapes_and_answer_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows come and go, and only buffers that grew are compiled anew. The backend counts, and runs what it gets."""
    counter = CompileCounter()
    monkeypatch.setattr("engine.slots.FIRST_CAPACITY", 64)
    monkeypatch.setattr(
        compiled, "compile_module", lambda module, _: torch.compile(module, backend=counter, dynamic=False)
    )
    torch._dynamo.reset()
    together, run = answers(name, max_rows=4, compiled=True)
    assert together == reference(name)
    graphs = counter.frame_count
    assert graphs == run.engine._rows._slots.generation
    model = TinyCausal(build(name))
    for i in range(6):
        run.submit(f"again{i}", model.prompt([], TEXTS[i % 5]), max_tokens=4)
        run.step()
    run.finish()
    assert counter.frame_count == graphs


def test_a_module_that_cannot_be_compiled_runs_uncompiled_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost by it."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compiled, "compile_module", lambda *_: refuse)
    assert answers("qwen2_text", compiled=True)[0] == reference("qwen2_text")
    assert caplog.text.count("runs uncompiled") == 1


def test_a_model_with_recurrent_state_answers_one_at_a_time_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Rows cannot share such state; the answers are right all the same."""
    together, run = answers("recurrent_text", max_rows=8)
    assert together == reference("recurrent_text")
    assert run.engine.batching[0] == "serial"
    assert "one request at a time" in caplog.text


@pytest.mark.parametrize("name", ["qwen2_audio", "voxtral", "granite_speech", "gemma4"])
def test_a_second_clip_is_encoded_alone_behind_a_known_first(name: str) -> None:
    """A conversation that goes on with another clip computes only what is new."""
    tiny = build(name)
    model = TinyCausal(tiny)
    one, other = CLIPS[1], CLIPS[1][::-1].copy()  # of one length, so none is padded to the other's
    first, follow = model.prompt([one], "what is said?"), model.prompt([one, other], "what is said?")
    expected = greedy(tiny, dict(follow.inputs), NEW_TOKENS)
    run = EngineRun(model, 2, prefix_cache_mb=100)
    run.submit("first", first, max_tokens=2)
    run.finish()
    run.submit("follow", follow, max_tokens=NEW_TOKENS)
    run.finish()
    assert run.ends["follow", 0].usage.cached_tokens >= first.token_ids.count(tiny.audio_token_ids[0])
    assert run.tokens("follow") == (expected[: expected.index(END)] if END in expected else expected)


def test_a_clip_is_heard_behind_a_known_text() -> None:
    """A long system prompt is computed once; the audio behind it is another one each time."""
    tiny = build("qwen2_audio")
    model = TinyCausal(tiny)
    run = EngineRun(model, 2, prefix_cache_mb=100)
    for i, clip in enumerate(CLIPS[:2]):
        inputs = model.prompt([clip], "what?").inputs
        begin, rest = inputs["input_ids"][:, :1], inputs["input_ids"][:, 1:]
        ids = torch.cat([begin, torch.arange(50, 80)[None], rest], dim=1)
        inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        run.submit(str(i), Prompt(inputs, ids.shape[1], 0, 1000), max_tokens=NEW_TOKENS)
        run.finish()
        assert run.ends[str(i), 0].usage.cached_tokens == (32 if i else 0)  # as far as the mark before the audio
        expected = greedy(tiny, inputs, NEW_TOKENS)
        assert run.tokens(str(i)) == (expected[: expected.index(END)] if END in expected else expected)


def test_the_same_audio_is_encoded_once() -> None:
    """Questions about one clip share its encoding, whoever asks; another clip does not."""
    model = TinyCausal(build("qwen2_audio"))
    run = EngineRun(model, 4, encoder_cache_mb=100)
    for i in range(6):
        run.submit(str(i), model.prompt([CLIPS[i % 2]], TEXTS[i % 5]), max_tokens=3, n=2)
    run.finish()
    cache: EncoderCache = run.engine._factory._encoder_cache
    assert (cache.misses, cache.hits) == (2, 4)


def test_caches_keep_to_their_bounds() -> None:
    """The oldest goes first, and what is larger than the whole is not kept."""
    model = TinyCausal(build("qwen2_audio"))
    run = EngineRun(model, 4, encoder_cache_mb=1, prefix_cache_mb=1)
    for i in range(12):
        run.submit(str(i), model.prompt([sweep(0.5 + i / 10, 300, 900)], "what?"), max_tokens=2)
    run.finish()
    factory = run.engine._factory
    assert 0 < factory._encoder_cache._outputs.num_bytes <= 1_000_000
    assert 0 < factory._prefix_cache._states.num_bytes <= 1_000_000


@pytest.mark.parametrize("name", ["qwen2_audio", "qwen2_text", "whisper"])
def test_seeded_answers_are_the_same_alone_in_company_and_after_a_restart(name: str) -> None:
    """In a batch of eight, in any order, with an engine of its own."""
    model = TinyCausal(build(name))
    prompts = [model.prompt(*inputs) for inputs in inputs_of(name)[:8]]
    alone = []
    for i, prompt in enumerate(prompts):
        run = EngineRun(model, 1)
        run.submit(str(i), prompt, max_tokens=NEW_TOKENS, seed=i, temperature=1.0, top_p=0.9)
        run.finish()
        alone.append(run.tokens(str(i)))
    for order in (range(8), reversed(range(8))):
        run = EngineRun(model, 8)
        for i in order:
            run.submit(str(i), prompts[i], max_tokens=NEW_TOKENS, seed=i, temperature=1.0, top_p=0.9)
        run.finish()
        assert [run.tokens(str(i)) for i in range(8)] == alone
    assert len({tuple(answer) for answer in alone}) == 8


@pytest.mark.parametrize(
    "name", ["qwen2_text", "qwen2_audio", "qwen2_5_omni", "gemma4", "recurrent_text", "whisper", "moonshine"]
)
def test_labels_are_as_likely_as_the_module_says(name: str) -> None:
    """Scored side by side behind a shared prompt, as in one pass over prompt and label."""
    tiny = build(name)
    model = TinyCausal(tiny)
    prompt = model.prompt(*inputs_of(name)[0])
    labels = [(30, 40, 50), (31,), (30, 41), (60, 61, 62, 63)]
    run = EngineRun(model, 2)
    asked = tuple(Label(str(label), label) for label in labels)
    run.engine.submit(Request(JobId(0, "x"), [prompt], Sampling(max_tokens=1), labels=asked))
    run.finish()
    ids = "decoder_input_ids" if name in ENCODER_DECODERS else "input_ids"
    scores = [whole_pass(tiny, dict(prompt.inputs), ids, label) for label in labels]
    expected = torch.tensor(scores).softmax(0).tolist()
    assert [share for _, share in run.ends["x", 0].labels] == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def whole_pass(tiny: TinyModel, inputs: dict[str, torch.Tensor], ids: str, label: tuple[int, ...]) -> float:
    """The log-probability of a label's tokens after a prompt, by one call of the module."""
    length = inputs[ids].shape[1]
    inputs[ids] = torch.cat([inputs[ids], torch.tensor([label])], dim=1)
    if ids == "input_ids":
        inputs["attention_mask"] = torch.ones_like(inputs[ids])
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(label)))
    logprobs = tiny.module(**inputs).logits[0].double().log_softmax(-1)
    return float(sum(logprobs[length - 1 + i, token] for i, token in enumerate(label)))


def test_choices_of_a_model_with_recurrent_state_are_drawn_one_after_another() -> None:
    """From one prefill, which the first choice must not use up."""
    model = TinyCausal(build("recurrent_text"))
    run = EngineRun(model, 4)
    run.submit("x", model.prompt([], "hello"), n=2, max_tokens=8)
    run.finish()
    assert run.texts["x", 0] == run.texts["x", 1]


def test_choices_share_one_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """n choices are drawn from one computation of the prompt, also where there are fewer rows than choices."""
    model = TinyCausal(build("qwen2_audio"))
    prefills = []
    original = model.module.model.audio_tower.forward
    monkeypatch.setattr(
        model.module.model.audio_tower, "forward", lambda *a, **k: (prefills.append(1), original(*a, **k))[1]
    )
    run = EngineRun(model, 2)
    run.submit("x", model.prompt([CLIPS[0]], "what?"), max_tokens=9, n=5, seed=1, temperature=1.0)
    run.finish()
    assert len(prefills) == 1
    assert len({run.texts["x", choice] for choice in range(5)}) == 5
    assert all(
        run.ends["x", choice].usage.completion_tokens == 9 for choice in range(5) if END not in run.tokens("x", choice)
    )


def test_the_loss_of_one_row_does_not_touch_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that the module refuses, and one for which memory ends, fail alone."""
    model = TinyCausal(build("qwen2_audio"))
    run = EngineRun(model, 4)
    run.submit("good", model.prompt([CLIPS[0]], TEXTS[0] + " 0"), max_tokens=NEW_TOKENS)
    run.step()
    bad = model.prompt([CLIPS[1]], "bad")
    broken = {**bad.inputs, "input_features": bad.inputs["input_features"][:, :, :100]}
    run.submit("bad", Prompt(broken, bad.num_tokens, 0, 100), n=3)

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("none left")

    run.step()
    with monkeypatch.context() as patch:
        patch.setattr(run.engine._rows._slots, "insert", no_memory)
        run.submit("large", model.prompt([CLIPS[2]], "large"))
        run.step()
    run.finish()
    assert set(run.failed) == {"bad", "large"}
    assert run.tokens("good") == reference("qwen2_audio")[0]


@pytest.mark.parametrize("name", ["qwen2_text", "qwen2_audio"])
def test_a_burst_of_prompts_stalls_running_answers_by_one_piece_each_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two decode steps there is one prompt with audio, or 8 tokens of text, at the most."""
    model = TinyCausal(build(name))
    calls: list[int] = []  # tokens in each call of the module; those of a decode step are negative
    original = model.module.forward

    def spy(**inputs: torch.Tensor) -> object:
        width = inputs["input_ids"].shape[1]
        calls.append(-1 if "attention_mask" in inputs and width == 1 and running else width)
        return original(**inputs)

    running = False
    run = EngineRun(model, 8, prefill_tokens=8)
    run.submit("first", model.prompt([], "x"), max_tokens=100, ignore_eos=True)
    run.step()
    running = True
    monkeypatch.setattr(run.engine._rows, "_module", _Spied(model.module, spy))
    for i in range(4):
        clips = [CLIPS[i]] if name == "qwen2_audio" and i % 2 else []
        run.submit(str(i), model.prompt(clips, TEXTS[1] + str(i)), max_tokens=3)
    run.finish()
    between = "".join("d" if width < 0 else "p" for width in calls)
    assert "pp" not in between
    assert max(width for width in calls if width > 0) <= (8 if name == "qwen2_text" else 200)
    assert sum(width for width in calls if width > 0) >= sum(len(TEXTS[1]) for _ in range(4))


class _Spied:
    """A module whose calls are seen."""

    def __init__(self, module: torch.nn.Module, spy: object) -> None:
        self._module, self._spy = module, spy

    def __call__(self, **inputs: object) -> object:
        return self._spy(**inputs)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def test_each_row_goes_on_at_its_own_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a module counts a prompt's positions otherwise than its tokens, also after rows have moved."""
    model = TinyCausal(build("qwen2_5_omni"))
    rows = EngineRun(model, 4).engine._rows
    for offset in (5, 7, 9):
        prompt = model.prompt([], "x" * offset)
        prefill = rows.begin(prompt, ())
        prefill.advance(100)
        rows.insert(replace(prefill.state, offset=offset))
    rows.remove(0)
    seen = []
    original = rows.forward
    monkeypatch.setattr(rows, "forward", lambda *args: (seen.append(args[2]), original(*args))[1])
    rows.step([20, 21])
    assert seen[0].tolist() == [[1 + 9 + 9], [1 + 7 + 7]]  # the first token, the text, the offset
