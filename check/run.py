"""The checks, in order; loads an adapter as the server does and runs them one after the other. What each does is in the
files that are imported here."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from audio.decode import Waveform
from check.answering import (
    cancels,
    counts_choices_and_tokens,
    honours_seeds,
    renders,
    stops_at_stop_strings,
    streamed_equals_unstreamed,
)
from check.batching import BATCHED, batched_equals_alone
from check.cost import costs, memory_mb, timed
from check.hearing import hears_long_audio, hears_the_end, keeps_order
from check.injection import keeps_placeholders
from check.outcome import Outcome, failed, passed, skipped, told
from check.sounds import Sounds, decoded
from check.subject import Subject
from config import Settings
from worker.cascade import is_cascade
from worker.serving import load

LOADS = "loads"

Checks = tuple[tuple[str, Callable[[Subject], Outcome]], ...]

CHECKS: Checks = (
    ("renders", renders),
    (BATCHED, batched_equals_alone),
    ("streamed equals unstreamed", streamed_equals_unstreamed),
    ("long audio", hears_long_audio),
    ("the end is heard", hears_the_end),
    ("order of audios", keeps_order),
    ("stop strings", stops_at_stop_strings),
    ("seed", honours_seeds),
    ("cancel", cancels),
    ("placeholders stay text", keeps_placeholders),
    ("choices and length", counts_choices_and_tokens),
    ("speed and memory", costs),
)


@dataclass(frozen=True)
class Report:
    """What was found of the adapter called `model`: each check's name and outcome, in order."""

    model: str
    outcomes: tuple[tuple[str, Outcome], ...]

    @property
    def is_good(self) -> bool:
        return all(outcome.status != "fail" for _, outcome in self.outcomes)


@dataclass(frozen=True)
class Options:
    """`recording` is speech in a file, for the model to hear instead of sweeps and noise. Answers have `max_tokens` at
    most."""

    recording: Path | None = None
    max_tokens: int = 24


def check(
    settings: Settings,
    options: Options,
    on_check: Callable[[str], object] = lambda name: None,
    checks: Checks = CHECKS,
) -> Report:
    """Run the checks on what `settings.model` names. `on_check` is told what is done next."""
    on_check(LOADS)
    try:
        subject, outcome = loaded(settings, options)
    except Exception as error:
        untried = ((name, skipped("it did not load")) for name, _ in checks)
        return Report(settings.model, ((LOADS, failed(told(error))), *untried))
    outcomes = [(LOADS, outcome)]
    for name, run in checks:
        on_check(name)
        outcomes.append((name, guarded(subject, run)))
    return Report(settings.model, tuple(outcomes))


def loaded(settings: Settings, options: Options) -> tuple[Subject, Outcome]:
    """The adapter as the server would serve it, had nothing been found of its batches yet; and what it says of itself.
    Raises what loading raises."""
    before_mb = memory_mb()
    seconds, served = timed(lambda: load(settings, _device(settings), heed_card=is_cascade(settings.model)))
    capabilities = served.capabilities
    sounds = Sounds(capabilities.sampling_rate, _recording(options, capabilities.sampling_rate))
    subject = Subject(settings.model, served, sounds, options.max_tokens, settings.cards_path)
    window = capabilities.max_seconds_per_window
    hears = "hears " + (f"{window:g} s at once, longer audio: {capabilities.long_audio}" if window else "any length")
    clips = "any number of clips" if capabilities.max_clips is None else f"{capabilities.max_clips} clips at most"
    return subject, passed(
        f"{seconds:.1f} s, {memory_mb() - before_mb:.0f} MB\n"
        f"{capabilities.sampling_rate} Hz, {f'{hears}, {clips}' if subject.hears else 'takes no audio'}\n"
        f"{capabilities.batching} batching: {capabilities.why}"
    )


def _device(settings: Settings) -> str:
    has_gpu = settings.device != "cpu" and torch.cuda.is_available()
    return "cuda:0" if has_gpu or settings.device == "cuda" else "cpu"


def _recording(options: Options, sampling_rate: int) -> Waveform | None:
    return decoded(options.recording.read_bytes(), sampling_rate) if options.recording else None


def guarded(subject: Subject, run: Callable[[Subject], Outcome]) -> Outcome:
    """A check's outcome; one that raises has failed, and leaves nothing in the engine."""
    logger, causes = logging.getLogger("eardrum"), _Causes()
    logger.addHandler(causes)
    try:
        return run(subject)
    except Exception as error:
        subject.engine.reset()
        return failed(told(error), "; ".join(f"behind it: {cause}" for cause in causes.seen))
    finally:
        logger.removeHandler(causes)


class _Causes(logging.Handler):
    """Collects the exceptions that the engine logs where it tells clients nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception) and (text := told(error)) not in self.seen:
            self.seen.append(text)
