"""A model without weights, for trying clients and for testing the server: it says what it heard, and fails on demand.

Orders stand in the text of the last message, as `#name` or `#name=value`; without one it answers with the seconds of
each clip and the text it was given.

    #say=words      answer with these words ("_" for a blank)     #fail=prepare   a 500 before anything runs
    #tokens=50      answer with so many letters                   #fail=prefill   the request's prefill raises
    #random         sample letters, each as likely                #fail=step      the third decode step raises
    #delay=0.01     seconds for each decode step                  #die            the process ends at the third step
    #prefill=1      seconds of prefill, in pieces of a tenth      #hang           the third step does not end
    #bad            refuse the conversation with a 400            #fail=nan       its logits are no numbers
    #open           the prompt has written <think> already
    #text=a%20b     answer with this text, quoted as in a URL     #tools          answer with all it is told of tools

It hears clips of any length, as many as there are; called `fake:30` it hears 30 seconds at once, and called `fake:30:2`
two clips at most. Each window of a longer clip has an answer of its own. Markers of calls and thoughts are tokens.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import quote, unquote

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dialects import THOUGHTS, TOOLS
from errors import BadRequest
from models.base import (
    CausalModel,
    Clip,
    Conversation,
    Prefill,
    PrefillFailed,
    Prompt,
    Turn,
    clips_of,
    one_window_each,
    refuse_templating,
)
from models.tool_messages import history_fields, tools_for_template
from wire import AS_USUAL, Capabilities, Templating, Tools

SAMPLING_RATE = 16_000
MAX_NEW_TOKENS = 100_000
_NAME = re.compile(r"fake(?::([1-9]\d*)(?::([1-9]\d*))?)?")
_ORDER = re.compile(r"#(\w+)(?:=(\S+))?")
_MARKER_NAMES = sorted({*(name for each in TOOLS.values() for name in each.markers), *chain(*THOUGHTS.values())})
_MARKERS = re.compile(f"({'|'.join(map(re.escape, _MARKER_NAMES))})")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CERTAIN = 50.0  # a logit so high that sampling at temperature 2 takes it, too
_FAULT_STEP = 3
_PIECE_S = 0.1  # of a prefill that takes its time


@dataclass(frozen=True, eq=False)
class Script(Prompt):
    """What a row will say, and what befalls it."""

    answer: tuple[int, ...] = ()
    random: bool = False
    delay_s: float = 0.0
    prefill_s: float = 0.0
    fault: str = ""


class FakeModel(CausalModel):
    takes_tools = True

    def __init__(self, max_seconds_per_window: float | None = None, max_clips: int | None = None) -> None:
        self.capabilities = Capabilities(
            sampling_rate=SAMPLING_RATE,
            max_seconds_per_window=max_seconds_per_window,
            long_audio="error",
            batching="continuous",
            max_clips=max_clips,
            tools="hermes",
        )

    @classmethod
    def named(cls, name: str) -> FakeModel:
        """The fake model with the limits in its name. Raises `ValueError`."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name}: write fake, fake:30 (the seconds it hears at once) or fake:30:2 (and clips)")
        seconds, clips = found.groups()
        return cls(float(seconds) if seconds else None, int(clips) if clips else None)

    def setup(self, device: str, dtype: str) -> None:
        self.tokenizer = _byte_tokenizer()
        self.end_ids = frozenset({_end_id(self.tokenizer)})

    def prepare_by(
        self, conversation: Conversation, templating: Templating = AS_USUAL, tools: Tools | None = None
    ) -> Sequence[Prompt]:
        refuse_templating(templating)
        if "#tools" in conversation[-1].parts:
            order = f"#text={quote(json.dumps(_told_of_tools(conversation, tools)))}"
            conversation = (*conversation[:-1], Turn("user", (order,)))
        return self.prepare(conversation)

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        text = " ".join(part for part in conversation[-1].parts if isinstance(part, str))
        orders = dict(_ORDER.findall(text))
        if "bad" in orders:
            raise BadRequest("The fake model was told to refuse this.", "messages")
        if orders.get("fail") == "prepare":
            raise RuntimeError("the fake model was told to fail in prepare")
        pieces = one_window_each(conversation)
        lead = " " if len(pieces) > 1 else None
        return [self._script(text, clips_of(piece), orders, lead) for piece in pieces]

    def prepare_plain(self, text: str) -> Prompt:
        (prompt,) = self.prepare((Turn("user", (text,)),))
        return prompt

    def _script(self, text: str, clips: Sequence[Clip], orders: dict[str, str], lead: str | None) -> Script:
        audio_tokens = sum(len(window) for clip in clips for window in clip.windows) // SAMPLING_RATE
        return Script(
            inputs={},
            num_tokens=len(self._ids(text)) + audio_tokens,
            num_audio_tokens=audio_tokens,
            max_new_tokens=MAX_NEW_TOKENS,
            lead=lead,
            answer=self._answer_ids(_answer(text, clips, orders)),
            opening="<think>" if "open" in orders else "",
            random="random" in orders,
            delay_s=float(orders.get("delay") or 0),
            prefill_s=float(orders.get("prefill") or 0),
            fault=next((name for name in ("die", "hang") if name in orders), orders.get("fail", "")),
        )

    def _answer_ids(self, text: str) -> tuple[int, ...]:
        """Markers are tokens of their own."""
        ids: list[int] = []
        for piece in _MARKERS.split(text):
            marker = self.tokenizer.token_to_id(piece) if _MARKERS.fullmatch(piece) else None
            ids += self._ids(piece) if marker is None else [marker]
        return tuple(ids)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text).ids)

    @property
    def vocabulary_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def make_rows(self) -> FakeRows:
        (end,) = self.end_ids
        return FakeRows(self.vocabulary_size, end, self._ids(_LETTERS))


RowState = tuple[Script, int]  # what a row will say, and how much of it it has said


class FakeRows:
    """Rows that follow their scripts. Logits put all weight on the next letter, or equal weight on all letters."""

    max_tokens = None

    def __init__(self, vocabulary: int, end_id: int, letters: tuple[int, ...]) -> None:
        self._vocabulary, self._end_id, self._letters = vocabulary, end_id, letters
        self._rows: list[RowState] = []

    def begin(self, prompt: Prompt, audio_keys: Sequence[bytes]) -> Prefill:
        assert isinstance(prompt, Script)
        return _FakePrefill(prompt, self.logits(prompt, 0)[None])

    def insert(self, state: RowState) -> None:
        self._rows.append(state)

    def set_aside(self, row: int) -> RowState:
        return self._rows[row]

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        assert len(tokens) == len(self._rows), "one token for each row"
        self._rows = [(script, said + 1) for script, said in self._rows]
        self._misbehave()
        return torch.stack([self.logits(script, said) for script, said in self._rows])

    def remove(self, row: int) -> None:
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row] = last

    def score(self, state: RowState, continuations: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        script, said = state
        return [
            torch.stack([self.logits(script, said + 1 + i) for i in range(len(tokens))]) for tokens in continuations
        ]

    def _misbehave(self) -> None:
        time.sleep(max((script.delay_s for script, _ in self._rows), default=0.0))
        due = {script.fault for script, said in self._rows if said == _FAULT_STEP}
        if "die" in due:
            os._exit(9)
        while "hang" in due:
            time.sleep(1)
        if "step" in due:
            raise RuntimeError("the fake model was told to fail in a decode step")

    def logits(self, script: Script, said: int) -> torch.Tensor:
        logits = torch.zeros(self._vocabulary)
        if script.fault == "nan" and said == _FAULT_STEP:
            logits += torch.nan
        if said >= len(script.answer):
            logits[self._end_id] = _CERTAIN
        elif script.random:
            logits[list(self._letters)] = _CERTAIN
        else:
            logits[script.answer[said]] = _CERTAIN
        return logits


class _FakePrefill(Prefill):
    """Goes at once, unless the script says how long it takes."""

    def __init__(self, script: Script, logits: torch.Tensor) -> None:
        super().__init__()
        self._script, self._logits = script, logits
        self._left_s = script.prefill_s

    def advance(self, max_tokens: int) -> None:
        if self._script.fault == "prefill":
            raise PrefillFailed from RuntimeError("the fake model was told to fail in prefill")
        if self._left_s > 0:
            time.sleep(min(_PIECE_S, self._left_s))
            self._left_s -= _PIECE_S
            return
        self.state, self.logits = (self._script, 0), self._logits


def _answer(text: str, clips: Sequence[Clip], orders: dict[str, str]) -> str:
    if "text" in orders:
        return unquote(orders["text"])
    if "say" in orders:
        return orders["say"].replace("_", " ")
    if "tokens" in orders:
        count = int(orders["tokens"])
        return (_LETTERS * (count // len(_LETTERS) + 1))[:count]
    seconds = [sum(len(window) for window in clip.windows) / SAMPLING_RATE for clip in clips]
    heard = ", ".join(f"{value:.1f} s" for value in seconds) or "nothing"
    return f"I heard {heard}. You said: {text}"


def _told_of_tools(conversation: Conversation, tools: Tools | None) -> Any:
    """As a chat template would be."""
    history = [{"role": turn.role, **history_fields(turn, short_ids=False)} for turn in conversation]
    return {"tools": tools_for_template(tools) if tools else None, "history": history}


def _byte_tokenizer() -> Tokenizer:
    """One token for each byte, so that a character of several bytes takes several steps."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", *_MARKER_NAMES])
    tokenizer.encode_special_tokens = True  # "<|end|>" in a user's text is text
    return tokenizer


def _end_id(tokenizer: Tokenizer) -> int:
    end = tokenizer.token_to_id("<|end|>")
    assert end is not None, "added above"
    return end
