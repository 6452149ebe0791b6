"""The scheduler loses nobody, gives no row twice and keeps the order, whatever happens in whatever order."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.scheduler import Scheduler

MAX_ROWS = 3


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler with any sequence of events, beside a plain model of what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[int] = Scheduler(MAX_ROWS)
        self.next = 0
        self.open: set[int] = set()
        self.line: list[int] = []  # who waits, in order
        self.resumed: list[int] = []  # who waits for its next row, in order
        self.passed_over = 0  # how often in a row the longest waiting newcomer was

    @rule()
    def submit(self) -> None:
        self.scheduler.submit(self.next)
        self.open.add(self.next)
        self.line.append(self.next)
        self.next += 1

    @rule(placed=st.booleans())
    def admit(self, placed: bool) -> None:
        """The longest waiting one is admitted, if there is a row. Its prefill may fail."""
        anybody, full = bool(self.line or self.resumed), len(self.scheduler.running) == MAX_ROWS
        item = self.scheduler.admit()
        assert (item is None) == (full or not anybody)
        if item is None:
            return
        assert item in (*self.line[:1], *self.resumed[:1])
        queue = self.line if item in self.line else self.resumed
        self.passed_over = self.passed_over + 1 if self.line and queue is self.resumed else 0
        assert self.passed_over <= 1, "newcomers and those who go on take turns"
        queue.remove(item)
        if placed:
            self.scheduler.place(item)
        else:
            self.open.remove(item)

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data(), resumes=st.booleans())
    def leave(self, data: st.DataObject, resumes: bool) -> None:
        row = data.draw(st.integers(0, len(self.scheduler.running) - 1))
        others = [item for i, item in enumerate(self.scheduler.running) if i != row]
        item = self.scheduler.leave(row)
        assert sorted(self.scheduler.running) == sorted(others)
        if resumes:
            self.scheduler.resume(item)
            self.resumed.append(item)
        else:
            self.open.remove(item)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        unwanted = data.draw(st.sampled_from(sorted(self.open)))
        for row in self.scheduler.withdraw(lambda item: item == unwanted):
            assert self.scheduler.leave(row) == unwanted
        self.open.remove(unwanted)
        self.line = [item for item in self.line if item != unwanted]
        self.resumed = [item for item in self.resumed if item != unwanted]

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        everyone = [*self.scheduler.waiting, *self.scheduler.resumed, *self.scheduler.running]
        assert sorted(everyone) == sorted(self.open)
        assert list(self.scheduler.waiting) == self.line
        assert list(self.scheduler.resumed) == self.resumed
        assert self.scheduler.idle == (not self.open)


TestScheduler = SchedulerMachine.TestCase
