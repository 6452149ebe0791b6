"""The adapter under check, loaded, and the ways in which checks ask it. Knows no check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import engine.request
from check.asking import Probe, Reply, Run, prepared
from check.sounds import Sounds
from errors import BadRequest
from models.base import CausalModel, Clip, Prompt, TextModel, Turn
from wire import Capabilities, JobId, Sampling
from worker.serving import AnyEngine, Served

TEXTS = (
    "What is said?",
    "Describe all that can be heard in this recording, in one sentence, please.",
    "And?",
    "Who speaks here, and about what?",
    "Once more: what is it?",
    "Is this speech, music or noise?",
)
LENGTHS_S = (1.2, 3.1, 0.8, 2.3, 4.6, 1.7)
USUAL_S = 1.5
WIDE_ENOUGH_S = 5.0  # models that hear less at once get shorter clips


class Subject:
    """`name` is what `--model` would be. Answers have `max_tokens` at most. What is found of it is kept in
    `cards_dir`."""

    def __init__(self, name: str, served: Served, sounds: Sounds, max_tokens: int, cards_dir: Path) -> None:
        self.name = name
        self.served = served
        self.sounds = sounds
        self.max_tokens = max_tokens
        self.cards_dir = cards_dir

    @property
    def model(self) -> CausalModel | TextModel | None:
        """`None` for a cascade, which is two."""
        return self.served.model

    @property
    def engine(self) -> AnyEngine:
        return self.served.engine

    @property
    def capabilities(self) -> Capabilities:
        return self.served.capabilities

    @property
    def hears(self) -> bool:
        return self.capabilities.max_clips != 0

    @property
    def hears_several(self) -> bool:
        return self.capabilities.max_clips is None or self.capabilities.max_clips > 1

    @cached_property
    def reads_text_alone(self) -> bool:
        """Whether it answers where there is no audio."""
        try:
            self.ask(self.probe(TEXTS[0]))
        except BadRequest:
            return False
        return True

    # ----------------------------------------------------------------------------------------------- what is asked

    def clip(self, seconds: float, number: int = 0) -> Clip:
        """A clip for a few seconds of hearing; shorter, where the model's window is narrow."""
        window = self.capabilities.max_seconds_per_window or WIDE_ENOUGH_S
        return Clip((self.sounds.clip(seconds * min(1.0, window / WIDE_ENOUGH_S), number),))

    def probe(self, *parts: str | Clip, **sampling: Any) -> Probe:
        """One turn of the user's, greedily answered unless `sampling` says otherwise."""
        return self.talk(Turn("user", parts), **sampling)

    def talk(self, *turns: Turn, **sampling: Any) -> Probe:
        return Probe(turns, replace(Sampling(max_tokens=self.max_tokens, temperature=0.0), **sampling))

    def usual(self, number: int = 0, seconds: float = USUAL_S, **sampling: Any) -> Probe:
        """A clip and a question, or just a question where the model does not hear."""
        text = TEXTS[number % len(TEXTS)]
        return self.probe(*([self.clip(seconds, number)] if self.hears else []), text, **sampling)

    def varied(self, **sampling: Any) -> list[Probe]:
        """Of different lengths and texts; one without audio among them, where the model takes that."""
        probes = [self.usual(number, seconds, **sampling) for number, seconds in enumerate(LENGTHS_S)]
        if self.hears and self.reads_text_alone:
            probes[3] = self.probe(TEXTS[3], **sampling)
        return probes

    # --------------------------------------------------------------------------------------------------- and answered

    def ask(self, probe: Probe) -> Reply:
        """The answer to a request alone. Raises the `EardrumError` that it fails with; a refusal is a `BadRequest`."""
        return self.ask_together([probe])[0]

    def ask_together(self, probes: Sequence[Probe], *, staggered: bool = False) -> list[Reply]:
        """The answers to requests that come at once, or one a step."""
        run = Run(self.served)
        ids = []
        try:
            for probe in probes:
                ids.append(run.submit(probe))
                if staggered:
                    run.step()
            run.finish()
        except BaseException:
            self.engine.reset()  # nothing of this check is left for the next
            raise
        return [run.reply(job_id) for job_id in ids]

    def prompts(self, probe: Probe) -> Sequence[Prompt]:
        """What a `CausalModel` makes of a request; none of another model's. Raises `BadRequest`."""
        request = prepared(self.served, probe, JobId(0, "prompts"))
        return request.prompts if isinstance(request, engine.request.Request) else ()
