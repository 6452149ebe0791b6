"""Token ids to text deltas: whole characters only, never a part of a stop string. Pure but for the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text of one row's tokens as it grows. A character's bytes are held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._stream.step(self._tokenizer, token) or ""
        self._given += len(text)
        return text

    def flush(self) -> str:
        """What was held back: the bytes of a character that stayed incomplete, as replacement characters."""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        rest, self._given = whole[self._given :], len(whole)
        return rest


class StopScanner:
    """Passes text on until a stop string shows up, and holds back what may become one.

    >>> scanner = StopScanner(["END"])
    >>> scanner.push("the E"), scanner.push("ND of"), scanner.stopped
    ('the ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain now. Nothing more once `stopped`."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._give(min(found), forget=True)
        return self._give(len(self._held) - self._longest_beginning())

    def flush(self) -> str:
        """What was held back; the text has ended."""
        return self._give(len(self._held))

    def _longest_beginning(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for size in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0

    def _give(self, count: int, forget: bool = False) -> str:
        text, self._held = self._held[:count], "" if forget else self._held[count:]
        return text


class AnswerText:
    """The text of one answer, which may come from several prompts in turn.

    Joins each prompt's text to the text before with the prompt's `lead` (see `models.base.Prompt`).
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._scanner = StopScanner(stops)
        self._has_text = False
        self._lead: str | None = None
        self._detokenizer = Detokenizer(tokenizer)

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def begin(self, lead: str | None) -> None:
        """The next tokens come from a new prompt."""
        self._detokenizer = Detokenizer(self._tokenizer)
        self._lead = lead

    def push(self, token: int) -> str:
        return self._scanner.push(self._joined(self._detokenizer.push(token)))

    def end_prompt(self) -> str:
        """The rest of this prompt's text."""
        return self._scanner.push(self._joined(self._detokenizer.flush()))

    def end(self) -> str:
        """The rest of the answer."""
        return self._scanner.flush()

    def _joined(self, text: str) -> str:
        if self._lead is not None:
            text = text.lstrip()
            if text and self._has_text:
                text = self._lead + text
            self._lead = None if text else self._lead
        self._has_text = self._has_text or bool(text)
        return text
