"""The engine with the fake model: every request ends, alone, and as it was asked."""

from __future__ import annotations

import math

import pytest

from models.base import Prompt, Turn
from models.fake import FakeModel
from tests.support.causal import EngineRun
from wire import Job, JobId, Sampling, Structure

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def model() -> FakeModel:
    model = FakeModel()
    model.setup("cpu", "auto")
    return model


class Run(EngineRun):
    """Speaks to the fake model, which obeys the orders in a text."""

    def __init__(self, model: FakeModel, max_rows: int = 4, **options: object) -> None:
        super().__init__(model, max_rows, **options)
        self._fake = model

    def prompt(self, text: str) -> Prompt:
        return self._fake.prepare((Turn("user", (text,)),))[0]

    def say(self, name: str, text: str, **sampling: object) -> JobId:
        return self.submit(name, self.prompt(text), **sampling)

    def job(self, name: str, text: str, sampling: Sampling | None = None, **job: object) -> None:
        self.submit(name, self.prompt(text), job=Job(JobId(0, name), (), sampling or Sampling(), **job))


def test_requests_of_different_lengths_share_the_rows(model: FakeModel) -> None:
    """More requests than rows: each gets its own answer, whoever it shared its steps with."""
    run = Run(model, max_rows=3)
    for i in range(10):
        run.say(str(i), f"#tokens={5 + 7 * (i % 4)}")
        run.step()
    run.finish()
    for i in range(10):
        assert run.texts[str(i), 0] == LETTERS[: 5 + 7 * (i % 4)]
        assert run.ends[str(i), 0].reason == "stop"


def test_a_short_answer_ends_before_a_long_one(model: FakeModel) -> None:
    """A row that is done leaves, and the next request takes it at the next step."""
    run = Run(model, max_rows=2)
    run.say("long", "#tokens=200")
    run.say("short", "#say=hi")
    run.say("next", "#say=hello")
    for _ in range(20):
        run.step()
    assert ("short", 0) in run.ends
    assert ("next", 0) in run.ends
    assert ("long", 0) not in run.ends


def test_max_tokens_stop_strings_and_usage(model: FakeModel) -> None:
    """`length` and `stop` as it really was, tokens as they were counted."""
    run = Run(model)
    run.say("cut", "#tokens=50", max_tokens=7)
    run.say("exact", "#say=abc", max_tokens=3)
    run.say("stop", "#say=one_two_three", stop=("wo t", "nothing"))
    run.say("whole", "#say=é")
    run.finish()
    assert (run.texts["cut", 0], run.ends["cut", 0].reason) == ("abcdefg", "length")
    assert (run.texts["exact", 0], run.ends["exact", 0].reason) == ("abc", "length")
    assert (run.texts["stop", 0], run.ends["stop", 0].reason) == ("one t", "stop")
    assert run.ends["cut", 0].usage.completion_tokens == 7
    assert run.ends["cut", 0].usage.prompt_tokens == len("#tokens=50")
    assert (run.texts["whole", 0], run.ends["whole", 0].usage.completion_tokens) == ("é", 2)


def test_min_tokens_and_ignore_eos_hold_the_answer_open(model: FakeModel) -> None:
    """The model wants to end after two letters; it may after five, or when its room is full."""
    run = Run(model)
    run.say("least", "#say=ab", min_tokens=5)
    run.say("never", "#say=ab", ignore_eos=True, max_tokens=9)
    run.say("free", "#say=ab")
    run.finish()
    assert [run.ends[name, 0].usage.completion_tokens for name in ("least", "never", "free")] == [5, 9, 2]
    assert [run.ends[name, 0].reason for name in ("least", "never", "free")] == ["stop", "length", "stop"]


def test_choices_are_drawn_apart_and_a_seed_repeats_them(model: FakeModel) -> None:
    """The same alone as in company."""
    alone, company = Run(model), Run(model)
    alone.say("x", "#tokens=20 #random", n=3, seed=7, temperature=1.0)
    for i in range(3):
        company.say(str(i), "#tokens=9 #random", seed=i, temperature=1.0)
    company.say("x", "#tokens=20 #random", n=3, seed=7, temperature=1.0)
    alone.finish()
    company.finish()
    answers = [alone.texts["x", choice] for choice in range(3)]
    assert answers == [company.texts["x", choice] for choice in range(3)]
    assert len(set(answers)) == 3
    assert all(len(answer) == 20 for answer in answers)


def test_a_cancelled_request_is_gone_at_once(model: FakeModel) -> None:
    """Waiting or running, with all of its choices, and nobody else."""
    run = Run(model, max_rows=2)
    running = run.say("running", "#tokens=100", n=2)
    waiting = run.say("waiting", "#tokens=100")
    run.say("stays", "#say=here")
    for _ in range(3):
        run.step()
    run.engine.cancel(running)
    run.engine.cancel(waiting)
    run.engine.cancel(JobId(0, "unknown"))
    run.finish()
    assert set(run.ends) == {("stays", 0)}
    assert run.texts["stays", 0] == "here"


def test_a_request_past_its_deadline_fails_wherever_it_is(model: FakeModel) -> None:
    """Running or still waiting, with all of its choices; others go on."""
    run = Run(model, max_rows=2)
    run.job("running", "#tokens=100", Sampling(n=2), deadline=10.0)
    run.job("waiting", "#tokens=100", deadline=11.0)
    run.job("patient", "#say=here", deadline=1000.0)
    for now in (1.0, 2.0, 9.9):
        run.step(now)
    assert not run.failed
    run.step(11.5)
    assert {name: failed.kind for name, failed in run.failed.items()} == dict.fromkeys(
        ("running", "waiting"), "DeadlineExceeded"
    )
    run.finish()
    assert set(run.ends) == {("patient", 0)}


def test_lower_priorities_are_answered_first(model: FakeModel) -> None:
    """Among those who wait; nobody who runs is thrown out for it."""
    run = Run(model, max_rows=1)
    run.job("running", "#tokens=5")
    run.step()
    for name, priority in (("later", 2), ("normal", 0), ("urgent", -1), ("normal2", 0)):
        run.job(name, "#say=x", priority=priority)
    run.finish()
    assert run.order == ["running", "urgent", "normal", "normal2", "later"]


def test_memory_for_few_tokens_is_shared_in_turns(model: FakeModel) -> None:
    """Rows are set aside and go on; an answer is cut where one row fills the memory; what never fits is a 400."""
    run = Run(model, max_rows=4)
    run.engine._scheduler.max_tokens = 60
    run.engine._rows.max_tokens = 60
    for i in range(6):
        run.say(str(i), "#tokens=20")
    run.say("long", "#tokens=90")
    run.say("huge", "#tokens=9 " + "x" * 60)
    run.finish()
    assert [run.texts[str(i), 0] for i in range(6)] == [LETTERS[:20]] * 6
    assert (run.ends["long", 0].reason, run.ends["long", 0].usage.completion_tokens) == (
        "length",
        60 - len("#tokens=90"),
    )
    assert (run.failed["huge"].kind, run.failed["huge"].param) == ("BadRequest", "messages")
    assert "70 tokens" in run.failed["huge"].message


def test_a_prefill_that_fails_takes_only_its_request(model: FakeModel) -> None:
    """Also with several choices: one failure, and no more of it."""
    run = Run(model)
    run.say("good", "#tokens=30")
    run.step()
    run.say("bad", "#fail=prefill", n=3)
    run.say("later", "#say=fine")
    run.finish()
    assert set(run.failed) == {"bad"}
    assert set(run.ends) == {("good", 0), ("later", 0)}


def test_a_fresh_start_after_a_failed_step(model: FakeModel) -> None:
    """`reset` leaves nothing of what was there."""
    run = Run(model)
    run.say("breaks", "#tokens=9 #fail=step")
    with pytest.raises(RuntimeError):
        run.finish()
    run.engine.reset()
    assert run.engine.idle
    run.say("after", "#say=well")
    run.finish()
    assert run.texts["after", 0] == "well"


def test_logprobs_are_the_models_own_and_come_with_their_text(model: FakeModel) -> None:
    """Of 26 letters that are equally likely each has 1/26, whatever the temperature and bias that chose them."""
    run = Run(model)
    bias = ((model._ids("c")[0], 30.0),)
    run.say("x", "#tokens=6 #random", temperature=0.5, seed=1, logit_bias=bias, top_logprobs=3)
    run.say("plain", "#tokens=6 #random")
    run.finish()
    deltas = [delta for delta in run.deltas if delta.job_id.key == "x"]
    assert run.texts["x", 0] == "cccccc"
    for delta in deltas:
        (entry,) = delta.logprobs
        assert entry.token == delta.text.encode()
        assert entry.logprob == pytest.approx(math.log(1 / 26), abs=1e-4)
        assert [logprob for _, logprob in entry.top] == pytest.approx([math.log(1 / 26)] * 3, abs=1e-4)
    assert not any(delta.logprobs for delta in run.deltas if delta.job_id.key == "plain")


def test_logprobs_never_tell_a_stop_string(model: FakeModel) -> None:
    """Tokens that become a part of one are held back with their text, and dropped with it."""
    run = Run(model)
    run.say("x", "#say=one_two_three", stop=("wo t",), top_logprobs=0)
    run.finish()
    assert b"".join(entry.token for delta in run.deltas for entry in delta.logprobs) == b"one t"
    assert run.texts["x", 0] == "one t"


def test_bytes_of_half_characters(model: FakeModel) -> None:
    """A token may be a part of a character: its bytes are told as they are."""
    run = Run(model)
    run.say("x", "#say=aé", top_logprobs=0)
    run.finish()
    assert [entry.token for delta in run.deltas for entry in delta.logprobs] == [b"a", b"\xc3", b"\xa9"]


def structured(kind: str, **fields: object) -> Structure:
    return Structure(kind, "response_format", **fields)


def test_structures_of_different_kinds_side_by_side(model: FakeModel) -> None:
    """Each row by its own, and one without."""
    run = Run(model, max_rows=8)
    schema = '{"type":"object","properties":{"a":{"enum":["xy"]}},"required":["a"],"additionalProperties":false}'
    run.job("json", "#tokens=400 #random", structure=structured("json", text=schema))
    run.job("regex", "#tokens=400 #random", structure=structured("regex", text="[0-9]{4}-x"))
    run.job("choice", "#tokens=400 #random", structure=structured("choice", choices=("sad", "happy")))
    run.job("free", "#tokens=30")
    run.finish()
    assert run.texts["json", 0].replace(" ", "") == '{"a":"xy"}'
    assert run.texts["regex", 0][4:] == "-x"
    assert run.texts["regex", 0][:4].isdigit()
    assert run.texts["choice", 0] in ("sad", "happy")
    assert run.texts["free", 0] == (LETTERS * 2)[:30]
    assert all(end.reason == "stop" for end in run.ends.values())


def test_a_structure_ends_the_answer_even_where_the_end_is_ignored(model: FakeModel) -> None:
    """Nothing else could follow."""
    run = Run(model)
    run.job("x", "#tokens=9", Sampling(ignore_eos=True, min_tokens=50), structure=structured("choice", choices=("no",)))
    run.finish()
    assert run.texts["x", 0] == "no"


def test_what_the_model_cannot_write_fails_alone(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure that needs a token which the model bans is a 400 at its place."""
    monkeypatch.setattr(model, "banned_ids", tuple(model._ids("z")))
    run = Run(model)
    run.job("bad", "#tokens=9", structure=structured("regex", text="az+"))
    run.job("good", "#tokens=9")
    run.finish()
    assert (run.failed["bad"].kind, run.failed["bad"].param) == ("BadRequest", "response_format")
    assert "cannot write" in run.failed["bad"].message
    assert run.texts["bad", 0] == "a"
    assert run.texts["good", 0] == LETTERS[:9]


def test_label_probabilities_are_those_of_their_tokens(model: FakeModel) -> None:
    """Softmax of the labels' summed log-probabilities, beside the answer: the model is sure of "abc"."""
    run = Run(model)
    sampling = Sampling(top_logprobs=0, n=2)
    run.job("x", "#tokens=3", sampling, structure=structured("choice", choices=("abc", "abd", "b")))
    run.job("even", "#tokens=9 #random", sampling, structure=structured("choice", choices=("p", "q", "rs")))
    run.job("unasked", "#tokens=3", structure=structured("choice", choices=("abc", "b")))
    run.finish()
    for choice in range(2):
        assert dict(run.ends["x", choice].labels) == pytest.approx({"abc": 1.0, "abd": 0.0, "b": 0.0}, abs=1e-6)
        assert run.texts["x", choice] == "abc"
    assert dict(run.ends["even", 0].labels) == pytest.approx({"p": 26 / 53, "q": 26 / 53, "rs": 1 / 53}, abs=1e-4)
    assert run.ends["unasked", 0].labels == ()
