"""From logits to the token that each sequence says next: the model's bans, the request's limits, its grammar, a draw.

    logits ─ bans ─▶ log-probabilities ─ ends, grammar ─▶ sampling ─▶ token, with the log-probability it had

Log-probabilities are the model's own, at temperature 1 and before bias, penalties and grammar.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from engine.grammar import GrammarFailed, Matcher, allowed_tokens
from engine.sampling import sample, with_logit
from engine.sequence import Sequence
from engine.vocabulary import Vocabulary
from errors import BadRequest, EardrumError, InternalError
from models.base import CausalModel
from wire import TokenLogprob


@dataclass(frozen=True)
class Chosen:
    """A sequence's next token; or why there is none, and its request fails."""

    token: int
    logprob: TokenLogprob | None = None
    error: EardrumError | None = None


class Chooser:
    """Chooses for one model."""

    def __init__(self, model: CausalModel, vocabulary: Vocabulary) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._end_ids = sorted(model.end_ids)
        self._timestamps = model.timestamp_ids
        self._banned = sorted({*model.banned_ids, *model.placeholder_ids}.difference(self._timestamps))
        self._banned_index: torch.Tensor | None = None

    def choose(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> list[Chosen]:
        """A token for each sequence by its row of `logits`, shape (rows, vocabulary); they may be changed."""
        logits = logits.float()
        self._ban(logits, sequences)
        errors = _overflowed(logits)
        logprobs = Logprobs(logits, sequences, self._vocabulary)
        self._hold_open(logits, sequences)
        errors |= self._constrain(logits, sequences)
        for row in errors:
            logits[row] = 0.0  # something to sample from; it is not told
        tokens = sample(logits, [sequence.sampler for sequence in sequences])
        found = logprobs.of(tokens)
        return [Chosen(token, found.get(row), errors.get(row)) for row, token in enumerate(tokens)]

    def _ban(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> None:
        """What the model must not say, and what it must not begin with."""
        if self._banned:
            if self._banned_index is None or self._banned_index.device != logits.device:
                self._banned_index = self._index(with_logit(self._banned, logits.shape[-1]), logits)
            logits.index_fill_(1, self._banned_index, -torch.inf)
        for row, sequence in enumerate(sequences):
            if not sequence.prompt_tokens and self._model.banned_first_ids:
                logits[row, with_logit(self._model.banned_first_ids, logits.shape[-1])] = -torch.inf
        self._ban_timestamps(logits, sequences)

    def _ban_timestamps(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> None:
        """All of them, or for a sequence that tells times what would make no sense."""
        if not self._timestamps:
            return
        if all(sequence.times is None for sequence in sequences):
            logits[:, self._timestamps.start : self._timestamps.stop] = -torch.inf
            return
        for row, sequence in enumerate(sequences):
            if sequence.times is None:
                logits[row, self._timestamps.start : self._timestamps.stop] = -torch.inf
            else:
                sequence.times.restrict(logits[row], self._end_ids)

    def _hold_open(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> None:
        """No end where the request wants none yet."""
        open_rows = [row for row, sequence in enumerate(sequences) if not sequence.may_end]
        if open_rows:
            rows, ends = self._index(open_rows, logits), self._index(self._end_ids, logits)
            logits[rows[:, None], ends] = -torch.inf

    def _constrain(self, logits: torch.Tensor, sequences: Seq[Sequence]) -> dict[int, EardrumError]:
        """Leave what the grammars allow. Rows for which nothing is left have an error."""
        matchers = {row: sequence.matcher for row, sequence in enumerate(sequences) if sequence.matcher is not None}
        errors: dict[int, EardrumError] = {}
        masks = self._masks(matchers, logits.shape[-1], sequences, errors)
        for row, mask in masks.items():
            logits[row].masked_fill_(~mask.to(logits.device), -torch.inf)
            if bool(logits[row].amax() == -torch.inf):
                errors[row] = _refused(sequences[row], "the model cannot write what it asks for")
        return errors

    def _masks(
        self, matchers: dict[int, Matcher], size: int, sequences: Seq[Sequence], errors: dict[int, EardrumError]
    ) -> dict[int, torch.Tensor]:
        """What each grammar allows now; those that fail go to `errors`."""
        rows = list(matchers)
        while rows:
            try:
                masks = allowed_tokens([matchers[row] for row in rows], size, self._model.end_ids)
            except GrammarFailed as failure:
                row = rows.pop(failure.index)
                errors[row] = _refused(sequences[row], "it became too complex while it was followed")
            else:
                return dict(zip(rows, masks, strict=True))
        return {}

    def _index(self, ids: Seq[int], like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.long, device=like.device)


def _overflowed(logits: torch.Tensor) -> dict[int, EardrumError]:
    """Rows in which no number is left to choose by. To draw from NaN would give a token that does not exist."""
    finite = logits.amax(-1).isfinite().tolist()
    error = InternalError("The model's arithmetic overflowed on this request.")
    return {row: error for row, is_finite in enumerate(finite) if not is_finite}


def _refused(sequence: Sequence, why: str) -> BadRequest:
    place = sequence.request.grammar_place
    return BadRequest(f"`{place}`: {why}.", place)


class Logprobs:
    """The log-probabilities of a step, for the rows that ask for them: shape (asking rows, vocabulary)."""

    def __init__(self, logits: torch.Tensor, sequences: Seq[Sequence], vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        wanted = {row: sequence.request.sampling.top_logprobs for row, sequence in enumerate(sequences)}
        self._num_top = {row: top for row, top in wanted.items() if top is not None}
        self._values = logits[list(self._num_top)].log_softmax(-1) if self._num_top else None

    def of(self, tokens: Seq[int]) -> dict[int, TokenLogprob]:
        """By row. One selection of the likeliest for all rows."""
        if self._values is None:
            return {}
        own = self._values.gather(
            -1, torch.tensor([[tokens[row]] for row in self._num_top], device=self._values.device)
        )
        likeliest = self._values.topk(max(self._num_top.values()))
        return {
            row: TokenLogprob(self._bytes(tokens[row]), value, self._top(ids[:count], values[:count]))
            for (row, count), (value,), ids, values in zip(
                self._num_top.items(), own.tolist(), likeliest.indices.tolist(), likeliest.values.tolist(), strict=True
            )
        }

    def _top(self, ids: Seq[int], values: Seq[float]) -> tuple[tuple[bytes, float], ...]:
        return tuple((self._bytes(token), value) for token, value in zip(ids, values, strict=True))

    def _bytes(self, token: int) -> bytes:
        return self._vocabulary.token_bytes(token)
