"""Who waits and who has a row: a pure state machine, first come first served. No torch, no clock, no text.

    submit ──▶ waiting ── admit ──▶ running (rows 0..n-1) ── leave ──▶ gone
               resumed ──┘                │
                  ▲────────── resume ─────┘      the next prompt of the same answer

Those who go on with their next prompt and those who come new are admitted in turns: a long file neither waits for
everybody who came after it, nor makes everybody wait for its end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Scheduler(Generic[T]):
    """Rows are dense: when one is left, the last row moves into its place, here and in the key/value slots alike."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._resumed_is_next = True
        self.waiting: deque[T] = deque()
        self.resumed: deque[T] = deque()
        self.running: list[T] = []

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.resumed and not self.running

    def submit(self, item: T) -> None:
        self.waiting.append(item)

    def admit(self) -> T | None:
        """The next to be prefilled, or `None`. One at a time: between two decode steps of the running rows there is
        never more than one prefill. It waits no more, and runs once `place` is called."""
        if len(self.running) >= self._max_rows or not (self.waiting or self.resumed):
            return None
        take_resumed = bool(self.resumed) and (self._resumed_is_next or not self.waiting)
        self._resumed_is_next = not take_resumed
        return (self.resumed if take_resumed else self.waiting).popleft()

    def place(self, item: T) -> None:
        """`item` was prefilled into the row behind the last."""
        assert len(self.running) < self._max_rows, "admit gives out no more items than there are rows"
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
        self.resumed.append(item)

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[int]:
        """Forget waiting items, and name the rows of running ones, highest first, so that they can be left in turn."""
        self.waiting = deque(item for item in self.waiting if not unwanted(item))
        self.resumed = deque(item for item in self.resumed if not unwanted(item))
        return [row for row in reversed(range(len(self.running))) if unwanted(self.running[row])]
