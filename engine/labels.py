"""How likely each of several given answers is, for classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.request import Label
from models.base import Prefill, PrefillFailed, Rows

LABELS_AT_ONCE = 16  # each is a row of its own, with a copy of the prompt's keys and values for the moment


@torch.inference_mode()
def label_probabilities(rows: Rows, prefill: Prefill, labels: Sequence[Label]) -> tuple[tuple[str, float], ...]:
    """Each label with its probability among the labels: the softmax over the labels of the sum of their tokens'
    log-probabilities after the prompt. Where one label begins another, the shorter is never less likely. Raises
    `PrefillFailed`."""
    try:
        scores = [
            score
            for i in range(0, len(labels), LABELS_AT_ONCE)
            for score in _scores(rows, prefill, labels[i:][:LABELS_AT_ONCE])
        ]
        shares = torch.stack(scores).softmax(0).tolist()
    except Exception as error:
        raise PrefillFailed from error
    return tuple((label.text, share) for label, share in zip(labels, shares, strict=True))


def _scores(rows: Rows, prefill: Prefill, labels: Sequence[Label]) -> list[torch.Tensor]:
    """The sums of log-probabilities, as scalars in float64."""
    assert prefill.logits is not None, "the prompt is computed"
    first = prefill.logits[-1:]
    longer = [label for label in labels if len(label.ids) > 1]
    following = rows.score(prefill.state, [label.ids[:-1] for label in longer]) if longer else []
    after = dict(zip(longer, following, strict=True))
    return [_score(torch.cat([first, after[label]]) if label in after else first, label.ids) for label in labels]


def _score(logits: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
    """`logits`, shape (tokens, vocabulary): what each of `ids` was chosen from."""
    chosen = torch.tensor(ids, device=logits.device)[:, None]
    return logits.double().log_softmax(-1).gather(-1, chosen).sum()
