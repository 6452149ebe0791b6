"""Who waits and who has a row: a pure state machine. No torch, no clock, no text.

    submit ──▶ waiting ─┐
               resumed ─┼─ next, place ──▶ running (rows 0..n-1) ── leave ──▶ gone
                 aside ─┘                    │    │
                   ▲ ▲────────── set_aside ──┘    │      its columns are needed; it goes on where it stopped
                   └──────────── resume ──────────┘      the next prompt of the same answer

Lower priorities go first; of one priority, those that were set aside, then those who came first. Those who go on with
their next prompt and those who come new take turns: a long file neither waits for everybody who came after it, nor
makes everybody wait for its end. Nobody overtakes the next in line for being smaller, so nobody waits for ever.

Memory is counted in tokens: all rows are as wide as the widest, so n rows take n times its columns.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

HEADROOM = 16  # columns that a newcomer must find free, so that it is not set aside again at once


class Item(Protocol):
    """What is scheduled. `arrival` is the scheduler's own mark; `num_columns` is what a row of it takes now."""

    arrival: int

    @property
    def priority(self) -> int: ...

    @property
    def deadline(self) -> float | None: ...

    @property
    def num_columns(self) -> int: ...


T = TypeVar("T", bound=Item)


class Scheduler(Generic[T]):
    """Rows are dense: when one is left, the last row moves into its place, here and in the key/value slots alike.

    `max_tokens` bounds rows times columns; `None`: no bound.
    """

    def __init__(self, max_rows: int, max_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens
        self._max_rows = max_rows
        self._arrivals = 0
        self._resumed_is_next = True
        self.waiting: list[T] = []
        self.resumed: list[T] = []
        self.aside: list[T] = []
        self.running: list[T] = []

    @property
    def idle(self) -> bool:
        return not any(self._everybody())

    def submit(self, item: T) -> None:
        self._queue(self.waiting, item)

    def next(self) -> T | None:
        """Who is to be prefilled and placed now, if there is a row and the memory for it. It stays where it is until
        `place` is called, so a long prompt may come here for every piece of it. One that will never fit comes here,
        too, and is to be withdrawn."""
        item = self._head()
        if item is None or len(self.running) >= self._max_rows:
            return None
        return item if self._fits(item) or self.is_oversized(item) else None

    def is_oversized(self, item: T) -> bool:
        """Whether a row of it would be too large for the memory, alone."""
        return item.num_columns + 1 > self._bound

    def place(self, item: T) -> None:
        """The next in line has the row behind the last."""
        assert item is self._head(), "only the next in line is placed"
        assert len(self.running) < self._max_rows, "there is a row"
        if item in self.waiting or item in self.resumed:
            self._resumed_is_next = item in self.waiting
        self._forget(item)
        self.running.append(item)

    def leave(self, row: int) -> T:
        """Free a row. The caller removes the same row from the slots."""
        item = self.running[row]
        last = self.running.pop()
        if row < len(self.running):
            self.running[row] = last
        return item

    def resume(self, item: T) -> None:
        """Let an item that left its row wait for another."""
        self._queue(self.resumed, item)

    def overflowing(self) -> int | None:
        """A row to set aside before the next step, whose columns would not fit: the least urgent, youngest one."""
        if len(self.running) < 2 or len(self.running) * (self._widest() + 1) <= self._bound:
            return None
        return max(range(len(self.running)), key=lambda row: _urgency(self.running[row]))

    def set_aside(self, row: int) -> T:
        """Free a row whose item goes on later, before everybody of its priority."""
        item = self.leave(row)
        insort(self.aside, item, key=_urgency)
        return item

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[int]:
        """Forget waiting items, and name the rows of running ones, highest first, so that they can be left in turn."""
        for queue in (self.waiting, self.resumed, self.aside):
            queue[:] = [item for item in queue if not unwanted(item)]
        return [row for row in reversed(range(len(self.running))) if unwanted(self.running[row])]

    def overdue(self, now: float) -> list[T]:
        """Everybody, waiting or running, whose deadline is over."""
        return [item for item in self._everybody() if item.deadline is not None and item.deadline <= now]

    def _everybody(self) -> Iterator[T]:
        for items in (self.waiting, self.resumed, self.aside, self.running):
            yield from items

    def _queue(self, queue: list[T], item: T) -> None:
        item.arrival, self._arrivals = self._arrivals, self._arrivals + 1
        insort(queue, item, key=_urgency)

    def _forget(self, item: T) -> None:
        for queue in (self.waiting, self.resumed, self.aside):
            if item in queue:
                queue.remove(item)

    def _head(self) -> T | None:
        first, second = (self.resumed, self.waiting) if self._resumed_is_next else (self.waiting, self.resumed)
        heads = [queue[0] for queue in (self.aside, first, second) if queue]
        return min(heads, key=lambda item: item.priority, default=None)  # of equals the first in the list

    def _fits(self, item: T) -> bool:
        rows = len(self.running) + 1
        columns = max(item.num_columns, self._widest()) + (HEADROOM if rows > 1 else 1)
        return rows * columns <= self._bound

    def _widest(self) -> int:
        return max((item.num_columns for item in self.running), default=0)

    @property
    def _bound(self) -> float:
        return float("inf") if self.max_tokens is None else self.max_tokens


def _urgency(item: Item) -> tuple[int, int]:
    return item.priority, item.arrival
