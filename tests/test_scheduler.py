"""The scheduler loses nobody, gives no row twice, keeps order and memory, whatever happens in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.scheduler import Scheduler

MAX_ROWS = 3
MAX_TOKENS = 100


@dataclass(eq=False)
class Item:
    name: int
    num_columns: int = 1
    priority: int = 0
    deadline: float | None = None
    arrival: int = -1
    came: list[int] = field(default_factory=list)  # when it was submitted, and when it resumed


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler with any sequence of events, beside a plain model of what must be true."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler: Scheduler[Item] = Scheduler(MAX_ROWS, MAX_TOKENS)
        self.time = 0
        self.open: list[Item] = []
        self.new: list[Item] = []  # who waits for the first row, in the order of coming
        self.resumed: list[Item] = []  # who waits for the next prompt's row
        self.aside: list[Item] = []
        self.passed_over = 0  # how often in a row the longest waiting newcomer of the best priority was

    @rule(columns=st.integers(1, MAX_TOKENS + 5), priority=st.sampled_from([0, 0, 0, 1, -1]), due=st.integers(0, 20))
    def submit(self, columns: int, priority: int, due: int) -> None:
        item = Item(self.time, columns, priority, deadline=self.time + due if due > 5 else None)
        self.time += 1
        self.scheduler.submit(item)
        self.open.append(item)
        self.new.append(item)

    @rule(placed=st.sampled_from([True, True, True, False]))
    def admit(self, placed: bool) -> None:
        """The next in line is admitted, if there is a row and memory. Its prefill may take several steps, or fail."""
        item = self.scheduler.next()
        assert item is self.scheduler.next(), "asking changes nothing"
        if item is None:
            assert len(self.scheduler.running) > 0 or not self.open, "an empty engine takes the next in line"
            return
        waiting = [*self.new, *self.resumed, *self.aside]
        assert item.priority == min(other.priority for other in waiting)
        self._check_order(item)
        if item.num_columns + 1 > MAX_TOKENS:
            assert self.scheduler.is_oversized(item)
            placed = False
        if placed:
            self.scheduler.place(item)
            self._remove_waiting(item)
        else:
            self.scheduler.withdraw(lambda other: other is item)
            self.open.remove(item)
            self._remove_waiting(item)

    def _check_order(self, item: Item) -> None:
        """Of those who wait in one place with one priority, the first goes first; those set aside go before."""
        peers = [other for other in self.aside if other.priority == item.priority]
        if peers:
            assert item is min(peers, key=lambda other: other.arrival)
            return
        for queue in (self.new, self.resumed):
            if item in queue:
                assert item is next(other for other in queue if other.priority == item.priority)

    def _remove_waiting(self, item: Item) -> None:
        for queue in (self.new, self.resumed, self.aside):
            if item in queue:
                queue.remove(item)

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def step(self) -> None:
        """Before every step, rows are set aside until the next column fits; then all grow by one."""
        while (row := self.scheduler.overflowing()) is not None:
            rows = self.scheduler.running
            assert len(rows) > 1, "a lone row goes on"
            urgencies = [(item.priority, item.arrival) for item in rows]
            assert urgencies[row] == max(urgencies), "the least urgent, youngest one"
            self.aside.append(self.scheduler.set_aside(row))
        widest = max(item.num_columns for item in self.scheduler.running) + 1
        assert len(self.scheduler.running) * widest <= MAX_TOKENS or len(self.scheduler.running) == 1
        for item in self.scheduler.running:
            item.num_columns = min(item.num_columns + 1, MAX_TOKENS - 1)  # the engine ends what fills the memory alone

    @precondition(lambda self: self.scheduler.running)
    @rule(data=st.data(), resumes=st.booleans(), columns=st.integers(1, MAX_TOKENS - 1))
    def leave(self, data: st.DataObject, resumes: bool, columns: int) -> None:
        row = data.draw(st.integers(0, len(self.scheduler.running) - 1))
        others = [item for i, item in enumerate(self.scheduler.running) if i != row]
        item = self.scheduler.leave(row)
        assert {id(other) for other in self.scheduler.running} == {id(other) for other in others}
        if resumes:
            item.num_columns = columns
            self.scheduler.resume(item)
            self.resumed.append(item)
        else:
            self.open.remove(item)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        unwanted = data.draw(st.sampled_from(self.open))
        for row in self.scheduler.withdraw(lambda item: item is unwanted):
            assert self.scheduler.leave(row) is unwanted
        self.open.remove(unwanted)
        self._remove_waiting(unwanted)

    @rule(now=st.integers(0, 60))
    def expire(self, now: int) -> None:
        """Everybody whose time is over is named, wherever it is, and nobody else."""
        overdue = self.scheduler.overdue(now)
        assert {item.name for item in overdue} == {
            item.name for item in self.open if item.deadline is not None and item.deadline <= now
        }

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        s = self.scheduler
        everyone = [*s.waiting, *s.resumed, *s.aside, *s.running]
        assert sorted(item.name for item in everyone) == sorted(item.name for item in self.open)
        assert len(s.running) <= MAX_ROWS
        assert s.idle == (not self.open)

    def teardown(self) -> None:
        """From any state, everybody's turn comes."""
        for _ in range(MAX_TOKENS * (len(self.open) + 1)):
            if not self.open:
                return
            self.admit(True)
            if self.scheduler.running:
                self.step()
                row = 0
                self.open.remove(self.scheduler.leave(row))
        raise AssertionError("somebody waits for ever")


TestScheduler = SchedulerMachine.TestCase


def drain(scheduler: Scheduler[Item]) -> list[int]:
    """Everybody's name in the order of placement, one after another."""
    names = []
    while (item := scheduler.next()) is not None:
        scheduler.place(item)
        names.append(item.name)
        scheduler.leave(0)
    return names


def test_lower_priorities_first_and_of_one_priority_first_come_first_served() -> None:
    """As vLLM's `priority` has it."""
    scheduler: Scheduler[Item] = Scheduler(1)
    for name, priority in enumerate([1, 0, 1, -5, 0]):
        scheduler.submit(Item(name, priority=priority))
    assert drain(scheduler) == [3, 1, 4, 0, 2]


def test_newcomers_and_those_who_go_on_take_turns() -> None:
    """A long file neither waits for everybody nor makes everybody wait."""
    scheduler: Scheduler[Item] = Scheduler(1)
    for name in (10, 11, 12):
        scheduler.submit(Item(name))
    for name in (20, 21, 22):
        scheduler.resume(Item(name))
    assert drain(scheduler) == [20, 10, 21, 11, 22, 12]


def test_the_next_in_line_is_not_overtaken_by_a_smaller_one() -> None:
    """Else a large request would wait for ever."""
    scheduler: Scheduler[Item] = Scheduler(4, 100)
    for name, columns in enumerate([40, 60, 1]):
        scheduler.submit(Item(name, columns))
    scheduler.place(scheduler.next())
    assert scheduler.next() is None


def test_what_was_set_aside_goes_on_before_newcomers() -> None:
    """And its columns are found again when the older row is gone."""
    scheduler: Scheduler[Item] = Scheduler(2, 60)
    old, young = Item(0, 10), Item(1, 10)
    for item in (old, young):
        scheduler.submit(item)
        scheduler.place(item)
    old.num_columns = 30
    assert scheduler.overflowing() == 1
    assert scheduler.set_aside(1) is young
    scheduler.submit(Item(2, 1))
    assert scheduler.next() is None
    scheduler.leave(0)
    assert scheduler.next() is young


def test_one_that_never_fits_waits_for_a_row_too() -> None:
    """Nobody is given out where there is no row to place anybody in."""
    scheduler: Scheduler[Item] = Scheduler(1, 60)
    scheduler.submit(Item(0, 10))
    scheduler.place(scheduler.next())
    scheduler.submit(Item(1, 100))
    assert scheduler.next() is None
    scheduler.leave(0)
    assert scheduler.next().name == 1
