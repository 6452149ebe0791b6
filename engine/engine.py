"""The engine: requests in, events out, one step at a time. A step reads: admit, decode, record.

Called from one thread. Knows tokens and rows; not HTTP, not queues, not audio files. A request is several sequences
(one for each of its `n` choices), a sequence takes the request's prompts one after another, each in a row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch

from engine.sampling import RowSampling, sample
from engine.scheduler import Scheduler
from engine.slots import EncoderDecoderRows
from engine.text import AnswerText
from errors import InternalError
from models.base import CausalModel, PrefillFailed, Prompt
from wire import Delta, Failed, Finished, FinishReason, JobId, Sampling, Usage

log = logging.getLogger("eardrum.engine")

EngineEvent = Delta | Finished | Failed


@dataclass(frozen=True, eq=False)
class Request:
    """A prepared job. `audio_seconds` and `audio_parts` were heard while it was prepared."""

    id: JobId
    prompts: Seq[Prompt]
    sampling: Sampling
    audio_parts: int = 0
    audio_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("a model's `prepare` gave no prompt")


@dataclass(eq=False)
class Sequence:
    """One choice of a request on its way through the rows: all of its state."""

    request: Request
    choice: int
    text: AnswerText
    sampling: RowSampling
    prompt_index: int = 0
    prompt_tokens: int = 0  # sampled for the current prompt
    completion_tokens: int = 0
    last_token: int = -1
    cut: bool = False  # a prompt's answer filled the model's window
    events: list[EngineEvent] = field(default_factory=list)

    @property
    def prompt(self) -> Prompt:
        return self.request.prompts[self.prompt_index]

    @property
    def is_last_prompt(self) -> bool:
        return self.prompt_index == len(self.request.prompts) - 1

    def write(self, text: str) -> None:
        if text:
            self.events.append(Delta(self.request.id, self.choice, text))


class Engine:
    """Decodes the rows of all requests together. `max_rows` bounds how many."""

    def __init__(self, model: CausalModel, max_rows: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._bans: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget all requests, and begin with fresh slots."""
        self._scheduler: Scheduler[Sequence] = Scheduler(self._max_rows)
        self._rows = self._model.make_rows() or EncoderDecoderRows(self._model.module)

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def submit(self, request: Request) -> None:
        for choice in range(request.sampling.n):
            text = AnswerText(self._model.tokenizer, request.sampling.stop)
            text.begin(request.prompts[0].lead)
            self._scheduler.submit(Sequence(request, choice, text, self._row_sampling(request.sampling, choice)))

    def cancel(self, job_id: JobId) -> None:
        """Drop a request, wherever it is; its rows are free at once. An unknown one is no error."""
        for row in self._scheduler.withdraw(lambda sequence: sequence.request.id == job_id):
            self._leave(row)

    @torch.inference_mode()
    def admit(self) -> list[EngineEvent]:
        """Prefill at most one waiting sequence. One that fails takes only its own request with it."""
        sequence = self._scheduler.admit()
        if sequence is None:
            return []
        try:
            logits = self._rows.insert(sequence.prompt)
        except PrefillFailed:
            log.exception("prefill of %s failed", sequence.request.id)
            self.cancel(sequence.request.id)
            return [Failed(sequence.request.id, *InternalError("The model failed on this request.").fields())]
        self._scheduler.place(sequence)
        row = len(self._scheduler.running) - 1
        if self._model.hears_nothing(logits):
            return self._end_prompt(row)
        return self._record([sequence], self._sample(logits[-1:], [sequence]))

    @torch.inference_mode()
    def decode(self) -> list[EngineEvent]:
        """One decode step of all rows."""
        running = list(self._scheduler.running)
        if not running:
            return []
        logits = self._rows.step([sequence.last_token for sequence in running])
        return self._record(running, self._sample(logits, running))

    def _sample(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
        """A token for each sequence, never one that the model bans."""
        always, first = self._bans = self._bans or (
            _ban(logits, self._model.banned_ids),
            _ban(logits, self._model.banned_first_ids),
        )
        logits = logits.float() + always
        for row, sequence in enumerate(sequences):
            if not sequence.prompt_tokens:
                logits[row] += first
        return sample(logits, [sequence.sampling for sequence in sequences])

    def _record(self, sequences: Seq[Sequence], tokens: Seq[int]) -> list[EngineEvent]:
        """Give each sequence its token; what there is to tell now. From the last row down, as leaving moves rows."""
        first_row = len(self._scheduler.running) - len(sequences)
        events: list[EngineEvent] = []
        for offset in reversed(range(len(sequences))):
            events += self._record_one(first_row + offset, sequences[offset], tokens[offset])
        return events

    def _record_one(self, row: int, sequence: Sequence, token: int) -> list[EngineEvent]:
        if token in self._model.end_ids:
            return self._end_prompt(row)
        sequence.last_token = token
        sequence.prompt_tokens += 1
        sequence.completion_tokens += 1
        sequence.write(sequence.text.push(token))
        if sequence.text.stopped:
            return self._finish(row, "stop")
        if sequence.completion_tokens == sequence.request.sampling.max_tokens:
            sequence.write(sequence.text.end_prompt())
            return self._finish(row, "length")
        if sequence.prompt_tokens >= sequence.prompt.max_new_tokens:
            sequence.cut = True
            return self._end_prompt(row)
        return _taken(sequence)

    def _end_prompt(self, row: int) -> list[EngineEvent]:
        """The answer to a prompt is complete: go on with the next prompt, or finish."""
        sequence = self._scheduler.running[row]
        sequence.write(sequence.text.end_prompt())
        if sequence.is_last_prompt or sequence.text.stopped:
            return self._finish(row, "length" if sequence.cut and not sequence.text.stopped else "stop")
        self._leave(row)
        sequence.prompt_index += 1
        sequence.prompt_tokens = 0
        sequence.text.begin(sequence.prompt.lead)
        self._scheduler.resume(sequence)
        return _taken(sequence)

    def _finish(self, row: int, reason: FinishReason) -> list[EngineEvent]:
        sequence = self._scheduler.running[row]
        if not sequence.text.stopped:
            sequence.write(sequence.text.end())
        self._leave(row)
        request = sequence.request
        usage = Usage(
            prompt_tokens=sum(prompt.num_tokens for prompt in request.prompts),
            completion_tokens=sequence.completion_tokens,
            audio_tokens=sum(prompt.num_audio_tokens for prompt in request.prompts),
            audio_parts=request.audio_parts,
            audio_seconds=request.audio_seconds,
        )
        return [*_taken(sequence), Finished(request.id, sequence.choice, reason, usage)]

    def _leave(self, row: int) -> None:
        self._scheduler.leave(row)
        self._rows.remove(row)

    def _row_sampling(self, sampling: Sampling, choice: int) -> RowSampling:
        default = self._model.capabilities.default_temperature
        temperature = default if sampling.temperature is None else sampling.temperature
        generator = torch.Generator()
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed + choice)
        return RowSampling(temperature, sampling.top_p, generator)


def _ban(logits: torch.Tensor, ids: Seq[int]) -> torch.Tensor:
    """What to add to logits so that `ids` are never chosen, shape (vocabulary,)."""
    ban = torch.zeros(logits.shape[-1], device=logits.device)
    ban[list(ids)] = -torch.inf
    return ban


def _taken(sequence: Sequence) -> list[EngineEvent]:
    """The events of a sequence that nobody has been told of yet."""
    events, sequence.events = sequence.events, []
    return events
