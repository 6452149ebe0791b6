"""How far it is: a bar where stderr is a terminal, and a line for each file where it is not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]


@contextmanager
def progress(total: int) -> Iterator[Advance]:
    """Yields what is called with a sentence for each file that is over."""
    with _bar(total) if sys.stderr.isatty() else _lines(total) as advance:
        yield advance


@contextmanager
def _lines(total: int) -> Iterator[Advance]:
    count = 0

    def advance(sentence: str) -> None:
        nonlocal count
        count += 1
        print(f"{count}/{total} {sentence}", file=sys.stderr, flush=True)

    yield advance


@contextmanager
def _bar(total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)  # a file's name may look like markup
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), text)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)

        def advance(sentence: str) -> None:
            bar.update(task, advance=1, description=sentence)

        yield advance
