"""Token ids to text: whole characters only, never a part of a stop string. Pure but for the tokenizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from wire import TokenLogprob


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
    """The text of one answer, which may come from several prompts in turn, and the log-probabilities of its tokens.

    Joins each prompt's text to the text before with the prompt's `lead` (see `models.base.Prompt`). A token's
    log-probability comes with the text that it completes; those of a stop string and of what follows it never come.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._scanner = StopScanner(stops)
        self._lead: str | None = None
        self._detokenizer = Detokenizer(tokenizer)
        self._written = self._certain = 0  # characters given to the scanner, and got back
        self._text: list[str] = []  # certain and not taken
        self._logprobs: deque[tuple[TokenLogprob, int, int]] = deque()  # with where its text begins and ends

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def begin(self, lead: str | None) -> None:
        """The next tokens come from a new prompt."""
        self._detokenizer = Detokenizer(self._tokenizer)
        self._lead = lead

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        begin = self._written
        self._scan(self._detokenizer.push(token))
        if logprob is not None:
            self._logprobs.append((logprob, begin, self._written))

    def end_prompt(self) -> None:
        """No more tokens of this prompt."""
        self._scan(self._detokenizer.flush())

    def end(self) -> None:
        """No more tokens at all."""
        self._keep(self._scanner.flush())

    def take(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What has become certain since it was last taken."""
        text, self._text = "".join(self._text), []
        logprobs = []
        while self._logprobs and self._is_certain(*self._logprobs[0][1:]):
            logprobs.append(self._logprobs.popleft()[0])
        return text, tuple(logprobs)

    def _is_certain(self, begin: int, end: int) -> bool:
        return begin < self._certain if self.stopped else end <= self._certain

    def _scan(self, text: str) -> None:
        text = self._joined(text)
        self._written += len(text)
        self._keep(self._scanner.push(text))

    def _keep(self, text: str) -> None:
        if text:
            self._certain += len(text)
            self._text.append(text)

    def _joined(self, text: str) -> str:
        if self._lead is not None:
            text = text.lstrip()
            if text and self._written:
                text = self._lead + text
            self._lead = None if text else self._lead
        return text
