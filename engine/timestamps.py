"""Whisper's timestamps, which are tokens: what they say, and which of them may come next.

Rules: openai/whisper, decoding.py, `ApplyTimestampRules`. Times come in pairs around each piece of text, never go back,
and the first is within a second of the window's beginning.

    <|0.00|> And so, my fellow Americans, <|4.00|><|4.00|> ask not <|6.20|> end
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.base import Prompt

STEP_S = 0.02  # between two timestamps: a position of the encoder
MAX_FIRST = 50  # the first timestamp is this one at most: 1 second


class Times:
    """The timestamps that one prompt's answer has so far. `first`: the id of the first one, 0 seconds."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._last: int | None = None  # timestamp
        self._num_tokens = 0
        self._tail = (False, False)  # whether the last two tokens are timestamps

    def push(self, token: int) -> float | None:
        """The next token of the answer; the seconds that it tells, if it is a timestamp."""
        is_time = token >= self._first
        self._tail = (self._tail[1], is_time)
        self._num_tokens += 1
        if not is_time:
            return None
        self._last = token
        return (token - self._first) * STEP_S

    def restrict(self, logits: torch.Tensor, end_ids: Sequence[int]) -> None:
        """Leave in `logits`, shape (vocabulary,), what may come next."""
        first = self._first
        logits[first - 1] = -torch.inf  # the token that says there are none
        if not self._num_tokens:
            logits[:first] = -torch.inf
            logits[first + MAX_FIRST + 1 :] = -torch.inf
            return
        before, last = self._tail
        if last and (before or self._num_tokens == 1):
            logits[first:] = -torch.inf  # a pair is complete: text, or the end
        elif last:
            ends = logits[list(end_ids)].clone()
            logits[:first] = -torch.inf  # text has been closed: the next piece is opened, or all is over
            logits[list(end_ids)] = ends
        if self._last is not None:
            opens = last and not before
            logits[first : self._last + (0 if opens else 1)] = -torch.inf
        self._prefer_time(logits)

    def _prefer_time(self, logits: torch.Tensor) -> None:
        """Where all timestamps together are likelier than any other token, it is one of them."""
        times, others = logits[self._first :], logits[: self._first]
        if bool(times.logsumexp(0) > others.amax()):
            logits[: self._first] = -torch.inf


def times_of(prompt: Prompt) -> Times | None:
    """For a prompt whose answer tells times."""
    return None if prompt.first_timestamp is None else Times(prompt.first_timestamp)
