"""The engine: requests in, events out, one step at a time. A step reads: expire, admit, decode, record.

Called from one thread. Knows tokens and rows; not HTTP, not queues, not audio files. A request is several sequences
(one for each of its `n` choices), a sequence takes the request's prompts one after another, each in a row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq

import torch

from engine.choose import Chooser, Chosen
from engine.labels import LabelScorer
from engine.request import Request, RequestBuilder
from engine.rows import EngineOptions, RowsFactory
from engine.sampling import RowSampler
from engine.scheduler import Scheduler
from engine.segments import Spans
from engine.sequence import Run, Sequence, SharedPrefill, text_before
from engine.text import AnswerText
from engine.timestamps import times_of
from errors import BadRequest, DeadlineExceeded, EardrumError, InternalError
from models.base import CausalModel
from wire import Batching, Delta, Failed, Finished, FinishReason, JobId

log = logging.getLogger("eardrum.engine")

EngineEvent = Delta | Finished | Failed

MAX_PREFILLS = 2  # of one request that are kept for its other choices


class Engine:
    """Decodes the rows of all requests together."""

    def __init__(self, model: CausalModel, options: EngineOptions) -> None:
        self._model = model
        self._options = options
        self._factory = RowsFactory(model, options)
        self.requests = RequestBuilder(model)
        self._chooser = Chooser(model, self.requests.vocabulary)
        self.reset()

    def reset(self) -> None:
        """Forget all requests, and begin with fresh slots."""
        self._rows = self._factory.make()
        self._scheduler: Scheduler[Sequence] = Scheduler(self._factory.max_rows, self._rows.max_tokens)

    @property
    def batching(self) -> tuple[Batching, str]:
        """How requests share the model, and why."""
        if self._factory.reason_for_one_row:
            return "serial", f"the model {self._factory.reason_for_one_row}, so it answers one request at a time"
        return "continuous", "each prompt is computed alone, and all answers are decoded together, row by row"

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    def submit(self, request: Request) -> None:
        run = Run(request)
        for choice in range(request.sampling.n):
            self._scheduler.submit(self._sequence(run, choice))

    def _sequence(self, run: Run, choice: int) -> Sequence:
        request, sampling = run.request, run.request.sampling
        text = AnswerText(self._model.tokenizer, sampling.stop, request.kept)
        first = request.prompts[0]
        text.begin(first.lead, request.opening(first), text_before(first))
        sampler = RowSampler(sampling, self._model.defaults, choice, request.prompts[0].token_ids)
        matcher = request.grammar.start() if request.grammar else None
        spans = Spans(request.heard.windows, len(request.prompts)) if request.tells_segments else None
        return Sequence(run, choice, text, sampler, matcher, spans=spans, times=times_of(request.prompts[0]))

    def cancel(self, job_id: JobId) -> None:
        """Drop a request, wherever it is; its rows are free at once. An unknown one is no error."""
        for row in self._scheduler.withdraw(lambda sequence: sequence.request.id == job_id):
            self._leave(row)

    def expire(self, now: float) -> list[EngineEvent]:
        """Drop the requests whose deadline is before `now`, in seconds of the machine's monotonic clock."""
        overdue = {sequence.request.id for sequence in self._scheduler.overdue(now)}
        return [self._fail(job_id, DeadlineExceeded("The request's time is over.")) for job_id in overdue]

    # ------------------------------------------------------------------------------------------------------- admission

    @torch.inference_mode()
    def admit(self) -> list[EngineEvent]:
        """Give rows to those who are next. Computes one prompt at most, or a piece of one, so that running answers wait
        for no more than that; what is computed already is only placed. Catches whatever is raised, as all of it is one
        request's own: one that fails here fails alone."""
        events: list[EngineEvent] = []
        computed = False
        while (sequence := self._scheduler.next()) is not None:
            try:
                shared = self._prefill_of(sequence)
                if shared is not None and not shared.is_ready:
                    if computed:
                        break
                    computed = True
                    if not self._advance(sequence, shared):
                        break
                events += self._place(sequence, shared)
            except EardrumError as error:
                events.append(self._fail(sequence.request.id, error))
            except Exception:
                log.exception("%s failed before its first token", sequence.request.id)
                events.append(self._fail(sequence.request.id, InternalError("The model failed on this request.")))
        return events

    def _prefill_of(self, sequence: Sequence) -> SharedPrefill | None:
        """What a sequence needs, begun by the choice that comes first; `None` for a sequence that was set aside."""
        if sequence.aside is not None:
            return None
        prefills, index = sequence.run.prefills, sequence.prompt_index
        if index not in prefills:
            self._check_size(sequence)
            if len(prefills) == MAX_PREFILLS:  # choices that are far behind compute theirs again
                del prefills[min(prefills)]
            prefill = self._rows.begin(sequence.prompt, sequence.request.audio_keys[index])
            prefills[index] = SharedPrefill(prefill, sequence.request.sampling.n)
        return prefills[index]

    def _check_size(self, sequence: Sequence) -> None:
        if self._scheduler.is_oversized(sequence):
            raise BadRequest(
                f"The prompt takes {sequence.num_columns} tokens; the server has memory for "
                f"{self._scheduler.max_tokens} tokens in all. Send less text or audio.",
                "messages",
            )

    def _advance(self, sequence: Sequence, shared: SharedPrefill) -> bool:
        """Compute a prompt, or a piece of it, or score some of its labels; whether all is done."""
        run, prefill = sequence.run, shared.prefill
        if shared.scorer is not None:
            shared.scorer.advance(self._rows)
        else:
            prefill.advance(self._options.prefill_tokens)
            if prefill.logits is not None:
                run.num_cached_tokens[sequence.prompt_index] = prefill.num_cached_tokens
                run.language = run.language or sequence.prompt.language_by(prefill.following)
                shared.scorer = LabelScorer(prefill, run.request.labels) if run.request.labels else None
        if shared.is_ready and shared.scorer is not None:
            run.labels = shared.scorer.probabilities()
        return shared.is_ready

    def _place(self, sequence: Sequence, shared: SharedPrefill | None) -> list[EngineEvent]:
        """Into the row behind the last; a fresh prompt has its first token from the prefill."""
        self._rows.insert(sequence.aside if shared is None else shared.prefill.state)
        self._scheduler.place(sequence)
        self._scheduler.max_tokens = self._rows.max_tokens
        self._factory.learn(self._rows.max_tokens)
        if shared is None:
            sequence.aside = None
            return []
        self._share(sequence, shared)
        logits = shared.prefill.logits
        assert logits is not None, "it is ready"
        if sequence.may_be_empty and self._model.hears_nothing(logits[sequence.prompt.num_context :]):
            return self._end_prompt(len(self._scheduler.running) - 1)
        return self._record([sequence], self._chooser.choose(logits[-1:].clone(), [sequence]))

    def _share(self, sequence: Sequence, shared: SharedPrefill) -> None:
        """One choice less needs the prefill."""
        shared.choices_to_come -= 1
        if not shared.choices_to_come:
            del sequence.run.prefills[sequence.prompt_index]

    # ---------------------------------------------------------------------------------------------------------- decode

    @torch.inference_mode()
    def decode(self) -> list[EngineEvent]:
        """One decode step of all rows."""
        self._make_memory()
        running = list(self._scheduler.running)
        if not running:
            return []
        logits = self._rows.step([sequence.last_token for sequence in running])
        return self._record(running, self._chooser.choose(logits, running))

    def _make_memory(self) -> None:
        """Set rows aside until the others' next column fits. They go on later, where they stopped."""
        while (row := self._scheduler.overflowing()) is not None:
            state = self._rows.set_aside(row)
            self._rows.remove(row)
            self._scheduler.set_aside(row).aside = state

    # ---------------------------------------------------------------------------------------------------------- record

    def _record(self, sequences: Seq[Sequence], chosen: Seq[Chosen]) -> list[EngineEvent]:
        """Give each sequence its token; what there is to tell now. From the last row down, as leaving moves rows."""
        first_row = len(self._scheduler.running) - len(sequences)
        events: list[EngineEvent] = []
        failed: dict[JobId, EardrumError] = {}
        for offset in reversed(range(len(sequences))):
            sequence, choice = sequences[offset], chosen[offset]
            if choice.error is not None:
                failed[sequence.request.id] = choice.error
                continue
            try:
                events += self._record_one(first_row + offset, sequence, choice)
            except Exception:  # its text's or its grammar's, so its own
                log.exception("%s failed on a token", sequence.request.id)
                failed[sequence.request.id] = InternalError("The server failed to write this answer.")
        return events + [self._fail(job_id, error) for job_id, error in failed.items()]

    def _record_one(self, row: int, sequence: Sequence, chosen: Chosen) -> list[EngineEvent]:
        if chosen.token in self._model.end_ids:
            return self._end_prompt(row)
        sequence.push(chosen.token, chosen.logprob)
        if sequence.text.stopped:
            return self._finish(row, "stop")
        if sequence.completion_tokens == sequence.request.sampling.max_tokens:
            sequence.text.end_prompt()
            return self._finish(row, "length")
        if sequence.matcher is not None and sequence.matcher.finished:
            return self._end_prompt(row)
        if sequence.prompt_tokens >= self._max_new_tokens(sequence):
            sequence.cut = True
            return self._end_prompt(row)
        return list(sequence.deltas())

    def _max_new_tokens(self, sequence: Sequence) -> int:
        """The room for a prompt's answer, in the model's window and in the memory of one row."""
        prompt, limit = sequence.prompt, self._scheduler.max_tokens
        return prompt.max_new_tokens if limit is None else min(prompt.max_new_tokens, limit - prompt.num_columns)

    def _end_prompt(self, row: int) -> list[EngineEvent]:
        """The answer to a prompt is complete: go on with the next prompt, or finish."""
        sequence = self._scheduler.running[row]
        sequence.text.end_prompt()
        if sequence.is_last_prompt or sequence.text.stopped:
            return self._finish(row, "length" if sequence.cut and not sequence.text.stopped else "stop")
        self._leave(row)
        deltas = sequence.deltas()
        sequence.next_prompt()
        self._scheduler.resume(sequence)
        return list(deltas)

    def _finish(self, row: int, reason: FinishReason) -> list[EngineEvent]:
        sequence = self._scheduler.running[row]
        sequence.text.end()
        self._leave(row)
        return [*sequence.deltas(), sequence.finished(reason)]

    def _fail(self, job_id: JobId, error: EardrumError) -> Failed:
        self.cancel(job_id)
        return Failed(job_id, *error.fields())

    def _leave(self, row: int) -> None:
        self._scheduler.leave(row)
        self._rows.remove(row)
