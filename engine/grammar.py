"""Structured output: from a client's schema, expression, choice or grammar to the tokens that may come next.

    Structure ─ GrammarCompiler.compile ─▶ Grammar ─ start, once a row ─▶ Matcher ─ allowed_tokens ─▶ mask

llguidance does the work. Clients' grammars are hostile: a line of JSON schema can make llguidance overflow its stack or
compute for ever, whatever its limits say, so each new one is first compiled on trial, in a process of its own. Knows
neither logits nor requests.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher, LLParserLimits
from llguidance.numpy import fill_next_token_bitmask, get_bitmask_shape

from engine.vocabulary import Lexicon, Vocabulary
from errors import BadRequest, located
from wire import Structure

MAX_TRIED_GRAMMARS = 128  # whose trials are remembered

# What a grammar may cost, in llguidance's units and at its own rates. `verbose_errors` would put schemas into messages.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 250_000,  # to build the lexer: 50,000 are a millisecond
    "max_grammar_size": 100_000,  # symbols
    "step_lexer_fuel": 50_000,  # of one mask: 14,000 are a millisecond. A schema with patterns needs half
    "step_max_items": 5_000,  # of one mask: at most 0.2 s, as the time grows with the square
    "max_items_in_row": 1_000,  # an object with 200 optional properties has so many
    "max_lexer_states": 100_000,  # of one request: about 0.7 kB each
    "verbose_errors": False,
}

# What its trial may cost. An everyday schema takes 0.08 s, nearly all of it Python's start.
TRIAL_CPU_S = 2
TRIAL_BYTES = 512 << 20
TRIAL_STACK_BYTES = 2 << 20  # of the 8 MB that a thread of ours has: what passes has room here
TRIAL_TIMEOUT_S = 20.0  # on the wall, for a busy machine
TRIAL_STEPS = 50  # of a random answer: most of what would fail later fails there

# What the masks of one answer may cost in CPU time, while all rows wait: so much at once, and so much a token in the
# long run. An everyday schema takes 0.1 ms a token, one with patterns 1 ms.
MASKS_S = 0.2
MASKS_S_PER_TOKEN = 0.01

# Otherwise llguidance follows what is certain to come, to its end and in one step: seconds for "(a{1000}){1000}".
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'

# At most one space where JSON has room for blanks: a model may write them for ever otherwise.
_JSON_OPTIONS = {"whitespace_pattern": " "}

_TRIAL = """
import json, random, resource, sys, threading
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

class Bytes:
    tokens = [*(bytes([byte]) for byte in range(256)), b""]
    bos_token_id, eos_token_id, special_token_ids = None, 256, [256]

def attempt(grammar, options, limits, steps):
    try:
        source = any_to_lark(grammar) + options
    except Exception:
        return "", "no grammar"
    matcher = LLMatcher(LLTokenizer(TokenizerWrapper(Bytes)), source, log_level=0, limits=LLParserLimits(**limits))
    dice = random.Random(0)
    for _ in range(steps):
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if not allowed or not matcher.consume_token(dice.choice(allowed)):
            break
    return source, matcher.get_error()

(cpu_s, max_bytes, stack_bytes), arguments = json.load(sys.stdin)
for limited, most in (("CPU", cpu_s), ("AS", max_bytes), ("CORE", 0)):
    resource.setrlimit(getattr(resource, f"RLIMIT_{limited}"), (most, most))
threading.stack_size(stack_bytes)
threading.Thread(target=lambda: print(json.dumps(attempt(*arguments)))).start()
"""

# What llguidance says, and what we say for it: never the client's words, but for the keywords of JSON schema.
_NOTHING, _OUT_OF_TIME = "NoExtension", "out of fuel"
_TOO_COMPLEX = "it is too complex."
_CAUSES = (
    (r"Unimplemented keys: \[([^]]*)\]", "not supported: {}."),
    (r"Unknown format", "this `format` is not supported; date, time, date-time, duration, email, uri and uuid are."),
    (r"oneOf constraints", "`oneOf` is supported only where its options evidently exclude each other; try `anyOf`."),
    (r"min/maxProp", "`minProperties` and `maxProperties` are supported only where all `properties` are `required`."),
    (r"patternProperty regexes", "the patterns of `patternProperties` must exclude each other."),
    (r"(?:integer|float) range", "`minimum` or `maximum` is too large or too small."),
    (r"multiple ?[oO]f", "this value of `multipleOf` is not supported."),
    (r"Invalid type", "`type` has a value that JSON schema does not know."),
    (r"Expected [\w ]+ for '(\w+)'", "`{}` has a value of the wrong type."),
    (r"schema must be an object", "a schema within it is neither an object nor a boolean."),
    (r"schema: (\$?\w+) must be", "`{}` has a value of the wrong type."),
    (r"Pointer|Resource", "a `$ref` or `$schema` leads nowhere; only references within the schema are followed."),
    (r"Unsatisfiable|NoExtension", "no answer can satisfy it."),
    (r"lookarounds not", r"an expression looks around, as `\b` does, and `^` and `$` inside: this is not supported."),
    (r"regex parse error[\s\S]*\nerror: ([a-zA-Z ,-]+)", "an expression is not valid: {}."),
    (r"panic|Token range", "it cannot be followed; tokens by name or number are not supported."),
    (r"too (?:big|large|deeply|many)|Too many|fuel|row has|Unable to determine|recursion limit", _TOO_COMPLEX),
)
_OTHERWISE = {
    "json": "it is not a JSON schema.",
    "regex": "it is not a regular expression.",
    "choice": "its strings are not all text.",
    "grammar": "it is not a grammar in Lark, with a rule `start:`, or in GBNF, with a rule `root ::=`.",
}
_POSITION = re.compile(r"(?:at )?(\d+)\((\d+)\): ")


class GrammarFailed(Exception):
    """A grammar cannot be followed any further: a limit was passed, or no token may come. `index` says which of the
    matchers; the others are as they were."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class GrammarCompiler:
    """Compiles for one model. For the threads that prepare requests: it takes a tenth of a second, or seconds."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tried = lru_cache(MAX_TRIED_GRAMMARS)(_tried)

    def compile(self, structure: Structure) -> Grammar:
        """Raises `BadRequest` for what is no schema, expression or grammar, for what llguidance does not support, and
        for what is over the limits."""
        with located(structure.place):
            source = self._tried(structure.kind, structure.text, structure.choices)
            return self._compiled(structure.kind, source)

    def compile_source(self, spelled: str, source: str, special: Iterable[int]) -> Grammar:
        """A grammar of ours in Lark, whose schemas are a client's. It names `special` tokens by their numbers, so it is
        tried as it reads where these are `spelled` out. Raises `BadRequest`."""
        self._tried("ours", spelled, ())
        return self._compiled("ours", source + _NO_FORCING, self.vocabulary.lexicon().with_special(special))

    def _compiled(self, kind: str, source: str, lexicon: Lexicon | None = None) -> Grammar:
        """Anew for each request: copies share a lexer, and its limit of states would be one for all requests."""
        size, end_ids, lexicon = self.vocabulary.size, self.vocabulary.end_ids, lexicon or self.vocabulary.lexicon()
        matcher = LLMatcher(lexicon.tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS))
        grammar = Grammar(matcher, lexicon, end_ids)
        first = grammar.start()
        try:
            allowed_tokens([first], size, end_ids)
        except GrammarFailed:
            raise _refusal(kind, first.error or _NOTHING) from None
        return grammar


class Grammar:
    """A compiled grammar, of one request."""

    def __init__(self, matcher: LLMatcher, lexicon: Lexicon, end_ids: frozenset[int]) -> None:
        self._matcher, self._lexicon, self._end_ids = matcher, lexicon, end_ids

    def start(self) -> Matcher:
        """For one row, before its answer's first token."""
        return Matcher(self._matcher.deep_copy(), self._lexicon, self._end_ids)


class Matcher:
    """Where one row's answer stands in its grammar. For one thread. `cpu_s_left` is what its masks may still take."""

    def __init__(self, matcher: LLMatcher, lexicon: Lexicon, end_ids: frozenset[int]) -> None:
        self._matcher, self._lexicon, self._end_ids = matcher, lexicon, end_ids
        self._has_ended = False
        self.cpu_s_left = MASKS_S

    def accept(self, token: int) -> None:
        """The answer's next token. If the grammar cannot follow it, the next `allowed_tokens` says so."""
        if token in self._end_ids:
            self._has_ended = True
        elif not self._has_ended:
            self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        """The answer is complete, and nothing but an end may follow."""
        return self._has_ended or (self._matcher.is_stopped() and not self.error)

    @property
    def is_accepting(self) -> bool:
        """The answer is complete as it stands, though more may follow."""
        return self._has_ended or self._matcher.is_accepting()

    @property
    def error(self) -> str:
        """Why the grammar cannot be followed any further, in llguidance's words; "" while it can."""
        return self._matcher.get_error() or (_OUT_OF_TIME if self.cpu_s_left < 0 else "")

    def fill(self, bits: npt.NDArray[np.int32], row: int) -> None:
        """Set the bits of the tokens that may come next, in one row of zeros of an llguidance mask."""
        if self.finished:
            return
        started = time.thread_time()
        fill_next_token_bitmask(self._matcher, bits, row)
        bits[row] &= self._lexicon.bits
        spent_s = time.thread_time() - started
        self.cpu_s_left = min(MASKS_S, self.cpu_s_left + MASKS_S_PER_TOKEN - spent_s)


def allowed_tokens(matchers: Sequence[Matcher], size: int, end_ids: frozenset[int]) -> torch.Tensor:
    """Which tokens may come next in each row, shape (rows, size), bool: the text with which the grammar goes on, and
    all of `end_ids` where the answer is complete. Raises `GrammarFailed`."""
    bits = np.zeros(get_bitmask_shape(len(matchers), size + 1), dtype=np.int32)  # 1: llguidance's end, see `Lexicon`
    for row, matcher in enumerate(matchers):
        matcher.fill(bits, row)
    allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=size, bitorder="little").view(np.bool_)
    for row, matcher in enumerate(matchers):
        allowed[row, list(end_ids)] = matcher.is_accepting
        if matcher.error or not allowed[row].any():
            raise GrammarFailed(row)
    return torch.from_numpy(allowed)


def _tried(kind: str, text: str, choices: tuple[str, ...]) -> str:
    """A structure in llguidance's Lark, after its trial. Raises `BadRequest`."""
    source, error = _try(_source(kind, text, choices))
    if error:
        is_position_theirs = kind == "grammar" and source.startswith(text)  # not so where GBNF was made into Lark
        raise _refusal(kind, error, _position(error) if is_position_theirs else "")
    return source


def _source(kind: str, text: str, choices: tuple[str, ...]) -> str:
    if kind == "json_object":
        return "start: " + json_grammar('{"type": "object"}')
    if kind == "json":
        return "start: " + json_grammar(text)
    if kind == "regex":
        return str(json.loads(LLMatcher.grammar_from_regex(text))["grammars"][0]["lark_grammar"])
    if kind == "choice":
        return _choice_source(choices)
    return text


def json_grammar(text: str) -> str:
    """A JSON schema as an expression in Lark. Raises `BadRequest`."""
    try:
        schema = json.loads(text, object_pairs_hook=_checked_schema)
        if not isinstance(schema, dict):
            raise BadRequest("a JSON schema must be an object here.")
        return "%json " + json.dumps({**schema, "x-guidance": _JSON_OPTIONS}, allow_nan=False)
    except (ValueError, RecursionError):
        raise BadRequest("it is not valid JSON, or nested too deeply.") from None


def _checked_schema(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object within a schema. The one thing that llguidance takes and does not keep is refused: it counts keys that
    the answer repeats."""
    schema = dict(pairs)
    count = schema.get("minProperties")
    if isinstance(count, int | float) and count > 1:
        raise BadRequest("not supported: `minProperties` above 1.")
    return schema


def _choice_source(choices: tuple[str, ...]) -> str:
    if not choices or len(set(choices)) < len(choices):
        raise BadRequest("it must hold at least one string, and none twice.")
    return "start: " + " | ".join(map(json.dumps, choices))


def _try(grammar: str) -> tuple[str, str]:
    """Compile in a process that may hang or die: the grammar in Lark, and llguidance's error, or ""."""
    limits, arguments = (TRIAL_CPU_S, TRIAL_BYTES, TRIAL_STACK_BYTES), (grammar, _NO_FORCING, LIMITS, TRIAL_STEPS)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _TRIAL],
            input=json.dumps((limits, arguments)),
            capture_output=True,
            text=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
            process_group=0,  # Ctrl-C is the server's, which still ends its answers
        )
    except subprocess.TimeoutExpired:
        raise BadRequest(_TOO_COMPLEX) from None
    if done.returncode < 0:  # a signal: out of time, memory or stack
        raise BadRequest(_TOO_COMPLEX)
    done.check_returncode()
    source, error = json.loads(done.stdout)
    return source, error


def _refusal(kind: str, error: str, position: str = "") -> BadRequest:
    for pattern, sentence in _CAUSES:
        if found := re.search(pattern, error):
            return BadRequest(position + sentence.format(*(group.replace('"', "`") for group in found.groups())))
    return BadRequest(position + _OTHERWISE.get(kind, _TOO_COMPLEX))


def _position(error: str) -> str:
    found = _POSITION.match(error)
    return f"line {found[1]}, column {found[2]}: " if found else ""
