"""Answers follow the client's grammar, whatever the model would like to say; hostile grammars harm nobody."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import ByteLevel

from engine.grammar import Grammar, GrammarCompiler, GrammarFailed, Matcher, allowed_tokens
from engine.vocabulary import Vocabulary
from errors import BadRequest
from models.fake import _byte_tokenizer
from models.whisper import PACKAGE
from wire import Structure

PLACE = "response_format.json_schema.schema"


def whisper_tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))


def sentencepiece_tokenizer(decoder: decoders.Decoder) -> Tokenizer:
    """Characters, with bytes for the others."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij{}:,", "é", "日"]
    tokenizer = Tokenizer(
        BPE({piece: id_ for id_, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


LLAMAS_DECODER = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])

BYTES = _byte_tokenizer()  # one token for each byte
END = BYTES.token_to_id("<|end|>")
OTHER_END = 270  # the tokenizer has no such id, but the logits have
BYTE_VOCABULARY = Vocabulary(BYTES, 280, frozenset({END, OTHER_END}))

WHISPER = whisper_tokenizer()
FIRST_SPECIAL = 50256  # `<|endoftext|>`, which ends answers
WHISPER_VOCABULARY = Vocabulary(WHISPER, 51864, frozenset({FIRST_SPECIAL}))

COMPILERS = {vocabulary: GrammarCompiler(vocabulary) for vocabulary in (BYTE_VOCABULARY, WHISPER_VOCABULARY)}
VOCABULARIES = pytest.mark.parametrize("vocabulary", [BYTE_VOCABULARY, WHISPER_VOCABULARY], ids=["bytes", "whisper"])


def as_json(schema: object) -> Structure:
    return Structure("json", PLACE, json.dumps(schema))


def as_regex(pattern: str) -> Structure:
    return Structure("regex", PLACE, pattern)


def as_grammar(text: str) -> Structure:
    return Structure("grammar", PLACE, text)


def as_choice(*choices: str) -> Structure:
    return Structure("choice", PLACE, choices=choices)


def compiled(structure: Structure, vocabulary: Vocabulary = BYTE_VOCABULARY) -> Grammar:
    return COMPILERS[vocabulary].compile(structure)


def refusal(structure: Structure) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        compiled(structure)
    assert refused.value.param == PLACE
    assert refused.value.message.startswith(f"`{PLACE}`: ")
    assert refused.value.message.endswith(".")
    return refused.value


def allowed(matcher: Matcher, vocabulary: Vocabulary = BYTE_VOCABULARY) -> list[int]:
    (mask,) = allowed_tokens([matcher], vocabulary.size, vocabulary.end_ids)
    return [int(token) for token in mask.nonzero().flatten().tolist()]


def walk(grammar: Grammar, vocabulary: Vocabulary, seed: int) -> str:
    """A random answer: each token one of those that are allowed, until an end is."""
    dice, matcher, said = random.Random(seed), grammar.start(), b""
    for _ in range(5000):
        tokens = allowed(matcher, vocabulary)
        assert matcher.finished == (set(tokens) == vocabulary.end_ids)
        assert matcher.is_accepting == (not vocabulary.end_ids.isdisjoint(tokens))
        token = dice.choice(tokens)
        matcher.accept(token)
        if token in vocabulary.end_ids:
            assert matcher.finished and set(allowed(matcher, vocabulary)) == vocabulary.end_ids
            return said.decode()
        said += vocabulary.token_bytes(token)
    raise AssertionError("the answer has no end")


def takes(structure: Structure, text: str) -> bool:
    """Whether `text` may be the whole answer."""
    matcher = compiled(structure).start()
    for token in byte_ids(text):
        if token not in allowed(matcher):
            return False
        matcher.accept(token)
    return END in allowed(matcher)


def byte_ids(text: str) -> list[int]:
    return BYTES.encode(text, add_special_tokens=False).ids


class Speaker(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(max_length=5)
    age: int | None = Field(ge=18, le=120)
    mood: Literal["happy", "sad"]


class Talk(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    title: str = Field(pattern=r"^[A-Z][a-zé ]{0,8}$")
    speakers: list[Speaker] = Field(min_length=1, max_length=2)
    loudness: float = Field(ge=-1.5, le=0.25)
    note: str | None = Field(default=None, max_length=3)


@VOCABULARIES
@pytest.mark.parametrize("seed", range(6))
def test_an_answer_follows_its_schema(vocabulary: Vocabulary, seed: int) -> None:
    """Whatever is chosen of what is allowed, the answer is JSON as the schema wants it."""
    answer = walk(compiled(as_json(Talk.model_json_schema()), vocabulary), vocabulary, seed)
    Talk.model_validate_json(answer)
    assert not re.search(r"[\n\t]", answer)


@VOCABULARIES
def test_rows_of_one_step_have_a_mask_each(vocabulary: Vocabulary) -> None:
    """Different grammars side by side do not touch one another."""
    structures = [as_json({"type": "integer"}), as_json({"type": "boolean"}), as_regex("[tx]+"), as_choice("1", "true")]
    matchers = [compiled(structure, vocabulary).start() for structure in structures]
    masks = allowed_tokens(matchers, vocabulary.size, vocabulary.end_ids)
    assert masks.shape == (4, vocabulary.size) and masks.dtype == torch.bool
    for mask, structure in zip(masks, structures, strict=True):
        (alone,) = allowed_tokens([compiled(structure, vocabulary).start()], vocabulary.size, vocabulary.end_ids)
        assert torch.equal(mask, alone)
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    assert allowed_tokens([], vocabulary.size, vocabulary.end_ids).shape == (0, vocabulary.size)


def test_rows_of_one_request_go_their_own_ways() -> None:
    """Choices of one request share a grammar, not a place in it."""
    grammar = compiled(as_choice("ab", "xy"))
    first, second = grammar.start(), grammar.start()
    first.accept(byte_ids("a")[0])
    assert allowed(first) == byte_ids("b")
    assert allowed(second) == sorted(byte_ids("ax"))


OBJECT = Structure("json_object", PLACE)


def test_json_object_is_any_object_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    """With one space at most where JSON has room for blanks, so that no model writes blanks for ever."""
    for text in ("{}", "{ }", '{"a": [1, -2.5e3, {"b": null}], "é\\n" : "<|end|>"}'):
        assert takes(OBJECT, text), text
    for text in ("[1]", '"a"', " {}", "{} ", "{  }", '{"a":  1}', '{"a":\n1}', '{"a": 1,\t"b": 2}', "{'a': 1}"):
        assert not takes(OBJECT, text), text
    assert capfd.readouterr() == ("", "")


@VOCABULARIES
@pytest.mark.parametrize("pattern", [r"\d{4}-\d\d-\d\d", "(?i)yes|no( way){0,3}", "[^a]{0,4}é*(日本){1,3}", "a?b?|^c$"])
def test_an_answer_matches_its_regular_expression(vocabulary: Vocabulary, pattern: str) -> None:
    """As a whole."""
    grammar = compiled(as_regex(pattern), vocabulary)
    for seed in range(5):
        assert re.fullmatch(pattern, walk(grammar, vocabulary, seed))


ODD_CHOICES = (
    "yes",
    "yes, sir",
    "é",
    "😀",
    '"q"',
    "a\\b",
    "\n",
    "\x7f",
    "/",
    "<|end|>",
    " a",
    "{",
    "a|b",
    "#x",
    "%y",
    "",
)


@VOCABULARIES
def test_an_answer_is_one_of_the_choices(vocabulary: Vocabulary) -> None:
    """Character by character, and also where one begins another."""
    grammar = compiled(as_choice("yes", "yes, sir", "no", "é😀"), vocabulary)
    answers = {walk(grammar, vocabulary, seed) for seed in range(30)}
    assert answers == {"yes", "yes, sir", "no", "é😀"}


def test_a_choice_may_be_any_text() -> None:
    """Nothing in it is taken for a part of a grammar."""
    assert all(takes(as_choice(*ODD_CHOICES), choice) for choice in ODD_CHOICES)
    assert not any(takes(as_choice(*ODD_CHOICES), text) for text in ("ye", "yes,", "a", "YES", "b"))


LARK = 'start: greeting ("," NAME){1,2}\ngreeting: "hi" | "hello"\nNAME: /[A-C][a-z]{0,2}/'
GBNF = 'root ::= greeting ("," name){1,2}\ngreeting ::= "hi" | "hello"\nname ::= [A-C] [a-z]? [a-z]?'


@VOCABULARIES
@pytest.mark.parametrize("text", [LARK, GBNF], ids=["lark", "gbnf"])
def test_an_answer_follows_its_grammar(vocabulary: Vocabulary, text: str) -> None:
    """In the syntax of Lark or of llama.cpp, whichever it is."""
    grammar = compiled(as_grammar(text), vocabulary)
    for seed in range(5):
        assert re.fullmatch(r"(hi|hello)(,[A-C][a-z]{0,2}){1,2}", walk(grammar, vocabulary, seed))


def test_all_ends_or_none() -> None:
    """A model's ends are allowed together, exactly where the answer is complete."""
    matcher = compiled(as_regex("ab?")).start()
    a, b = byte_ids("ab")
    assert allowed(matcher) == [a]
    matcher.accept(a)
    assert allowed(matcher) == sorted([b, END, OTHER_END])
    assert matcher.is_accepting and not matcher.finished
    matcher.accept(b)
    assert allowed(matcher) == [END, OTHER_END]
    assert matcher.is_accepting and matcher.finished


@pytest.mark.parametrize("structure", [as_regex("(?s).*"), as_json({"type": "string"}), as_grammar("start: <[*]>+")])
def test_only_text_is_allowed(structure: Structure) -> None:
    """No special token, and no id that the tokenizer does not know, however open the grammar is."""
    matcher = compiled(structure, WHISPER_VOCABULARY).start()
    for text in ('"', "a"):
        tokens = allowed(matcher, WHISPER_VOCABULARY)
        assert len(tokens) >= 1
        assert max(set(tokens) - {FIRST_SPECIAL}) < FIRST_SPECIAL
        assert (FIRST_SPECIAL in tokens) == matcher.is_accepting
        matcher.accept(WHISPER.token_to_id(text))


def test_special_tokens_cannot_be_asked_for() -> None:
    """Neither by name nor by number."""
    for text in ("start: <|startoftranscript|>", "start: <[50257]>", 'start: "a" <|end|>'):
        assert "tokens by name or number" in refusal(as_grammar(text)).message


UNSUPPORTED = {
    "not": {"properties": {"a": {"not": {"type": "string"}}}},
    "if": {"if": {}, "then": {"minLength": 1}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": {}},
    "propertyNames": {"propertyNames": {"maxLength": 3}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "minProperties": {"additionalProperties": {"type": "integer"}, "minProperties": 2},
    "maxProperties": {"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2},
    "patternProperties": {"patternProperties": {"^a": {"type": "null"}, "^ab": {}}},
    "format": {"type": "string", "format": "secret-format"},
    "oneOf": {"oneOf": [{"type": "string"}, {"const": "secret"}]},
    "multipleOf": {"type": "number", "multipleOf": 1e-300},
    "minimum": {"type": "integer", "minimum": 1e40},
    "$ref": {"$ref": "https://secret.example/schema"},
}


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_an_unsupported_keyword_is_named(keyword: str) -> None:
    """Nothing of a schema is passed over in silence: the client is told which word it is."""
    message = refusal(as_json(UNSUPPORTED[keyword])).message
    assert f"`{keyword}`" in message
    assert "secret" not in message


def test_a_client_cannot_loosen_the_rules() -> None:
    """llguidance's own key in a schema is ours."""
    lenient = {"x-guidance": {"lenient": True, "whitespace_flexible": True}}
    assert "`not`" in refusal(as_json({"not": {}, **lenient})).message
    assert not takes(as_json({"type": "object", **lenient}), "{  }")


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (Structure("json", PLACE, '{"secret": '), "not valid JSON"),
        (Structure("json", PLACE, '{"const": NaN}'), "not valid JSON"),
        (Structure("json", PLACE, '{"items":' * 5000), "nested too deeply"),
        (as_json(["secret"]), "must be an object"),
        (as_json(True), "must be an object"),
        (as_json({"type": "secret"}), "`type`"),
        (as_json({"minLength": "secret"}), "`minLength`"),
        (as_json({"anyOf": "secret"}), "`anyOf`"),
        (as_json({"properties": {"secret": 1}}), "neither an object nor a boolean"),
        (as_json({"$ref": "#/$defs/secret"}), "`$ref`"),
        (as_json({"required": ["secret"], "additionalProperties": False, "type": "object"}), "no answer"),
        (as_json({"pattern": "(secret", "type": "string"}), "unclosed group"),
        (as_json({"pattern": "secret(?=a)", "type": "string"}), "look-around"),
        (as_regex("secret("), "unclosed group"),
        (as_regex(r"(secret)\1"), "backreferences are not supported"),
        (as_regex(r"\bsecret"), "looks around"),
        (as_regex("[^\\x00-\\U0010FFFF]"), "no answer"),
        (as_grammar("secret"), "not a grammar in Lark"),
        (as_grammar('root ::= secret "a"'), "not a grammar in Lark"),
        (as_grammar('start: "a" b\nb: secret\n'), "line 2, column 4: "),
        (as_grammar('start: "a"\n | "secret'), "line 2"),
        (as_grammar('root ::= "\\u00e9"'), f"`{PLACE}`: it is not"),  # where in our Lark is not of interest
        (as_choice(), "at least one"),
        (as_choice("secret", "b", "secret"), "none twice"),
    ],
    ids=lambda value: None if isinstance(value, str) else f"{value.kind}-{value.text[:30]}",
)
def test_what_is_wrong_is_told_without_the_clients_words(
    structure: Structure, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A schema is nobody's business: it does not come back in messages, and is not logged."""
    message = refusal(structure).message
    assert reason in message
    assert "secret" not in message
    assert capfd.readouterr() == ("", "")


OPTIONAL = {f"p{i}": {"type": "string"} for i in range(2000)}
CHAIN = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(3000)}
WIDE = "\n".join(
    [
        "s: " + " | ".join(f"s s{i}" for i in range(100)) + ' | "x"',
        *(f"s{i}: s | s s{(i + 1) % 100}" for i in range(100)),
    ]
)

HOSTILE = {
    "overflows the stack": as_json({"type": "integer", "minimum": -1e30, "maximum": -1e29}),
    "overflows the stack by references": as_json({"$ref": "#/$defs/a0", "$defs": {**CHAIN, "a3000": {}}}),
    "overflows the stack by rules": as_grammar(
        "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(5000)) + '\na5000: "x"'
    ),
    "computes for ever": as_grammar("start: A\nA: " + " & ".join(f"/.*a.{{{i}}}b/" for i in range(1, 40))),
    "computes for long": as_json({"type": "integer", "multipleOf": 1000003}),
    "grows by doubling": as_grammar(
        "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "x"'
    ),
    "holds only itself": as_json({"$ref": "#"}),
    "nests deeply": as_grammar("start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "is ambiguous": as_grammar(f"start: s\n{WIDE}"),
    "is wide": as_json({"type": "object", "properties": OPTIONAL}),
}


@pytest.mark.parametrize("trouble", HOSTILE)
def test_a_grammar_that_would_harm_the_server_is_refused(trouble: str) -> None:
    """It dies, or runs out of time, in a process of its own, and soon."""
    started = time.thread_time()
    refusal(HOSTILE[trouble])
    assert time.thread_time() - started < 1


def test_objects_may_have_many_optional_properties() -> None:
    """Though not any number: all are looked at in every step."""
    few, many = (dict(list(OPTIONAL.items())[:count]) for count in (150, 250))
    compiled(as_json({"type": "object", "properties": few}), WHISPER_VOCABULARY)
    assert "too complex" in refusal(as_json({"type": "object", "properties": many})).message


@pytest.mark.parametrize(
    "pattern", ["(a{1000}){1000}", "[01](a{1000}){1000}", "a{1000000000}", "(a|a|aa)*" * 50 + "b", "(a+)+" * 100]
)
def test_repetition_costs_nothing_before_it_comes(pattern: str) -> None:
    """A step takes milliseconds, however much is certain to follow."""
    matcher = compiled(as_regex(pattern), WHISPER_VOCABULARY).start()
    for text in "01aaaa":
        started = time.thread_time()
        tokens = allowed(matcher, WHISPER_VOCABULARY)
        assert time.thread_time() - started < 0.2
        token = WHISPER.token_to_id(text)
        if token in tokens:
            matcher.accept(token)


THREE = "(.*a.{30}b.{30})|(.*b.{30}c.{30})|(.*c.{30}a.{30})"
AMBIGUOUS = 'start: a a a a a a a\na: a a a | "x" | "" | b\nb: a b | b a | "x"'


@pytest.mark.parametrize(
    ("structure", "texts", "limit"),
    [
        (as_regex(THREE), "abc", "expressions"),
        (as_regex("(?s).*a.{60}"), ["ab", "cd"], "states"),
        (as_grammar(AMBIGUOUS), "x", "items"),
    ],
    ids=["expressions", "states", "items"],
)
def test_a_grammar_that_becomes_too_complex_fails_alone(
    structure: Structure, texts: list[str], limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits hold in every step, and the failure says which row it is. On a slow machine the limit of time, tested
    elsewhere, would come first."""
    monkeypatch.setattr("engine.grammar.MASKS_S_PER_TOKEN", math.inf)
    good, bad = (compiled(each, WHISPER_VOCABULARY).start() for each in (as_regex("(?s).*"), structure))
    dice = random.Random(0)
    with pytest.raises(GrammarFailed) as failed:
        for _ in range(2000):
            allowed_tokens([good, bad], WHISPER_VOCABULARY.size, WHISPER_VOCABULARY.end_ids)
            token = WHISPER.token_to_id(dice.choice(texts))
            good.accept(token)
            bad.accept(token)
    assert failed.value.index == 1
    assert limit in bad.error and "start" not in bad.error  # nothing of the client's
    assert not bad.finished
    assert FIRST_SPECIAL in allowed(good, WHISPER_VOCABULARY)


def test_a_token_that_the_grammar_does_not_allow_fails() -> None:
    """The next step says so; there is nothing to go on with."""
    good, bad = (compiled(as_choice("yes")).start() for _ in range(2))
    bad.accept(byte_ids("n")[0])
    assert not bad.finished and not bad.is_accepting
    with pytest.raises(GrammarFailed) as failed:
        allowed_tokens([good, bad], BYTE_VOCABULARY.size, BYTE_VOCABULARY.end_ids)
    assert failed.value.index == 1


def test_masks_have_a_limit_of_time() -> None:
    """All rows wait for the slowest, so one that takes long again and again fails."""
    prefix = "y" * 60  # farther than a trial looks
    slow = compiled(as_grammar(f'start: "{prefix}" s\n{WIDE}'), WHISPER_VOCABULARY).start()
    quick = compiled(as_regex("y+"), WHISPER_VOCABULARY).start()
    most_s, y = quick.cpu_s_left, WHISPER.token_to_id("y")
    for _ in prefix:
        assert y in allowed(slow, WHISPER_VOCABULARY) and y in allowed(quick, WHISPER_VOCABULARY)
        slow.accept(y)
        quick.accept(y)
    assert quick.cpu_s_left == most_s
    started = time.thread_time()
    with pytest.raises(GrammarFailed):
        allowed(slow, WHISPER_VOCABULARY)
    assert time.thread_time() - started < 1
    assert slow.cpu_s_left < most_s
    quick.cpu_s_left = -1.0
    with pytest.raises(GrammarFailed):
        allowed(quick, WHISPER_VOCABULARY)


def test_a_grammar_does_not_wear_out() -> None:
    """llguidance's copies share a lexer that may only have so many states: one request's are not another's."""
    dice = random.Random(0)

    def say(num_tokens: int) -> None:
        matcher = compiled(as_regex("(?s).*a.{60}"), WHISPER_VOCABULARY).start()
        for _ in range(num_tokens):
            allowed_tokens([matcher], WHISPER_VOCABULARY.size, WHISPER_VOCABULARY.end_ids)
            matcher.accept(WHISPER.token_to_id(dice.choice(["ab", "cd"])))

    with pytest.raises(GrammarFailed):
        say(2000)
    say(10)


def test_several_threads_compile_at_once() -> None:
    """The same grammar and different ones, for a vocabulary that is not built yet."""
    vocabulary = Vocabulary(BYTES, 280, frozenset({END}))
    compiler = GrammarCompiler(vocabulary)
    texts = ["a", "b", "a", "c"] * 3
    with ThreadPoolExecutor(8) as pool:
        grammars = list(pool.map(lambda text: compiler.compile(as_regex(text)), texts))
    assert [walk(grammar, vocabulary, 0) for grammar in grammars] == texts


def test_a_vocabulary_is_built_once() -> None:
    """Though several threads ask for it at first."""
    vocabulary = Vocabulary(WHISPER, 51864, frozenset({FIRST_SPECIAL}))
    with ThreadPoolExecutor(4) as pool:
        lexicons = {pool.submit(vocabulary.lexicon) for _ in range(4)}
    assert len({id(lexicon.result()) for lexicon in lexicons}) == 1


@given(st.text(max_size=30) | st.just("<|endoftext|> \U0001f600\u0301"))
def test_the_tokens_of_a_text_are_its_bytes(text: str) -> None:
    """Also where a token is a part of a character."""
    for tokenizer, vocabulary in ((BYTES, BYTE_VOCABULARY), (WHISPER, WHISPER_VOCABULARY)):
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(map(vocabulary.token_bytes, tokens)) == text.encode()


def test_every_byte_is_a_token() -> None:
    """Of the alphabet of GPT-2."""
    assert {BYTE_VOCABULARY.token_bytes(token) for token in range(256)} == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    "decoder",
    [LLAMAS_DECODER, decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])],
    ids=["llama", "metaspace"],
)
def test_sentencepieces_are_bytes_too(decoder: decoders.Decoder) -> None:
    """With blanks for their sign, and single bytes where a character has no token."""
    tokenizer = sentencepiece_tokenizer(decoder)
    vocabulary = Vocabulary(tokenizer, tokenizer.get_vocab_size() + 7, frozenset({1}))
    text = "a bé 日☃ <unk"
    assert b"".join(map(vocabulary.token_bytes, tokenizer.encode(text, add_special_tokens=False).ids)) == text.encode()
    assert vocabulary.token_bytes(2 + 0xFF) == b"\xff"
    assert vocabulary.token_bytes(0) == b"<unk>" and not vocabulary.is_text(0)
    answer = walk(GrammarCompiler(vocabulary).compile(as_regex("a b☃{1,2}[é日]")), vocabulary, 0)
    assert re.fullmatch("a b☃{1,2}[é日]", answer)


def test_pieces_without_fallback_are_bytes() -> None:
    """As of a SentencePiece unigram."""
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), ("▁he", -1.0), ("llo", -1.0)], 0, False))
    tokenizer.decoder = decoders.Metaspace()
    vocabulary = Vocabulary(tokenizer, 4, frozenset({3}))
    assert [vocabulary.token_bytes(token) for token in range(4)] == [b"<unk>", b" he", b"llo", b""]


def test_special_tokens_are_their_names() -> None:
    """As bytes, for OpenAI's log-probabilities; an id that the tokenizer does not have is none."""
    assert WHISPER_VOCABULARY.token_bytes(FIRST_SPECIAL) == b"<|endoftext|>"
    assert WHISPER_VOCABULARY.token_bytes(51863) == b""
    assert BYTE_VOCABULARY.token_bytes(END) == b"<|end|>"
    assert BYTE_VOCABULARY.token_bytes(OTHER_END) == b""


def test_tags_are_no_text() -> None:
    """A token such as `<think>` means something to the model, though the tokenizer does not call it special."""
    tokenizer = _byte_tokenizer()
    tokenizer.add_special_tokens(["[INST]"])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("é", special=False)])
    vocabulary = Vocabulary(tokenizer, 300, frozenset({END, 0}))
    inst, think, e = (tokenizer.token_to_id(text) for text in ("[INST]", "<think>", "é"))
    assert [vocabulary.token_bytes(token) for token in (inst, think, e)] == [b"[INST]", b"<think>", "é".encode()]
    assert [vocabulary.is_text(token) for token in (inst, think, e, END, 0, 1)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    tokens = allowed(GrammarCompiler(vocabulary).compile(as_regex("(?s).+")).start(), vocabulary)
    assert e in tokens and {inst, think, END, 0}.isdisjoint(tokens)


def test_missing_ids_hide_no_tokens() -> None:
    """Some tokenizers skip ids; the tokens behind are as good as others."""
    pieces = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE({**pieces, "ab": 400, "a b": 410, "<end>": 420}, []))
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = Vocabulary(tokenizer, 450, frozenset({420}))
    assert [vocabulary.token_bytes(token) for token in (300, 400, 410)] == [b"", b"ab", b"a b"]
    matcher = GrammarCompiler(vocabulary).compile(as_regex("ab")).start()
    assert 400 in allowed(matcher, vocabulary)
    matcher.accept(400)
    assert allowed(matcher, vocabulary) == [420]


def test_padding_and_truncation_do_not_matter() -> None:
    """Nor are they touched: the tokenizer is the model's."""
    tokenizer = _byte_tokenizer()
    tokenizer.enable_padding(length=10)
    tokenizer.enable_truncation(3)
    vocabulary = Vocabulary(tokenizer, 280, frozenset({END}))
    assert walk(GrammarCompiler(vocabulary).compile(as_choice("abcdefgh")), vocabulary, 0) == "abcdefgh"
    assert tokenizer.padding and tokenizer.truncation
