"""What a model costs: memory, and how fast it writes alone and in company. Promises nothing; it is told."""

from __future__ import annotations

import resource
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

import torch

from check.outcome import Outcome, passed
from check.subject import Subject

T = TypeVar("T")

MB = 1_000_000
KIB = 1024
COMPANY = 8
UNHEARD = 100  # the number of the first clip that no other check has: nothing of it is in a cache


def memory_mb() -> float:
    """The most that this process has held so far, in the host's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / MB  # Linux counts in KiB


def costs(subject: Subject) -> Outcome:
    """Peak memory, and tokens a second at 1 and at 8 requests."""
    alone, together = _speed(subject, UNHEARD), _speed(subject, *range(UNHEARD + 1, UNHEARD + 1 + COMPANY))
    speeds = f"{alone:.1f} tokens/s alone, {together:.1f} with {COMPANY} requests, prompts and all"
    memory = f"{memory_mb():.0f} MB at most"
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        memory += f", {torch.cuda.max_memory_allocated() / MB:.0f} MB of the GPU's"
    return passed(f"{speeds}; {memory}")


def _speed(subject: Subject, *numbers: int) -> float:
    probes = [subject.usual(number) for number in numbers]
    seconds, replies = timed(lambda: subject.ask_together(probes))
    return sum(reply.usage.completion_tokens for reply in replies) / seconds


def timed(function: Callable[[], T]) -> tuple[float, T]:
    """The seconds that a call takes, and what it returns."""
    started = perf_counter()
    result = function()
    return perf_counter() - started, result
