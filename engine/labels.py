"""How likely each of several given answers is, for classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.modules import prefill_errors
from engine.request import Label
from models.base import Prefill, Rows

POSITIONS_AT_ONCE = 128  # rows times tokens of one pass; each has logits of the whole vocabulary
LABELS_AT_ONCE = 16  # each is a row with a copy of the prompt's keys and values for the moment


class LabelScorer:
    """Scores labels behind a prefilled prompt, a few in each pass, so that running answers need not wait for all."""

    def __init__(self, prefill: Prefill, labels: Sequence[Label]) -> None:
        self._prefill = prefill
        self._labels = labels
        self._scores: list[torch.Tensor] = []

    @property
    def done(self) -> bool:
        return len(self._scores) == len(self._labels)

    @torch.inference_mode()
    def advance(self, rows: Rows) -> None:
        """Score the next few. Raises `PrefillFailed`."""
        with prefill_errors():
            self._scores += _scores(rows, self._prefill, self._next())

    def _next(self) -> Sequence[Label]:
        """As many labels as fit into a pass, one at least."""
        left = self._labels[len(self._scores) :][:LABELS_AT_ONCE]
        count = 1
        while (
            count < len(left) and (count + 1) * max(len(label.ids) for label in left[: count + 1]) <= POSITIONS_AT_ONCE
        ):
            count += 1
        return left[:count]

    def probabilities(self) -> tuple[tuple[str, float], ...]:
        """Each label with its probability among the labels: the softmax over the labels of the sum of their tokens'
        log-probabilities after the prompt. Where one label begins another, the shorter is never less likely."""
        shares = torch.stack(self._scores).softmax(0).tolist()
        return tuple((label.text, share) for label, share in zip(self._labels, shares, strict=True))


def _scores(rows: Rows, prefill: Prefill, labels: Sequence[Label]) -> list[torch.Tensor]:
    """The sums of log-probabilities, as scalars."""
    assert prefill.logits is not None, "the prompt is computed"
    first = prefill.logits[-1:]
    longer = [label for label in labels if len(label.ids) > 1]
    following = rows.score(prefill.state, [label.ids[:-1] for label in longer]) if longer else []
    after = dict(zip(longer, following, strict=True))
    return [_score(torch.cat([first, after[label]]) if label in after else first, label.ids) for label in labels]


def _score(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """`logits`, shape (tokens, vocabulary): what each of `ids` was chosen from."""
    logits = logits.float()
    chosen = torch.tensor(ids, device=logits.device)[:, None]
    return (logits.gather(-1, chosen)[:, 0] - logits.logsumexp(-1)).double().sum()
