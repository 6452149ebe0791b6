"""What one request does to another: nothing, whatever is wrong with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

from engine import compiled
from engine.caches import PrefixCache
from engine.prompts import Identity
from engine.rows import EngineOptions, RowsFactory
from engine.slots import KeyValues, SlotCache
from errors import BadRequest
from models.base import Prefill, Prompt, Rows, Turn
from models.fake import FakeModel
from tests.support.causal import EngineRun, TinyCausal
from tests.support.tiny_models import build, greedy, sweep
from wire import Job, JobId, Sampling, Structure

CLIP, OTHER = sweep(1.5, 300, 2000), sweep(1.5, 3000, 200)
NEW_TOKENS = 12


def answer(run: EngineRun, name: str, prompt: Prompt, **sampling: object) -> list[int]:
    run.submit(name, prompt, max_tokens=NEW_TOKENS, **sampling)
    run.finish()
    assert not run.failed
    return run.tokens(name)


def expected(model: TinyCausal, prompt: Prompt, name: str) -> list[int]:
    return greedy(build(name), dict(prompt.inputs), NEW_TOKENS)


# ---------------------------------------------------------------------------------------------------- broken arithmetic


def test_logits_that_are_no_numbers_fail_their_own_request(caplog: pytest.LogCaptureFixture) -> None:
    """Greedy or drawn; who shares the step goes on."""
    model = FakeModel()
    model.setup("cpu", "auto")
    run = EngineRun(model, 4)
    for name, order in (("good", "#tokens=20"), ("bad", "#tokens=20 #fail=nan"), ("drawn", "#tokens=20 #fail=nan")):
        (prompt,) = model.prepare((Turn("user", (order,)),))
        run.submit(name, prompt, temperature=1.0 if name == "drawn" else 0.0)
    run.finish()
    assert {name: failed.kind for name, failed in run.failed.items()} == dict.fromkeys(
        ("bad", "drawn"), "InternalError"
    )
    assert run.texts["good", 0] == "abcdefghijklmnopqrst"


def poisoned(values: KeyValues) -> KeyValues:
    return KeyValues(tuple(layer and (layer[0] * torch.nan, layer[1] * torch.nan) for layer in values.layers))


def logits_after_poison(rows: Rows, prefills: list[Prefill], poison: str) -> torch.Tensor:
    """A step of the first prompt beside the second, which has the place of one whose `poison` is no numbers."""
    for prefill in prefills:
        prefill.advance(100)
    first, second = (prefill.state for prefill in prefills)
    rows.insert(first)
    rows.insert(replace(first, **{poison: poisoned(getattr(first, poison))}))
    rows.remove(1)
    rows.insert(second)
    return rows.step([30, 30])


@pytest.mark.parametrize("whole_buffers", [False, True])
def test_a_row_does_not_see_what_its_place_held_before(whole_buffers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked columns count as 0 times what is in them, and 0 times NaN is NaN."""
    monkeypatch.setattr(compiled, "compile_module", lambda module, _: module)
    model = TinyCausal(build("qwen2_text"))
    long, short = model.prompt([], "a very long prompt that comes first, and stays"), model.prompt([], "short")
    rows = RowsFactory(model, EngineOptions(max_rows=4, compiled=whole_buffers)).make()
    prefills = [rows.begin(prompt, ()) for prompt in (long, short)]
    assert logits_after_poison(rows, prefills, "values").isfinite().all()


def test_audio_does_not_see_what_its_place_held_before() -> None:
    """Nor do the positions of the encoder behind a shorter clip."""
    model = TinyCausal(build("moonshine"))
    rows = RowsFactory(model, EngineOptions(max_rows=4)).make()
    prefills = [rows.begin(model.prompt([sweep(seconds, 200, 900)], "x"), (b"",)) for seconds in (2.0, 1.0)]
    assert logits_after_poison(rows, prefills, "cross").isfinite().all()


def test_features_that_are_no_numbers_are_a_400() -> None:
    """Samples of 1e20 are finite, their power is not."""
    model = TinyCausal(build("qwen2_audio"))
    prompt = model.prompt([CLIP], "x")
    inputs = {**prompt.inputs, "input_features": prompt.inputs["input_features"] * torch.inf}
    with pytest.raises(BadRequest, match="samples"):
        EngineRun(model).submit("x", replace(prompt, inputs=inputs))


# ------------------------------------------------------------------------------------------------- refused, alone


def test_whatever_is_raised_before_the_first_token_fails_its_own_request() -> None:
    """Here a prompt without what the module needs."""
    model = TinyCausal(build("qwen2_text"))
    run = EngineRun(model, 4)
    prompt = model.prompt([], "hello there")
    run.submit("good", prompt, max_tokens=NEW_TOKENS)
    run.step()
    run.submit("bad", Prompt({}, 3, 0, 100))
    run.finish()
    assert set(run.failed) == {"bad"}
    assert run.tokens("good") == expected(model, prompt, "qwen2_text")


def test_a_text_that_cannot_be_written_fails_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an answer, too."""
    model = FakeModel()
    model.setup("cpu", "auto")
    run = EngineRun(model, 4)
    for name in ("good", "bad"):
        (prompt,) = model.prepare((Turn("user", ("#tokens=9",)),))
        run.submit(name, prompt)
    run.step()
    run.step()
    broken = next(sequence for sequence in run.engine._scheduler.running if sequence.request.id.key == "bad")
    monkeypatch.setattr(broken.text, "push", lambda *_: 1 / 0)
    run.finish()
    assert run.failed["bad"].kind == "InternalError"
    assert run.texts["good", 0] == "abcdefghi"


@pytest.mark.parametrize(("label", "room"), [("30 " * 80, 1000), ("30 " * 20, 10)])
def test_a_label_that_is_too_long_to_score_is_a_400(label: str, room: int) -> None:
    """For the server, or for the model's window. Without logprobs it need not be scored."""
    model = TinyCausal(build("qwen2_text"))
    requests = EngineRun(model).engine.requests
    structure = Structure("choice", "structured_outputs.choice", choices=(label, "31"))
    job = Job(JobId(0, "x"), (), Sampling(top_logprobs=0), structure=structure)
    prompt = model.prompt([], "hello", max_new_tokens=room)
    with pytest.raises(BadRequest, match="label") as error:
        requests.build(job, [prompt], grammar=object())
    assert error.value.param == "structured_outputs.choice"
    assert requests.build(replace(job, sampling=Sampling()), [prompt], grammar=object()).labels == ()


def test_a_bias_on_a_placeholder_is_a_400_and_none_is_ever_written() -> None:
    """Whatever the model would like to say."""
    model = TinyCausal(build("qwen2_audio"))
    run = EngineRun(model)
    placeholder = model.placeholder_ids[0]
    with pytest.raises(BadRequest, match="stands for audio"):
        run.submit("x", model.prompt([], "hello"), logit_bias=((placeholder, 1.0),))
    logits = torch.zeros(1, model.vocabulary_size)
    logits[0, placeholder] = 50.0
    run.submit("y", model.prompt([], "hello"))
    run.step()
    (chosen,) = run.engine._chooser.choose(logits, run.engine._scheduler.running)
    assert chosen.token != placeholder


def test_ids_that_have_no_logit_are_never_said_and_harm_nobody() -> None:
    """A checkpoint may name a placeholder behind the end of its vocabulary, or none by a number below 0."""
    plain, model = TinyCausal(build("qwen2_audio")), TinyCausal(build("qwen2_audio"))
    outside = (model.vocabulary_size, -1)
    model.placeholder_ids = (*plain.placeholder_ids, *outside)
    model.banned_ids = model.banned_first_ids = outside
    for text in ("hello", "what?"):
        expected = answer(EngineRun(plain), "x", plain.prompt([CLIP], text))
        assert answer(EngineRun(model), "x", model.prompt([CLIP], text)) == expected


def test_a_prompt_that_fills_the_window_is_a_400() -> None:
    """There is no room for an answer."""
    model = TinyCausal(build("qwen2_text"))
    with pytest.raises(BadRequest, match="no room"):
        EngineRun(model).submit("x", model.prompt([], "hello", max_new_tokens=0))


# ---------------------------------------------------------------------------------------------- rows that cannot share


def test_without_a_mask_audio_of_another_length_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder-decoder that takes no mask: one after another each is right; side by side the newcomer fails alone."""
    from engine.encoder_decoder import EncoderDecoderRows

    monkeypatch.setattr(EncoderDecoderRows, "_takes_mask", False)
    model = TinyCausal(build("moonshine"))
    long, short = model.prompt([sweep(2.0, 200, 900)], "x"), model.prompt([sweep(1.0, 200, 900)], "x")
    run = EngineRun(model, 4)
    assert answer(run, "long", long) == expected(model, long, "moonshine")
    assert answer(run, "short", short) == expected(model, short, "moonshine")
    run.submit("first", long, max_tokens=NEW_TOKENS)
    run.step()
    run.submit("second", short, max_tokens=NEW_TOKENS)
    run.finish()
    assert set(run.failed) == {"second"}
    assert run.tokens("first") == expected(model, long, "moonshine")


def test_a_module_that_takes_no_positions_answers_one_request_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    """It would number rows of different lengths alike."""
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = Speech2TextConfig(vocab_size=64, encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
    model = TinyCausal(replace(build("moonshine"), module=Speech2TextForConditionalGeneration(config).eval()))
    factory = RowsFactory(model, EngineOptions(max_rows=8))
    assert (factory.max_rows, bool(factory.reason_for_one_row)) == (1, True)
    assert "takes no decoder_position_ids" in caplog.text


def test_audio_that_no_token_stands_for_is_not_taken_for_another() -> None:
    """A model that forgets to name its placeholders loses reuse, not the right answer."""
    model = TinyCausal(build("qwen2_audio"))
    model.placeholder_ids = ()
    run = EngineRun(model, 2, prefix_cache_mb=100)
    for name, clip in (("one", CLIP), ("other", OTHER)):
        prompt = model.prompt([clip], "what is said here?")
        assert answer(run, name, prompt) == expected(model, prompt, "qwen2_audio")
        assert run.ends[name, 0].usage.cached_tokens == 0


def test_a_module_on_several_devices_is_refused_at_the_load() -> None:
    """All keys and values are on one device. Layers that are only kept elsewhere compute on it, too."""
    model = TinyCausal(build.__wrapped__("qwen2_text"))
    model.module.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match="--device-map spreads the model over several devices"):
        EngineRun(model)
    model.module.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"}
    EngineRun(model)


def test_a_row_with_recurrent_state_may_be_on_several_devices() -> None:
    """Its keys and values are where the module itself puts them."""
    model = TinyCausal(build.__wrapped__("recurrent_text"))
    model.module.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    EngineRun(model)


# ------------------------------------------------------------------------------------------------------------- memory


def test_memory_that_ends_while_rows_are_moved_leaves_them_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is taken before the first one moves."""
    slots = SlotCache(max_rows=4)
    keys = torch.arange(6.0).reshape(1, 1, 6, 1)
    slots.insert(KeyValues(((keys, keys), (keys + 10, keys + 10))))
    before = [buffer.clone() for layer in slots.layers for buffer in layer.buffers]

    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(torch, "empty_like", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        slots._shift(5)
    after = [buffer for layer in slots.layers for buffer in layer.buffers]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_bound_is_known_before_the_first_request_and_after_a_failure() -> None:
    """Measured from what a single token takes."""
    run = EngineRun(TinyCausal(build("qwen2_text")))
    measured = run.engine._scheduler.max_tokens
    assert measured is not None
    assert measured > 1000
    run.engine.reset()
    assert run.engine._scheduler.max_tokens == measured


def windows(model: TinyCausal, count: int, tokens: int) -> list[Prompt]:
    """The prompts of a long recording, each answered with so many tokens."""
    prompts = [model.prompt([sweep(1.0, 200 + 100 * i, 900)], str(i), max_new_tokens=tokens) for i in range(count)]
    return [replace(prompt, lead=" ") for prompt in prompts]


def test_choices_that_run_ahead_do_not_pile_up_prefills() -> None:
    """Of a request with many prompts and choices no more than two are kept, and every choice is right."""
    model = TinyCausal(build("whisper"))
    prompts = windows(model, 6, 3)
    alone = EngineRun(model, 1)
    alone.submit("x", *prompts)
    alone.finish()
    run = EngineRun(model, 1)  # newcomers and those who go on take turns, so the first choice is soon far ahead
    run.submit("x", *prompts, n=4)
    kept = 0
    while not run.engine.idle:
        run.step()
        waiting = [*run.engine._scheduler.waiting, *run.engine._scheduler.resumed, *run.engine._scheduler.running]
        kept = max([kept, *(len(sequence.run.prefills) for sequence in waiting)])
    assert kept == 2
    assert {run.texts["x", choice] for choice in range(4)} == {alone.texts["x", 0]}


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.5}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}]
)
def test_a_window_is_not_penalised_for_what_was_said_in_another(penalty: dict) -> None:
    """Each is answered as it is alone, also by its own prompt's ids."""
    model = TinyCausal(build("whisper"))
    prompts = windows(model, 3, NEW_TOKENS)
    run = EngineRun(model)
    for i, prompt in enumerate(prompts):
        run.submit(str(i), prompt, **penalty)
    run.submit("together", *prompts, **penalty)
    run.finish()
    assert run.tokens("together") == [token for i in range(3) for token in run.tokens(str(i))]


def test_a_row_that_was_set_aside_goes_on_with_its_next_prompt() -> None:
    """And not with what it held then."""
    model = TinyCausal(build("whisper"))

    def texts(**options: object) -> tuple[list[str], int]:
        run = EngineRun(model, 4, **options)
        for i in range(4):
            run.submit(str(i), *windows(model, 3, 30))
        times = 0
        while not run.engine.idle:
            run.step()
            times += len(run.engine._scheduler.aside)
        return [run.texts[str(i), 0] for i in range(4)], times

    (short_of_memory, times), (with_plenty, _) = texts(kv_tokens=2 * 20), texts()
    assert times > 0
    assert short_of_memory == with_plenty


def test_a_prompt_too_large_to_be_kept_does_not_throw_out_its_beginnings() -> None:
    """Or a conversation that has become long would be computed whole each time."""
    cache = PrefixCache(max_bytes=1000)

    def state(tokens: int) -> KeyValues:
        values = torch.zeros(1, 1, tokens, 2)
        return KeyValues(((values, values),))

    def identity(tokens: int) -> Identity:
        return Identity(np.arange(tokens), (), True)

    cache.put(identity(40), state(40))
    cache.put(identity(200), state(200))
    found = cache.longest(identity(300))
    assert found is not None
    assert found.num_tokens == 40


def test_more_shapes_than_are_compiled_for_go_on_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And say so; the answer is the same."""
    monkeypatch.setattr(compiled, "MAX_SHAPES", 1)
    monkeypatch.setattr("engine.slots.FIRST_CAPACITY", 8)
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **_: original(module, backend="eager", dynamic=False))
    torch._dynamo.reset()
    model = TinyCausal(build("qwen2_text"))
    prompt = model.prompt([], "hello")
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):  # puts them back
        run = EngineRun(model, 2, compiled=True)
        assert answer(run, "x", prompt) == expected(model, prompt, "qwen2_text")
    assert "runs uncompiled" in caplog.text
