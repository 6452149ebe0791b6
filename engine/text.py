"""Token ids to text: whole characters only, never a part of a stop string. Pure but for the tokenizer."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

from wire import TokenLogprob

BROKEN = "\ufffd"  # what decoders write for a byte that is no character's
NONE_KEPT: Mapping[int, str] = {}
MAX_PENDING_TOKENS = 16  # a character has 4 bytes; more tokens without a whole one are broken, and told as such


class Detokenizer:
    """The text of one row's tokens as it grows. A character's bytes are held back until it is whole.

    What tokens say may depend on those before them: SentencePiece drops the blank of a first word. So the few that
    are pending are decoded behind those of the last text, and that text is taken off:

        ids        … [ before ][ pending ]
        text       … [ given  ][ next    ]

    The `DecodeStream` of tokenizers does likewise, but raises on broken bytes that change the text of those before
    them, and decodes ever more ids while there is no text. Special tokens have no text, but for those in `kept`.
    """

    def __init__(self, tokenizer: Tokenizer, kept: Mapping[int, str] = NONE_KEPT, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._before = list(before)
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        if token in self._kept:
            return self.flush() + self._kept[token]
        self._pending.append(token)
        text = self._next_text()
        if text and not text.endswith(BROKEN):
            return self._give(text)
        if self._is_silent(token):
            self._pending.pop()
        return self._give(text) if len(self._pending) == MAX_PENDING_TOKENS else ""

    def flush(self) -> str:
        """What was held back: the bytes of a character that stayed incomplete, as replacement characters."""
        return self._give(self._next_text())

    def _next_text(self) -> str:
        given, both = self._decode(self._before), self._decode(self._before + self._pending)
        # A byte-fallback decoder takes all neighbouring bytes for broken when one is
        return both[len(given) :] if both.startswith(given) else self._decode(self._pending)

    def _give(self, text: str) -> str:
        if text:  # tokens without any are nothing to decode the next ones behind
            self._before = self._pending
        self._pending = []
        return text

    def _is_silent(self, token: int) -> bool:
        """Whether the text goes on as if the token had not come: a special one, or none of the vocabulary."""
        if self._tokenizer.id_to_token(token) is None:
            return True
        return not self._decode([token]) and self._tokenizer.decode([token], skip_special_tokens=False) != ""

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


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
        return max((self._beginning_of(stop) for stop in self._stops), default=0)

    def _beginning_of(self, stop: str) -> int:
        """The same for one of them. Only beginnings with the held text's last character are worth a comparison."""
        size = min(len(stop) - 1, len(self._held))
        while size and not self._held.endswith(stop[:size]):
            size = stop.rfind(self._held[-1], 0, size - 1) + 1
        return size

    def _give(self, count: int, forget: bool = False) -> str:
        text, self._held = self._held[:count], "" if forget else self._held[count:]
        return text


class AnswerText:
    """The text of one answer, which may come from several prompts in turn, and the log-probabilities of its tokens.

    Joins each prompt's text to the text before with the prompt's `lead` (see `models.base.Prompt`). A token's
    log-probability comes with the text that it completes, or begins: a token without text of its own waits for the next
    that has some. Those of a stop string and of what follows it never come. `kept`: special tokens that are text here.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], kept: Mapping[int, str] = NONE_KEPT) -> None:
        self._tokenizer, self._kept = tokenizer, kept
        self._scanner = StopScanner(stops)
        self._lead: str | None = None
        self._detokenizer = Detokenizer(tokenizer, kept)
        self._written = self._certain = 0  # characters given to the scanner, and got back
        self._text: list[str] = []  # certain and not taken
        self._textless: list[TokenLogprob] = []  # of the tokens since the last text
        self._logprobs: deque[tuple[TokenLogprob, int, int]] = deque()  # with where its text begins and ends

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def begin(self, lead: str | None, opening: str = "", before: Sequence[int] = ()) -> None:
        """The next tokens come from a new prompt; they go on the text of the tokens `before`. `opening`: what it has
        written of their text itself."""
        self._detokenizer = Detokenizer(self._tokenizer, self._kept, before)
        self._lead = lead
        self._scan(opening)

    def push(self, token: int, logprob: TokenLogprob | None = None) -> None:
        if logprob is not None:
            self._textless.append(logprob)
        begin = self._written
        self._scan(self._detokenizer.push(token))
        if self._written > begin:
            self._place_logprobs(begin)

    def end_prompt(self) -> None:
        """No more tokens of this prompt."""
        begin = self._written
        self._scan(self._detokenizer.flush())
        self._place_logprobs(begin)

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

    def _place_logprobs(self, begin: int) -> None:
        """The text from `begin` on is that of the tokens since the text before."""
        self._logprobs.extend((logprob, begin, self._written) for logprob in self._textless)
        self._textless.clear()

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
