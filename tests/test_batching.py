"""The engine of models that bring their own loop: which requests share a batch, and what becomes of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import pytest
import torch

from engine.batching import BatchEngine
from errors import BadRequest
from models.base import Clip, Conversation, Question, TextModel, Turn
from wire import NOTHING_HEARD, Capabilities, Delta, Failed, Finished, Heard, Job, JobId, Sampling, Structure

Script = Sequence[str | Exception | None]  # the pieces of an answer; an exception is raised in its place


class Scripted(TextModel):
    """Answers each question by its text: with the script of that name, else with the text. Tells what it was asked."""

    capabilities = Capabilities(16_000, None, "error", "dynamic")

    def __init__(self, max_batch_size: int = 4, **scripts: Script) -> None:
        self.max_batch_size = max_batch_size
        self.scripts = scripts
        self.batches: list[list[str]] = []
        self.asked: list[Question] = []
        self.num_closed = 0

    def setup(self, device: str, dtype: str) -> None:
        """There is nothing to load."""

    def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
        names = [name_of(question) for question in questions]
        self.batches.append(names)
        self.asked += questions
        try:
            scripts = [self.scripts.get(name, [name]) for name in names]
            for step in range(max(map(len, scripts))):
                yield [piece(script, step) for script in scripts]
        finally:
            self.num_closed += 1

    def group(self, question: Question) -> Hashable:
        return question.sampling.temperature


def name_of(question: Question) -> str:
    """Its text, or the first sample of its audio."""
    (part,) = question.conversation[-1].parts
    return part if isinstance(part, str) else str(int(part.windows[0][0]))


def piece(script: Script, step: int) -> str | None:
    found = script[step] if step < len(script) else None
    if isinstance(found, Exception):
        raise found
    return found


class Run:
    """Steps an engine, and collects what it tells, by request and choice."""

    def __init__(self, model: TextModel) -> None:
        self.engine = BatchEngine(model)
        self.texts: dict[tuple[str, int], str] = defaultdict(str)
        self.ends: dict[tuple[str, int], Finished] = {}
        self.failed: dict[str, Failed] = {}

    def submit(self, name: str, *parts: str | Clip, job: Job | None = None, **sampling: object) -> JobId:
        """Asks for the script called `name`, unless there are other `parts`. `job` brings what is not sampling."""
        job = job or Job(JobId(0, name), (), Sampling(**sampling))
        conversation: Conversation = (Turn("user", parts or (name,)),)
        grammar = self.engine.requests.compile(job)
        self.engine.submit(self.engine.requests.prepare(job, conversation, NOTHING_HEARD, grammar))
        return job.id

    def step(self, now: float = 0.0) -> None:
        for event in (*self.engine.expire(now), *self.engine.admit(), *self.engine.decode()):
            name = event.job_id.key
            if isinstance(event, Delta):
                self.texts[name, event.choice] += event.text
            elif isinstance(event, Finished):
                assert (name, event.choice) not in self.ends, "a choice ends once"
                self.ends[name, event.choice] = event
            else:
                assert name not in self.failed, "a request fails once"
                self.failed[name] = event

    def finish(self, max_steps: int = 1000) -> None:
        for _ in range(max_steps):
            if self.engine.idle:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def answer(self, name: str, choice: int = 0) -> tuple[str, str]:
        """The text, and why it ended."""
        return self.texts[name, choice], self.ends[name, choice].reason


# ------------------------------------------------------------------------------------------------------ who is together


def test_those_that_wait_share_a_batch_of_limited_size() -> None:
    """Those that come while it runs wait for the next."""
    model = Scripted(max_batch_size=3)
    run = Run(model)
    for name in "abcd":
        run.submit(name)
    run.step()
    run.submit("e")
    run.finish()
    assert model.batches == [["a", "b", "c"], ["d", "e"]]
    assert [run.answer(name) for name in "abcde"] == [(name, "stop") for name in "abcde"]
    assert model.num_closed == 2


def test_only_one_group_shares_a_batch() -> None:
    """That of the first in line; the others keep their places."""
    model = Scripted()
    run = Run(model)
    for name, temperature in (("a", 0.0), ("b", 1.0), ("c", 0.0), ("d", 1.0)):
        run.submit(name, temperature=temperature)
    run.finish()
    assert model.batches == [["a", "c"], ["b", "d"]]


def test_the_urgent_go_first() -> None:
    """Lower priority first, then first come."""
    model = Scripted(max_batch_size=1)
    run = Run(model)
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1)):
        run.submit(name, job=Job(JobId(0, name), (), Sampling(), priority=priority))
    run.finish()
    assert model.batches == [["d"], ["b"], ["a"], ["c"]]


def test_how_requests_share_the_model_is_told() -> None:
    """With a reason."""
    assert BatchEngine(Scripted(max_batch_size=1)).batching[0] == "serial"
    batching, why = BatchEngine(Scripted(max_batch_size=4)).batching
    assert batching == "dynamic"
    assert "up to 4 requests" in why


def test_choices_are_asked_apart_each_with_its_seed() -> None:
    """A negative one counts up from the other end, as not every generator takes it."""
    model = Scripted()
    run = Run(model)
    run.submit("a", n=3, seed=7)
    run.submit("b", n=2, seed=-1)
    run.submit("c")
    run.finish()
    assert [question.sampling.seed for question in model.asked] == [7, 8, 9, 2**63 - 1, 0, None]
    assert {question.sampling.n for question in model.asked} == {1}
    assert [run.answer("a", choice)[0] for choice in range(3)] == ["a"] * 3


# --------------------------------------------------------------------------------------------------------- how they end


def test_an_answer_ends_early_in_a_batch_that_goes_on() -> None:
    """At `None`; empty pieces are no news."""
    run = Run(Scripted(short=["x", None, "never"], long=["a", "", "b", "c"]))
    run.submit("short")
    run.submit("long")
    run.step()
    run.step()
    assert run.answer("short") == ("x", "stop")
    assert not run.ends.get(("long", 0))
    run.finish()
    assert run.answer("long") == ("abc", "stop")


def test_a_stop_string_is_found_across_pieces() -> None:
    """Nothing of it is told, nor of what follows; what only looked like one is."""
    run = Run(Scripted(found=["one E", "N", "D two", "three"], looked=["one E", "N"]))
    run.submit("found", stop=("END",))
    run.submit("looked", stop=("END",))
    run.finish()
    assert run.answer("found") == ("one ", "stop")
    assert run.answer("looked") == ("one EN", "stop")


def test_max_tokens_end_an_answer() -> None:
    """As the model counts them; the batch ends with its last answer."""
    model = Scripted(a=["one ", "two ", "three "], b=["1", "2"])
    run = Run(model)
    run.submit("a", max_tokens=2)
    run.submit("b", max_tokens=2)
    run.step()
    run.step()
    assert run.engine.idle
    assert run.answer("a") == ("one two ", "length")
    assert run.answer("b") == ("12", "length")
    usage = run.ends["a", 0].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (1, 2)
    assert model.num_closed == 1


class Counting(Scripted):
    """Counts its tokens, which are characters or words."""

    def __init__(self, unit: str, **scripts: Script) -> None:
        super().__init__(**scripts)
        self.unit = unit

    def count_tokens(self, text: str) -> int:
        return len(text) if self.unit == "characters" else len(text.split())


@pytest.mark.parametrize(
    ("unit", "script", "limit", "text", "reason", "num_tokens"),
    [
        ("characters", ["one two three"], 9, "one two", "length", 7),  # not "one two t"
        ("characters", ["one two three"], 7, "one two", "length", 7),
        ("characters", ["one two three"], 2, "on", "length", 2),  # not even a word
        ("characters", ["one two three"], 14, "one two three", "stop", 13),
        ("characters", ["one", " two three"], 8, "one two", "length", 7),
        ("characters", ["one", " two"], 4, "one ", "length", 4),
        ("characters", ["a " + "b" * 40], 30, "a " + "b" * 28, "length", 30),  # as Chinese goes on without blanks
        ("words", ["one two three"], 2, "one two", "length", 2),
        ("words", ["one two", " three four"], 3, "one two three", "length", 3),
        ("words", ["one two", " three"], 4, "one two three", "stop", 3),
    ],
)
def test_a_piece_that_exceeds_the_limit_is_cut(
    unit: str, script: Script, limit: int, text: str, reason: str, num_tokens: int
) -> None:
    """Between words, if one fits; what is told never counts more than was asked for."""
    run = Run(Counting(unit, a=script))
    run.submit("a", max_tokens=limit)
    run.finish()
    assert run.answer("a") == (text, reason)
    assert run.ends["a", 0].usage.completion_tokens == num_tokens


def test_what_the_limit_cuts_off_holds_no_stop_string() -> None:
    """And one before it ends the answer as ever."""
    run = Run(Counting("words", before=["one END two three"], behind=["one two three END"]))
    run.submit("before", max_tokens=2, stop=("END",))
    run.submit("behind", max_tokens=2, stop=("END",))
    run.finish()
    assert run.answer("before") == ("one ", "stop")
    assert run.answer("behind") == ("one two", "length")


def test_a_tokenizer_that_counts_a_token_for_nothing_cuts_all() -> None:
    """Many begin each text with a token of their own."""

    class Begins(Scripted):
        def count_tokens(self, text: str) -> int:
            return 2 + len(text)

    run = Run(Begins(a=["one"]))
    run.submit("a", max_tokens=2)
    run.finish()
    assert run.answer("a") == ("", "length")
    assert run.ends["a", 0].usage.completion_tokens == 0


def test_the_limit_is_for_all_windows_together() -> None:
    """A later one is asked for what is left."""
    model = Counting("words", **{"1": ["one two"], "2": ["three"], "3": ["four five"], "4": ["six"]})
    run = Run(model)
    run.submit("long", Clip(tuple(np.full(10, i, np.float32) for i in range(1, 5))), max_tokens=4)
    run.finish()
    assert [question.sampling.max_tokens for question in model.asked] == [4, 2, 1]
    assert run.answer("long") == ("one two three four", "length")
    assert run.ends["long", 0].usage.completion_tokens == 4


def test_windows_are_answered_in_turn_and_joined_by_one_blank() -> None:
    """Whatever blanks stand at their edges; a window without an answer leaves none. They share batches with others."""
    model = Scripted(**{"1": [" one "], "2": ["", "  ", " two"], "3": ["", " "], "4": ["four", "!"]})
    run = Run(model)
    windows = tuple(np.full(10, i, np.float32) for i in range(1, 5))
    run.submit("long", Clip(windows), stop=("never",))
    run.submit("short")
    run.finish()
    assert run.answer("long") == (" one two four!", "stop")
    assert model.batches == [["1", "short"], ["2"], ["3"], ["4"]]


def test_a_request_tells_what_was_heard() -> None:
    """As the worker measured it."""
    engine, heard = BatchEngine(Scripted()), Heard(1, 2.0, 2.0)
    job = Job(JobId(0, "a"), (), Sampling())
    engine.submit(engine.requests.prepare(job, (Turn("user", ("a",)),), heard, None))
    engine.admit()
    events = [*engine.decode(), *engine.decode()]
    assert events[-1].usage.heard == heard


# ----------------------------------------------------------------------------------------------- those who do not wait


def test_a_cancelled_request_leaves_its_batch() -> None:
    """The others go on, and nothing more is told of it."""
    model = Scripted(a=["1", "2"], b=["1", "2"])
    run = Run(model)
    a = run.submit("a")
    run.submit("b")
    waiting = run.submit("c", temperature=1.0)
    run.step()
    run.engine.cancel(a)
    run.engine.cancel(waiting)
    run.engine.cancel(JobId(0, "unknown"))
    run.finish()
    assert run.answer("b") == ("12", "stop")
    assert run.texts["a", 0] == "1"
    assert model.batches == [["a", "b"]]
    assert not run.ends.get(("a", 0))


def test_a_batch_that_nobody_waits_for_is_closed() -> None:
    """At once: the model's generator gets the chance to tidy up, and the next batch begins."""
    model = Scripted(a=["1"] * 1000)
    run = Run(model)
    a = run.submit("a", n=2)
    run.step()
    run.submit("b")
    run.engine.cancel(a)
    assert model.num_closed == 1
    run.finish()
    assert run.answer("b") == ("b", "stop")


def test_a_model_that_fails_to_tidy_up_harms_nobody() -> None:
    """The next batch begins."""

    class Untidy(Scripted):
        def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
            try:
                yield from super().generate(questions)
            finally:
                raise OSError("the disk is full")

    run = Run(Untidy(a=["1"] * 1000))
    a = run.submit("a")
    run.step()
    run.engine.cancel(a)
    assert run.engine.idle


def test_a_request_past_its_deadline_fails() -> None:
    """Wherever it is, and with all of its choices."""
    model = Scripted(max_batch_size=2, a=["1"] * 1000)
    run = Run(model)
    run.submit("a", job=Job(JobId(0, "a"), (), Sampling(n=3), deadline=10.0))
    run.submit("b", job=Job(JobId(0, "b"), (), Sampling(), deadline=20.0))
    run.step(now=9.0)
    run.step(now=10.0)
    assert run.failed["a"].kind == "DeadlineExceeded"
    run.finish()
    assert model.batches == [["a", "a"], ["b"]]
    assert run.answer("b") == ("b", "stop")


def test_all_is_forgotten_at_a_reset() -> None:
    """Also the batch that runs."""
    model = Scripted(a=["1"] * 1000)
    run = Run(model)
    run.submit("a")
    run.step()
    run.submit("b")
    run.engine.reset()
    assert run.engine.idle
    assert model.num_closed == 1


# ------------------------------------------------------------------------------------------------------ what goes wrong


def test_one_bad_request_fails_alone() -> None:
    """The model cannot say whose fault it was, so each of the batch is tried alone."""
    model = Scripted(bad=[BadRequest("too loud", "messages")], broken=[RuntimeError("the model's own")])
    run = Run(model)
    for name in ("a", "bad", "broken", "b"):
        run.submit(name)
    run.finish()
    assert model.batches == [["a", "bad", "broken", "b"], ["a"], ["bad"], ["broken"], ["b"]]
    assert [run.answer(name) for name in "ab"] == [("a", "stop"), ("b", "stop")]
    assert (run.failed["bad"].kind, run.failed["bad"].message) == ("BadRequest", "too loud")
    assert run.failed["broken"].kind == "InternalError"
    assert "own" not in run.failed["broken"].message


def test_what_was_told_is_not_told_again() -> None:
    """Of a batch that fails in its middle, those that have text out fail, and the others are tried again."""
    model = Scripted(told=["1", "2"], silent=["", "x"], bad=["", BadRequest("too loud")])
    run = Run(model)
    for name in ("told", "silent", "bad"):
        run.submit(name)
    run.finish()
    assert run.failed["told"].kind == "InternalError"
    assert run.answer("silent") == ("x", "stop")
    assert run.failed["bad"].kind == "BadRequest"


def test_the_fault_of_one_that_has_left_is_nobody_elses() -> None:
    """Who remains of its batch is tried again."""
    model = Scripted(bad=["", BadRequest("too loud")], good=["", "x"])
    run = Run(model)
    bad = run.submit("bad")
    run.submit("good")
    run.step()
    run.engine.cancel(bad)
    run.finish()
    assert run.answer("good") == ("x", "stop")
    assert not run.failed


@pytest.mark.parametrize("wrong", [[], ["x", "y", "z"], "xy", 3])
def test_a_wrong_number_of_texts_is_an_error_and_no_hang(wrong: object) -> None:
    """Of the model's, so its requests fail one by one; with several requests, and with one."""

    class Wrong(Scripted):
        def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
            yield wrong  # type: ignore[misc]

    run = Run(Wrong())
    run.submit("a")
    run.submit("b")
    run.finish()
    assert {name: failed.kind for name, failed in run.failed.items()} == dict.fromkeys("ab", "InternalError")


def test_a_piece_that_is_no_text_fails_its_request_alone() -> None:
    """What the others were told in the same step still arrives, also their ends."""
    run = Run(Scripted(ends=["x", None], wrong=["y", 3], goes_on=["1", "2", "3"]))
    for name in ("ends", "wrong", "goes_on"):
        run.submit(name)
    run.finish()
    assert run.answer("ends") == ("x", "stop")
    assert run.answer("goes_on") == ("123", "stop")
    assert run.failed["wrong"].kind == "InternalError"


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        ({"top_logprobs": 0}, "logprobs"),
        ({"logit_bias": ((5, 1.0),)}, "logit_bias"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_takes_the_models_probabilities_is_refused(sampling: dict, name: str) -> None:
    """Rather than ignored; the field is named."""
    run = Run(Scripted())
    with pytest.raises(BadRequest, match=f"`{name}`") as caught:
        run.submit("a", **sampling)
    assert caught.value.param == name


def test_a_structure_is_refused() -> None:
    """It is enforced token by token."""
    structure = Structure("regex", "structured_outputs.regex", "a+")
    with pytest.raises(BadRequest) as caught:
        Run(Scripted()).submit("a", job=Job(JobId(0, "a"), (), Sampling(), structure=structure))
    assert caught.value.param == "structured_outputs.regex"


def test_several_long_clips_are_refused() -> None:
    """No order of their windows would mean anything."""
    windows = (np.zeros(1, np.float32),) * 2
    with pytest.raises(BadRequest, match="Several audios"):
        Run(Scripted()).submit("a", Clip(windows), Clip(windows))


def test_a_models_loop_keeps_no_gradients() -> None:
    """Authors forget; memory would grow."""

    class Tensors(Scripted):
        def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
            for _ in range(2):
                yield [str((torch.ones(1, requires_grad=True) * 2).requires_grad)] * len(questions)

    run = Run(Tensors())
    run.submit("a")
    run.finish()
    assert run.answer("a")[0] == "FalseFalse"
