"""The engine with the fake model: every request ends, alone, and as it was asked."""

from __future__ import annotations

from collections import defaultdict

import pytest

from engine.engine import Engine, Request
from models.base import Turn
from models.fake import FakeModel
from wire import Delta, Failed, Finished, JobId, Sampling


@pytest.fixture(scope="module")
def model() -> FakeModel:
    model = FakeModel()
    model.setup("cpu", "auto")
    return model


class Run:
    """Steps an engine, and collects what it tells, by request and choice."""

    def __init__(self, model: FakeModel, max_rows: int = 4) -> None:
        self.engine, self._model = Engine(model, max_rows), model
        self.texts: dict[tuple[str, int], str] = defaultdict(str)
        self.ends: dict[tuple[str, int], Finished] = {}
        self.failed: dict[str, Failed] = {}

    def submit(self, name: str, text: str, **sampling: object) -> JobId:
        id_ = JobId(0, name)
        self.engine.submit(Request(id_, self._model.prepare((Turn("user", (text,)),)), Sampling(**sampling)))
        return id_

    def step(self) -> None:
        for event in (*self.engine.admit(), *self.engine.decode()):
            key = event.job_id.key
            if isinstance(event, Delta):
                self.texts[key, event.choice] += event.text
            elif isinstance(event, Finished):
                assert (key, event.choice) not in self.ends, "a choice ends once"
                self.ends[key, event.choice] = event
            else:
                assert key not in self.failed, "a request fails once"
                self.failed[key] = event

    def finish(self) -> None:
        while not self.engine.idle:
            self.step()


def test_requests_of_different_lengths_share_the_rows(model: FakeModel) -> None:
    """More requests than rows: each gets its own answer, whoever it shared its steps with."""
    run = Run(model, max_rows=3)
    for i in range(10):
        run.submit(str(i), f"#tokens={5 + 7 * (i % 4)}")
        run.step()
    run.finish()
    letters = "abcdefghijklmnopqrstuvwxyz"
    for i in range(10):
        assert run.texts[str(i), 0] == letters[: 5 + 7 * (i % 4)]
        assert run.ends[str(i), 0].reason == "stop"


def test_a_short_answer_ends_before_a_long_one(model: FakeModel) -> None:
    """A row that is done leaves, and the next request takes it at the next step."""
    run = Run(model, max_rows=2)
    run.submit("long", "#tokens=200")
    run.submit("short", "#say=hi")
    run.submit("next", "#say=hello")
    for _ in range(20):
        run.step()
    assert ("short", 0) in run.ends
    assert ("next", 0) in run.ends
    assert ("long", 0) not in run.ends


def test_max_tokens_stop_strings_and_usage(model: FakeModel) -> None:
    """`length` and `stop` as it really was, tokens as they were counted."""
    run = Run(model)
    run.submit("cut", "#tokens=50", max_tokens=7)
    run.submit("exact", "#say=abc", max_tokens=3)
    run.submit("stop", "#say=one_two_three", stop=("wo t", "nothing"))
    run.submit("whole", "#say=é")
    run.finish()
    assert (run.texts["cut", 0], run.ends["cut", 0].reason) == ("abcdefg", "length")
    assert (run.texts["exact", 0], run.ends["exact", 0].reason) == ("abc", "length")
    assert (run.texts["stop", 0], run.ends["stop", 0].reason) == ("one t", "stop")
    assert run.ends["cut", 0].usage.completion_tokens == 7
    assert run.ends["cut", 0].usage.prompt_tokens == len("#tokens=50")
    assert (run.texts["whole", 0], run.ends["whole", 0].usage.completion_tokens) == ("é", 2)


def test_choices_are_drawn_apart_and_a_seed_repeats_them(model: FakeModel) -> None:
    """The same alone as in company."""
    alone, company = Run(model), Run(model)
    alone.submit("x", "#tokens=20 #random", n=3, seed=7, temperature=1.0)
    for i in range(3):
        company.submit(str(i), "#tokens=9 #random", seed=i, temperature=1.0)
    company.submit("x", "#tokens=20 #random", n=3, seed=7, temperature=1.0)
    alone.finish()
    company.finish()
    answers = [alone.texts["x", choice] for choice in range(3)]
    assert answers == [company.texts["x", choice] for choice in range(3)]
    assert len(set(answers)) == 3
    assert all(len(answer) == 20 for answer in answers)


def test_a_cancelled_request_is_gone_at_once(model: FakeModel) -> None:
    """Waiting or running, with all of its choices, and nobody else."""
    run = Run(model, max_rows=2)
    running = run.submit("running", "#tokens=100", n=2)
    waiting = run.submit("waiting", "#tokens=100")
    run.submit("stays", "#say=here")
    for _ in range(3):
        run.step()
    run.engine.cancel(running)
    run.engine.cancel(waiting)
    run.engine.cancel(JobId(0, "unknown"))
    run.finish()
    assert set(run.ends) == {("stays", 0)}
    assert run.texts["stays", 0] == "here"


def test_a_prefill_that_fails_takes_only_its_request(model: FakeModel) -> None:
    """Also with several choices: one failure, and no more of it."""
    run = Run(model)
    run.submit("good", "#tokens=30")
    run.step()
    run.submit("bad", "#fail=prefill", n=3)
    run.submit("later", "#say=fine")
    run.finish()
    assert set(run.failed) == {"bad"}
    assert set(run.ends) == {("good", 0), ("later", 0)}


def test_a_fresh_start_after_a_failed_step(model: FakeModel) -> None:
    """`reset` leaves nothing of what was there."""
    run = Run(model)
    run.submit("breaks", "#tokens=9 #fail=step")
    with pytest.raises(RuntimeError):
        run.finish()
    run.engine.reset()
    assert run.engine.idle
    run.submit("after", "#say=well")
    run.finish()
    assert run.texts["after", 0] == "well"
