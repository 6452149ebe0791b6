"""The tiny models as the engine takes them, and a run of an engine to its end. Text is token ids: answers tell all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.engine import Engine
from engine.rows import EngineOptions
from models.base import CausalModel, Conversation, Prompt
from tests.support.tiny_models import END, VOCABULARY, TinyModel
from wire import Capabilities, Delta, Failed, Finished, Job, JobId, Sampling


def numbers_tokenizer() -> Tokenizer:
    """Token 17 is written "17"."""
    vocabulary = {str(i): i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


class TinyCausal(CausalModel):
    """A tiny model whose prompts are given, not prepared."""

    capabilities = Capabilities(16_000, None, "error", "continuous")

    def __init__(self, tiny: TinyModel) -> None:
        self.module = tiny.module
        self.tokenizer = numbers_tokenizer()
        self.end_ids = frozenset({END})
        self.placeholder_ids = tiny.audio_token_ids
        self._make_inputs = tiny.make_inputs

    def setup(self, device: str, dtype: str) -> None:
        """It is loaded."""

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        raise NotImplementedError

    def prompt(self, clips: Sequence[np.ndarray], text: str, max_new_tokens: int = 1000) -> Prompt:
        inputs = self._make_inputs(clips, text)
        tokens = inputs.get("decoder_input_ids", inputs.get("input_ids")).shape[1]
        return Prompt(inputs, tokens, 0, max_new_tokens)


class EngineRun:
    """Steps an engine, and collects what it tells, by request and choice."""

    def __init__(self, model: CausalModel, max_rows: int = 4, **options: object) -> None:
        self.engine = Engine(model, EngineOptions(max_rows=max_rows, **options))
        self.texts: dict[tuple[str, int], str] = defaultdict(str)
        self.deltas: list[Delta] = []
        self.ends: dict[tuple[str, int], Finished] = {}
        self.failed: dict[str, Failed] = {}
        self.order: list[str] = []  # whose first text came when

    def submit(self, name: str, *prompts: Prompt, job: Job | None = None, **sampling: object) -> JobId:
        """`job` brings what is not sampling."""
        id_ = JobId(0, name)
        job = job or Job(id_, (), Sampling(**sampling))
        requests = self.engine.requests
        self.engine.submit(requests.build(job, prompts, requests.compile(job)))
        return id_

    def step(self, now: float = 0.0) -> None:
        for event in (*self.engine.expire(now), *self.engine.admit(), *self.engine.decode()):
            key = event.job_id.key
            if isinstance(event, Delta):
                if not self.texts[key, event.choice]:
                    self.order.append(key)
                self.texts[key, event.choice] += event.text
                self.deltas.append(event)
            elif isinstance(event, Finished):
                assert (key, event.choice) not in self.ends, "a choice ends once"
                self.ends[key, event.choice] = event
            else:
                assert key not in self.failed, "a request fails once"
                self.failed[key] = event

    def finish(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if self.engine.idle:
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def tokens(self, name: str, choice: int = 0) -> list[int]:
        return [int(word) for word in self.texts[name, choice].split()]
