"""Measures the engine alone, on a model with random weights, against the module's own `generate`.

    engine      the requests in rows, driven as the worker drives it: admit, decode, admit, decode ...
    one by one  `generate` of one prompt after the other
    static      `generate` of a left-padded batch, which runs until its longest answer is complete

The three take turns, so that what else the machine does hits all of them. Seconds mean little on another machine,
ratios more. Knows nothing of HTTP and workers, and of no real model.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models

from benchmarks.results import RESULTS, Spread, filled, machine, sections, table, write_section
from engine.engine import Engine, EngineEvent
from engine.request import Request
from engine.rows import EngineOptions
from models.base import CausalModel, Conversation, Prompt
from wire import Capabilities, Delta, Failed, Job, JobId, Sampling

SAMPLING_RATE = 16_000
MEL_BINS = 128
WINDOW_S = 2  # what the audio tower hears at once
CLIP_S = (1.0, 2.0)
TEXT_TOKENS = (8, 24)

PAD, END, BEGIN, BEGIN_AUDIO, AUDIO = range(5)
FIRST_WORD = 16
VOCABULARY = 16_000
BLANK = "Ġ"  # as byte-level vocabularies write it
SPECIAL = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
ATTENTION = {"num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2}
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 2048, **ATTENTION, **SPECIAL}
TOWER = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}

# What random matrices are multiplied by, so that answers depend on what was heard. The head's gain makes distributions
# as narrow as a trained model's.
GAIN = 4.0
HEAD_GAIN = 3.0

GREEDY = Sampling(temperature=0.0)
SAMPLED = Sampling(temperature=1.0, top_p=0.9, seed=0)
PENALISED = replace(SAMPLED, presence_penalty=0.2, frequency_penalty=0.2, repetition_penalty=1.1, top_logprobs=5)
SAMPLINGS = {"greedy": GREEDY, "temperature 1, top_p 0.9": SAMPLED, "penalties and 5 logprobs, too": PENALISED}

OVERHEAD_HEADER = ("sampling", "rows", "step, ms", "forward, ms", "the rest, ms", "share of the step")

# The plan's aims: of a greedy step; in decode; and for answers of mixed lengths.
AIM_OVERHEAD_ROWS, MAX_OVERHEAD = 32, 0.03
AIM_ROWS, MIN_TO_ONE_BY_ONE = 16, 4.0
MIN_TO_STATIC = 1.5


@dataclass(frozen=True)
class Scale:
    """How much is measured. `alone`: how many requests also run one by one; their tokens a second stand for all."""

    repeats: int
    alone: int
    rows: tuple[int, ...]
    new_tokens: int
    overhead_rows: tuple[int, ...]
    overhead_steps: int
    load_requests: int
    load_rows: int
    load_tokens: tuple[int, int]


FULL = Scale(3, 3, (1, 4, 8, 16, 32), 64, (1, 8, 32), 48, 64, 16, (8, 256))
QUICK = Scale(1, 1, (1, 4), 8, (1, 4), 4, 8, 4, (2, 12))


# ------------------------------------------------------------------------------------------------------------ the model


class RandomModel(CausalModel):
    """Qwen2-Audio's shape, small, with random weights that are the same in each run. Token 17 is written " 17"."""

    capabilities = Capabilities(SAMPLING_RATE, None, "error", "continuous")
    end_ids = frozenset({END})
    placeholder_ids = (AUDIO,)

    def setup(self, device: str, dtype: str) -> None:
        self.module = _module().to(device, getattr(torch, dtype))
        self.tokenizer = Tokenizer(models.BPE({f"{BLANK}{i}": i for i in range(VOCABULARY)}, []))
        self.tokenizer.decoder = decoders.ByteLevel()
        self._extract = transformers.WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_S)

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        raise NotImplementedError("prompts are made of numbers here, see `prompt`")

    def prompt(self, number: int) -> Prompt:
        """Some audio and some text, other ones for each number."""
        draw = random.Random(number)  # noqa: S311 -- no secret
        features = self._extract(
            [_clip(draw)], sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt"
        )
        frames = int(features.attention_mask.sum())
        num_audio = ((frames - 1) // 2 + 1 - 2) // 2 + 1  # as in Qwen2-Audio's processor
        words = [draw.randrange(FIRST_WORD, VOCABULARY) for _ in range(draw.randint(*TEXT_TOKENS))]
        ids = torch.tensor([[BEGIN, BEGIN_AUDIO, *[AUDIO] * num_audio, *words]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "input_features": features.input_features}
        inputs["feature_attention_mask"] = features.attention_mask
        return Prompt(inputs, ids.shape[1], num_audio, max_new_tokens=1000)


def _module() -> Any:
    config = transformers.Qwen2AudioConfig(
        audio_token_index=AUDIO,
        audio_config={"model_type": "qwen2_audio_encoder", "max_source_positions": WINDOW_S * 50, **TOWER},
        text_config={"model_type": "qwen2", **TEXT},
    )
    torch.manual_seed(0)
    module = transformers.Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() >= 2 and weight.requires_grad:  # the others are sinusoids
                weight.mul_(GAIN)
        module.lm_head.weight.mul_(HEAD_GAIN)
        module.lm_head.weight[:FIRST_WORD] = 0  # so that neither an end nor a placeholder is ever the likeliest
    module.generation_config = transformers.GenerationConfig(pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=None)
    return module


def _clip(draw: random.Random) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A tone that glides."""
    hz = np.linspace(draw.uniform(100, 400), draw.uniform(500, 3000), round(draw.uniform(*CLIP_S) * SAMPLING_RATE))
    return (0.3 * np.sin(2 * np.pi * np.cumsum(hz) / SAMPLING_RATE)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Forward:
    """One call of the module, with so many rows."""

    rows: int
    begin_s: float
    end_s: float


class ForwardClock:
    """Stands before a module's `forward` and notes its calls; it takes less than a microsecond itself."""

    def __init__(self, module: Any) -> None:
        self.calls: list[Forward] = []
        forward = module.forward

        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin_s = perf_counter()
            output = forward(*args, **kwargs)
            self.calls.append(Forward(len(kwargs["input_ids"]), begin_s, perf_counter()))
            return output

        module.forward = timed


@dataclass(frozen=True)
class Step:
    """One decode step of the engine: the whole of it, and the part inside the module's `forward`."""

    rows: int
    duration_s: float
    forward_s: float


@dataclass
class Run:
    """Answers by request, and the time they took. In `decode_s`, `decode_tokens` of them were decoded, with all rows in
    use; it leaves prefills out."""

    answers: dict[int, list[int]] = field(default_factory=dict)
    duration_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    steps: list[Step] = field(default_factory=list)  # the engine's with all rows in use

    @property
    def decode_rate(self) -> float:
        """Tokens a second."""
        return self.decode_tokens / self.decode_s

    @property
    def rate(self) -> float:
        """Tokens a second, prefills and all."""
        return sum(map(len, self.answers.values())) / self.duration_s

    @property
    def step_ms(self) -> float:
        return 1000 * sum(step.duration_s for step in self.steps) / len(self.steps)

    @property
    def forward_ms(self) -> float:
        return 1000 * sum(step.forward_s for step in self.steps) / len(self.steps)


class Bench:
    """The model, and the three ways to run it. `lengths`: how many tokens each request is to be given."""

    def __init__(self) -> None:
        self.model = RandomModel()
        self.model.setup("cpu", "float32")
        self._module: Any = self.model.module
        self._clock = ForwardClock(self._module)
        self._prompt = functools.cache(self.model.prompt)
        self._engine = functools.cache(lambda rows: Engine(self.model, EngineOptions(max_rows=rows)))

    def run_engine(self, rows: int, lengths: Sequence[int], sampling: Sampling) -> Run:
        """All requests are there at once. What other threads do, checking and hashing them, is not counted."""
        engine = self._engine(rows)
        requests = [
            self._request(engine, number, replace(sampling, max_tokens=length, ignore_eos=True))
            for number, length in enumerate(lengths)
        ]
        texts = ["" for _ in lengths]
        steps: list[Step] = []
        begin_s = perf_counter()
        for request in requests:
            engine.submit(request)
        while not engine.idle:
            for event in (*engine.admit(), *self._decode(engine, steps)):
                assert not isinstance(event, Failed), event
                if isinstance(event, Delta):
                    texts[int(event.job_id.key)] += event.text
        duration_s = perf_counter() - begin_s
        full = [step for step in steps if step.rows == rows]
        answers = {number: [int(word) for word in text.split()] for number, text in enumerate(texts)}
        return Run(answers, duration_s, rows * len(full), sum(step.duration_s for step in full), full)

    def _request(self, engine: Engine, number: int, sampling: Sampling) -> Request:
        return engine.requests.build(Job(JobId(0, str(number)), (), sampling), [self._prompt(number)])

    def _decode(self, engine: Engine, steps: list[Step]) -> Sequence[EngineEvent]:
        calls_before = len(self._clock.calls)
        begin_s = perf_counter()
        events = engine.decode()
        duration_s = perf_counter() - begin_s
        calls = self._clock.calls[calls_before:]  # none where no row is in use
        steps += [Step(call.rows, duration_s, call.end_s - call.begin_s) for call in calls]
        return events

    def run_static(self, rows: int, lengths: Sequence[int]) -> Run:
        """Batches in the order of arrival; one row is one by one. What an answer has beyond its length is dropped."""
        run = Run()
        for first in range(0, len(lengths), rows):
            self._generate(run, range(first, min(first + rows, len(lengths))), lengths[first : first + rows])
        return run

    def _generate(self, run: Run, numbers: Sequence[int], lengths: Sequence[int]) -> None:
        inputs = _batched([self._prompt(number) for number in numbers])
        first_call = len(self._clock.calls)
        begin_s = perf_counter()
        output = self._module.generate(**inputs, max_new_tokens=max(lengths), do_sample=False)
        end_s = perf_counter()
        answers = output[:, inputs["input_ids"].shape[1] :].tolist()
        run.answers |= {number: ids[:length] for number, ids, length in zip(numbers, answers, lengths, strict=True)}
        run.duration_s += end_s - begin_s
        run.decode_s += end_s - self._clock.calls[first_call].end_s
        run.decode_tokens += sum(length - 1 for length in lengths)  # the first comes from the prefill


def _batched(prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """One batch of them, padded on the left as transformers' processors do."""
    width = max(prompt.num_tokens for prompt in prompts)
    batch = {}
    for name in prompts[0].inputs:
        rows = [prompt.inputs[name] for prompt in prompts]
        if name in ("input_ids", "attention_mask"):
            rows = [torch.nn.functional.pad(row, (width - row.shape[1], 0), value=PAD) for row in rows]  # PAD is 0
        batch[name] = torch.cat(rows)
    return batch


# ----------------------------------------------------------------------------------------------------- what is measured


@dataclass
class Comparison:
    """How many answers of the engine were those of `generate`, token for token."""

    to: str
    equal: int = 0
    compared: int = 0

    def add(self, run: Run, other: Run) -> None:
        both = run.answers.keys() & other.answers.keys()
        self.compared += len(both)
        self.equal += sum(run.answers[number] == other.answers[number] for number in both)

    def __str__(self) -> str:
        return f"{self.equal} of {self.compared} of the engine's answers were those of {self.to}, token for token."


@dataclass
class Rounds:
    """The same requests run in the three ways in turn, some times. One by one runs but the first of them."""

    engine: list[Run] = field(default_factory=list)
    one_by_one: list[Run] = field(default_factory=list)
    static: list[Run] = field(default_factory=list)

    def rates(self, rate: Callable[[Run], float]) -> Rates:
        """Tokens a second, as `rate` tells them."""
        engine, one_by_one, static = ([rate(r) for r in runs] for runs in (self.engine, self.one_by_one, self.static))
        return Rates(
            Spread.of(engine),
            Spread.of(one_by_one),
            Spread.of(static),
            Spread.of([ours / theirs for ours, theirs in zip(engine, one_by_one, strict=True)]),
            Spread.of([ours / theirs for ours, theirs in zip(engine, static, strict=True)]),
        )


@dataclass(frozen=True)
class Rates:
    """Tokens a second, and the engine's in relation to the others of the same round."""

    engine: Spread
    one_by_one: Spread
    static: Spread
    to_one_by_one: Spread
    to_static: Spread

    @staticmethod
    def table(by_rows: dict[int, Rates]) -> str:
        header = ("rows", "engine", "one by one", "static", "engine / one by one", "engine / static")
        return table(header, [(str(rows), *rates.cells()) for rows, rates in by_rows.items()])

    def cells(self) -> tuple[str, ...]:
        rates = (self.engine, self.one_by_one, self.static)
        return (*(r.text() for r in rates), self.to_one_by_one.text(2, "x"), self.to_static.text(2, "x"))


@dataclass(frozen=True)
class Overhead:
    """A step's time, its part inside the module, the rest, and the rest's share of the step."""

    step_ms: Spread
    forward_ms: Spread
    rest_ms: Spread
    share: Spread

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Overhead:
        rests = [run.step_ms - run.forward_ms for run in runs]
        shares = [rest / run.step_ms for rest, run in zip(rests, runs, strict=True)]
        steps, forwards = [run.step_ms for run in runs], [run.forward_ms for run in runs]
        return cls(Spread.of(steps), Spread.of(forwards), Spread.of(rests), Spread.of(shares))

    def cells(self) -> tuple[str, ...]:
        times = (self.step_ms.text(1), self.forward_ms.text(1), self.rest_ms.text(2))
        return (*times, self.share.scaled(100).text(1, " %"))


class Measurement:
    """All that is measured. Each part returns Markdown, and leaves its numbers in `figures`."""

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        self._bench = Bench()
        self.to_one_by_one = Comparison("`generate` one by one")
        self.to_static = Comparison("`generate` of static batches")
        self.figures: dict[str, Any] = {}

    def model(self) -> str:
        module: Any = self._bench.model.module
        decoder, head = (sum(w.numel() for w in m.parameters()) for m in (module.model.language_model, module.lm_head))
        least_s, most_s = CLIP_S
        return filled(
            f"""Qwen2-Audio's shape with random weights in float32: {decoder / 1e6:.1f}M parameters in the decoder and
            its embeddings, {head / 1e6:.1f}M in the head, next to none in the audio tower. Each request has a clip of
            its own, of {least_s:.0f} to {most_s:.0f} s, and no end before its length. Rounds in which the three ways
            take turns: {self._scale.repeats}. Figures are the median and, in brackets, the least and the most; ratios
            are of one round. One by one, only the first {self._scale.alone} requests run: their speed stands for all.
            {"A quick run measures too little to mean anything." if self._scale == QUICK else ""}"""
        )

    def throughput(self) -> str:
        decode, whole = {}, {}
        for rows in self._scale.rows:
            rounds = self._rounds(rows, [self._scale.new_tokens] * rows)
            decode[rows] = rounds.rates(lambda run: run.decode_rate)
            whole[rows] = rounds.rates(lambda run: run.rate)
        self.figures |= {"decode": _plain(decode), "whole": _plain(whole)}
        reached = decode[AIM_ROWS].to_one_by_one.median if AIM_ROWS in decode else None
        return sections(
            "### Decode, in tokens a second",
            filled(
                f"""As many requests as rows, {self._scale.new_tokens} new tokens each. Left out: prefills, and the
                engine's steps in which not all rows are in use."""
            ),
            Rates.table(decode),
            f"Aim: {MIN_TO_ONE_BY_ONE}x one by one at {AIM_ROWS} rows: {_verdict(reached, MIN_TO_ONE_BY_ONE)}.",
            filled(
                """The same runs as a whole, from the first prompt to the last token. The engine prefills one prompt
                between two steps, so in many of its steps here the rows are still being filled, or emptied already."""
            ),
            Rates.table(whole),
        )

    def _rounds(self, rows: int, lengths: Sequence[int]) -> Rounds:
        self._bench.run_engine(rows, [2] * rows, GREEDY)  # so that the slots have grown
        rounds = Rounds()
        for _ in range(self._scale.repeats):
            rounds.engine.append(self._bench.run_engine(rows, lengths, GREEDY))
            rounds.one_by_one.append(self._bench.run_static(1, lengths[: self._scale.alone]))
            rounds.static.append(self._bench.run_static(rows, lengths))
            self.to_one_by_one.add(rounds.engine[-1], rounds.one_by_one[-1])
            self.to_static.add(rounds.engine[-1], rounds.static[-1])
        return rounds

    def overhead(self) -> str:
        cases = [(rows, name) for rows in self._scale.overhead_rows for name in SAMPLINGS]
        runs: dict[tuple[int, str], list[Run]] = {case: [] for case in cases}
        for _ in range(self._scale.repeats):
            for rows, name in cases:
                lengths = [rows + self._scale.overhead_steps] * rows
                runs[rows, name].append(self._bench.run_engine(rows, lengths, SAMPLINGS[name]))
        costs = {case: Overhead.of(of_case) for case, of_case in runs.items()}
        self.figures["overhead"] = {f"{rows} rows, {name}": asdict(cost) for (rows, name), cost in costs.items()}
        aimed_at = costs.get((AIM_OVERHEAD_ROWS, "greedy"))
        spared = None if aimed_at is None else 1 - aimed_at.share.median
        return sections(
            "### A decode step beside the module",
            filled(
                f"""`engine.decode()`, less the module's `forward` inside it: means over {self._scale.overhead_steps}
                steps with all rows in use."""
            ),
            table(OVERHEAD_HEADER, [(name, str(rows), *cost.cells()) for (rows, name), cost in costs.items()]),
            f"Aim: at most {MAX_OVERHEAD:.0%} of a greedy step of {AIM_OVERHEAD_ROWS} rows: "
            f"{_verdict(spared, 1 - MAX_OVERHEAD)}.",
        )

    def mixed_load(self) -> str:
        draw = random.Random(0)  # noqa: S311 -- no secret
        scale = self._scale
        least, most = scale.load_tokens
        lengths = [draw.randint(least, most) for _ in range(scale.load_requests)]
        rates = self._rounds(scale.load_rows, lengths).rates(lambda run: run.rate)
        self.figures["mixed load"] = asdict(rates)
        return sections(
            "### Answers of mixed lengths, in tokens a second",
            filled(
                f"""{scale.load_requests} requests at once, each of {least} to {most} new tokens, {sum(lengths)} in all;
                prefills count. A static batch of {scale.load_rows} runs until its longest answer is complete."""
            ),
            Rates.table({scale.load_rows: rates}),
            f"Aim: {MIN_TO_STATIC}x static batches: {_verdict(rates.to_static.median, MIN_TO_STATIC)}.",
        )

    def answers(self) -> str:
        return sections("### Answers", f"{self.to_one_by_one}\n{self.to_static}")

    @property
    def is_right(self) -> bool:
        """Whether all answers of the engine are those of `generate` alone. In batches rounding may differ."""
        return self.to_one_by_one.equal == self.to_one_by_one.compared > 0


def _plain(by_rows: dict[int, Rates]) -> dict[str, Any]:
    return {str(rows): asdict(rates) for rows, rates in by_rows.items()}


def _verdict(value: float | None, least: float) -> str:
    if value is None:
        return "not measured"
    return "reached" if value >= least else "not reached"


# --------------------------------------------------------------------------------------------------------- command line


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.engine", description="Measure the engine against `generate`."
    )
    parser.add_argument("--quick", action="store_true", help="a little of everything, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--results", type=Path, help=f"where its section goes (default: {RESULTS}, none with --quick)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> int:
    """Print each part when it is through; 1 if an answer was not that of `generate`."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    command = shlex.join(["python", "-m", "benchmarks.engine", *sys.argv[1:]])
    head = f"## Engine\n\n- Command: `{command}`\n{machine(arguments.threads, ('torch', 'transformers'))}"
    m = Measurement(QUICK if arguments.quick else FULL)
    parts = []
    for part in (lambda: head, m.model, m.throughput, m.overhead, m.mixed_load, m.answers):
        parts.append(part())
        print(parts[-1], end="\n\n", flush=True)
    path = arguments.results or (None if arguments.quick else RESULTS)
    if path is not None:
        write_section("engine", sections(*parts), path)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(m.figures, indent=2))
    return 0 if m.is_right else 1


if __name__ == "__main__":
    sys.exit(main())
