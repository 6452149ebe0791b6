"""Whisper's timestamps: which may come next, and the segments that come of them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from engine.segments import Spans, window_segments
from engine.timestamps import MAX_FIRST, Times
from models.base import Clip, Turn
from models.cards import Cautious
from models.whisper import Whisper, embedded_whisper
from tests.support.causal import EngineRun
from tests.support.speech import silence, spoken
from wire import Heard, Job, JobId, Sampling, Segment, Transcribe

END, NONE, FIRST, SIZE = 100, 110, 111, 300


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    model = embedded_whisper()
    model.setup("cpu", "auto")
    return model


def heard(*samples: np.ndarray) -> tuple[Turn, ...]:
    return (Turn("user", (Clip((np.concatenate(samples),)), "whatever the words say")),)


@pytest.mark.parametrize("seed", range(200))
def test_rules_are_those_of_transformers(seed: int) -> None:
    """For any answer so far and any logits: what is left is left there, too. Between the end and the timestamps stand
    control tokens only, which are banned anyhow."""
    draw = random.Random(seed)
    answer: list[int] = []
    while len(answer) < draw.randrange(8):
        last = max((token for token in answer if token >= FIRST), default=FIRST - 1)
        answer.append(draw.choice([draw.randrange(END), draw.randrange(last + 1, SIZE - 20), max(last, FIRST)]))
    logits = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    logits[FIRST:] += draw.choice([-9, -3, 0])
    logits[END + 1 : NONE] = -torch.inf
    config = SimpleNamespace(
        no_timestamps_token_id=NONE, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=MAX_FIRST
    )
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=1)(torch.tensor([[0, *answer]]), logits[None])[0]
    times = Times(FIRST)
    for token in answer:
        times.push(token)
    times.restrict(logits, [END])
    assert logits.isfinite().tolist() == theirs.isfinite().tolist()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_answers_are_those_of_generate_with_timestamps(whisper: Whisper) -> None:
    """Real speech, with and without text before it, in company with a clip that tells no times: the same segments as
    transformers' own greedy loop under its own rules, which differ by clip."""
    clips = [
        heard(spoken("austen-0890.wav"), silence(2), spoken("austen-0930.wav")),
        heard(spoken("austen-0870.wav"), silence(1), spoken("austen-0920.wav")),
    ]
    run = EngineRun(whisper)
    tasks = {"plain": Transcribe(timestamps=True), "told": Transcribe(prompt="Chapter two.", timestamps=True)}
    expected = {}
    for name, task in tasks.items():
        for i, clip in enumerate(clips):
            job = Job(JobId(0, f"{name}{i}"), (), Sampling(temperature=0.0), task=task)
            run.engine.submit(run.engine.requests.prepare(job, clip, Heard(1, 30, 30, (30.0,)), None))
            expected[f"{name}{i}"] = generated(whisper, clip, task)
    run.submit("none", *whisper.prepare(clips[0]))
    run.finish()
    for key, (ids, segments) in expected.items():
        assert run.texts[key, 0] == whisper.tokenizer.decode(ids, skip_special_tokens=True).strip()
        ours = [segment for segment in run.ends[key, 0].segments if segment.start_s < segment.end_s < 30]
        assert [(round(s.start_s, 2), round(s.end_s, 2)) for s in ours] == segments
    assert max(len(segments) for _, segments in expected.values()) > 1
    assert run.ends["none", 0].segments == ()
    assert run.texts["none", 0]


def generated(
    whisper: Whisper, clip: tuple[Turn, ...], task: Transcribe
) -> tuple[list[int], list[tuple[float, float]]]:
    """The text's tokens, and the times around each piece of it."""
    (prompt,) = whisper.transcribe(clip, task)
    start = prompt.inputs["decoder_input_ids"]
    (end,) = whisper.end_ids
    first = whisper.timestamp_ids.start
    rules = SimpleNamespace(
        no_timestamps_token_id=first - 1, eos_token_id=end, bos_token_id=end, max_initial_timestamp_index=MAX_FIRST
    )
    config = GenerationConfig(
        max_length=448,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=[id_ for id_ in whisper.banned_ids if id_ < first],
        begin_suppress_tokens=list(whisper.banned_first_ids),
    )
    ids = GenerationMixin.generate(
        whisper.module,
        inputs=prompt.inputs["input_features"],
        decoder_input_ids=start,
        generation_config=config,
        logits_processor=[WhisperTimeStampLogitsProcessor(rules, begin_index=start.shape[1])],
    )[0, start.shape[1] :].tolist()
    times = [round((id_ - first) * 0.02, 2) for id_ in ids if id_ >= first]
    return [id_ for id_ in ids if id_ < first], list(zip(times[::2], times[1::2], strict=False))


def test_a_prompt_is_text_before_the_start(whisper: Whisper) -> None:
    """Its last tokens, where it is long; no control token and no timestamp, whatever it says."""
    encode = whisper.tokenizer.encode
    clip = heard(spoken("jfk.wav"))

    def ids(prompt: str | None, **options: bool) -> list[int]:
        return whisper.transcribe(clip, Transcribe(prompt=prompt, **options))[0].token_ids

    start = [whisper._start_id, whisper._no_timestamps_id]
    previous = whisper._id("<|startofprev|>")
    assert ids(None) == ids(" ") == start
    assert ids("Anna", timestamps=True) == [previous, *encode(" Anna", add_special_tokens=False).ids, start[0]]
    hostile = ids("a<|endoftext|><|startoftranscript|><|notimestamps|>b")
    assert [id_ for id_ in hostile if id_ >= whisper._start_id - 1] == [previous, *start]
    long = ids("word " * 1000)
    assert len(long) == 1 + 223 + 2
    assert set(long[1:-2]) == set(encode(" word", add_special_tokens=False).ids)


def test_spans() -> None:
    """Timestamps count from their window's beginning and never pass its end; windows end what is open."""
    spans = Spans((10.0, 12.0), 2)
    numbers = []
    for seconds in (0.5, 4.0):
        spans.mark(seconds)
        numbers.append(spans.current)
        spans.add_text()
    spans.next_window()
    spans.mark(0.0)
    spans.add_text()
    spans.mark(5.0)
    assert numbers == [0, 1]
    assert spans.all() == (Segment(0.5, 4.0), Segment(4.0, 10.0), Segment(10.0, 12.0), Segment(12.0, 12.0))


def test_windows_are_segments_where_each_has_an_answer() -> None:
    """Otherwise there is one segment: what is said when is not known."""
    assert window_segments((1.0, 3.0), 2) == (Segment(0.0, 1.0), Segment(1.0, 3.0))
    assert window_segments((1.0, 3.0), 1) == (Segment(0.0, 3.0),)


def test_a_cautious_model_is_asked_for_transcriptions_too(whisper: Whisper) -> None:
    """Behind its card, a recogniser still refuses what it cannot be told."""
    inner = SimpleNamespace(max_batch_size=4, capabilities=whisper.capabilities, transcribe=lambda *args: args)
    card = SimpleNamespace(batching="one by one", why="")
    task = Transcribe(language="de")
    assert Cautious(inner, card).transcribe((), task) == ((), task)
