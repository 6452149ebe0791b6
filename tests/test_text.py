"""Token ids become text: whole characters, no part of a stop string, pieces joined."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from engine.text import AnswerText, Detokenizer, StopScanner
from models.fake import _byte_tokenizer
from wire import TokenLogprob

TOKENIZER = _byte_tokenizer()  # one token for each byte


def _byte_fallback_tokenizer() -> Tokenizer:
    """As of Gemma, Llama 2 and Mistral: a token for each byte, words with their blank; and a special token."""
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁w", "w", "▁the", "é", ""]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


BYTE_FALLBACK = _byte_fallback_tokenizer()
SPACE, SPACE_W, W, SPACE_THE, E_ACUTE, EMPTY, SPECIAL = range(256, 263)
OUT_OF_VOCABULARY = SPECIAL + 1


@given(st.text(max_size=40) | st.just("the end: <|end|>"))
def test_deltas_are_whole_characters_and_add_up(text: str) -> None:
    """A character of several bytes comes when it is whole."""
    detokenizer = Detokenizer(TOKENIZER)
    deltas = [detokenizer.push(id_) for id_ in TOKENIZER.encode(text).ids]
    assert "".join(deltas) + detokenizer.flush() == text
    assert detokenizer.flush() == ""


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    """Nothing that the model said is swallowed."""
    detokenizer = Detokenizer(TOKENIZER)
    for id_ in TOKENIZER.encode("aé").ids[:2]:
        detokenizer.push(id_)
    assert detokenizer.flush() == "\ufffd"


def deltas_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token brings, and what is left at the end."""
    detokenizer = Detokenizer(tokenizer)
    return [*[detokenizer.push(id_) for id_ in ids], detokenizer.flush()]


pieces_of_ids = st.one_of(
    st.integers(0, OUT_OF_VOCABULARY).map(lambda id_: [id_]),
    st.sampled_from([SPACE, SPACE_W, W, SPACE_THE, E_ACUTE, EMPTY, SPECIAL]).map(lambda id_: [id_]),
    st.text(min_size=1, max_size=3).map(lambda text: list(text.encode())),
    st.sampled_from("é😀").map(lambda char: [id_ for byte in char.encode() for id_ in (byte, SPECIAL)]),
)


@given(st.lists(pieces_of_ids, max_size=12).map(lambda pieces: [id_ for piece in pieces for id_ in piece]))
def test_any_tokens_have_a_text(ids: list[int]) -> None:
    """Whatever a model says with bytes of its own: it never fails, and whole characters are the tokenizer's."""
    deltas = deltas_of(BYTE_FALLBACK, ids)
    whole = BYTE_FALLBACK.decode(ids)
    if "\ufffd" not in whole:
        assert "".join(deltas) == whole
        assert deltas[-1] == ""


def test_broken_bytes_are_replacement_characters() -> None:
    """They take nothing of the text around them with them, and a blank after them stays."""
    assert deltas_of(BYTE_FALLBACK, [0x6E, 0xFF, SPACE_W]) == ["n", "", "\ufffd w", ""]
    assert deltas_of(BYTE_FALLBACK, [*"😀".encode(), 0xC3]) == ["", "", "", "😀", "", "\ufffd"]
    assert "".join(deltas_of(BYTE_FALLBACK, [W, *[0xFF] * 100, SPACE_W])) == "w" + "\ufffd" * 100 + " w"


def test_broken_bytes_do_not_hold_the_text_back_for_ever() -> None:
    """Some are told before the text goes on."""
    detokenizer = Detokenizer(BYTE_FALLBACK)
    assert "".join(detokenizer.push(0xFF) for _ in range(20))


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
def test_a_character_of_four_tokens_comes_with_the_fourth(tokenizer: Tokenizer) -> None:
    """Also behind another one, where a byte-fallback decoder takes all neighbouring bytes for broken."""
    ids = TOKENIZER.encode("😀").ids if tokenizer is TOKENIZER else list("😀".encode())
    assert deltas_of(tokenizer, ids * 2) == ["", "", "", "😀"] * 2 + [""]


@pytest.mark.parametrize("id_", [SPECIAL, OUT_OF_VOCABULARY])
def test_silent_tokens_leave_the_text_as_if_they_had_not_come(id_: int) -> None:
    """However many: within a character, before a blank, at the start."""
    silent = [id_] * 50
    assert deltas_of(BYTE_FALLBACK, [*silent, SPACE_W]) == [*[""] * 50, "w", ""]
    assert deltas_of(BYTE_FALLBACK, [W, *silent, SPACE_W]) == ["w", *[""] * 50, " w", ""]
    assert deltas_of(BYTE_FALLBACK, [0xC3, *silent, 0xA9, SPACE_W]) == ["", *[""] * 50, "é", " w", ""]


def test_a_word_behind_many_empty_tokens_keeps_its_blank() -> None:
    """It is not taken for the first."""
    assert deltas_of(BYTE_FALLBACK, [W, *[EMPTY] * 50, SPACE_W]) == ["w", *[""] * 50, " w", ""]


class CountingTokenizer:
    """A tokenizer that knows how many ids it was given to decode, in all and at most at once."""

    def __init__(self) -> None:
        self.num_decoded = self.most_at_once = 0

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        self.num_decoded += len(ids)
        self.most_at_once = max(self.most_at_once, len(ids))
        return BYTE_FALLBACK.decode(ids, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, id_: int) -> str | None:
        return BYTE_FALLBACK.id_to_token(id_)


@pytest.mark.parametrize("id_", [0xFF, 0xC3, W, SPACE, EMPTY, SPECIAL, OUT_OF_VOCABULARY])
def test_the_cost_of_a_token_does_not_grow_with_the_answer(id_: int) -> None:
    """Neither the work nor what is remembered, whatever the tokens; also not the end's."""
    counting = CountingTokenizer()
    deltas_of(counting, [id_] * 2000)
    assert counting.most_at_once <= 40
    assert counting.num_decoded <= 80 * 2000


@given(
    st.lists(st.text("abX", max_size=4), max_size=12),
    st.lists(st.text("abX", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_never_leak(pieces: list[str], stops: list[str]) -> None:
    """The output is the text up to the first stop string, however the text is cut into pieces."""
    scanner = StopScanner(stops)
    given_out = ""
    for piece in pieces:
        given_out += scanner.push(piece)
        assert not any(stop in given_out for stop in stops)
    if not scanner.stopped:
        given_out += scanner.flush()
    text = "".join(pieces)
    cuts = [text.find(stop) for stop in stops if stop in text]
    assert scanner.stopped == bool(cuts)
    if not cuts:
        assert given_out == text
    else:
        assert any(given_out == text[:cut] for cut in (text.find(stop) for stop in stops if stop in text))


def test_what_may_become_a_stop_string_is_held_back() -> None:
    """And given out when it does not."""
    scanner = StopScanner(["END"])
    assert [scanner.push(piece) for piece in ("the E", "N", "G")] == ["the ", "", "ENG"]


class CountingStop(str):
    """A stop string that knows how often it was compared or searched."""

    num_looks = 0

    def startswith(self, *args) -> bool:
        self.num_looks += 1
        return super().startswith(*args)

    def rfind(self, *args) -> int:
        self.num_looks += 1
        return super().rfind(*args)

    def __getitem__(self, index) -> str:
        self.num_looks += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("near_miss", ["E" + "x" * 998 + "y", "E" * 999 + "y"])
def test_a_near_miss_of_a_long_stop_string_is_cheap(near_miss: str) -> None:
    """It is not compared at every length."""
    stop = CountingStop(near_miss[:-1] + "END")
    assert StopScanner([stop]).push(near_miss) == near_miss
    assert stop.num_looks <= 5


def written(text: AnswerText, pieces: list[tuple[str | None, str]]) -> str:
    """All that comes of an answer in pieces."""
    out = ""
    for lead, piece in pieces:
        text.begin(lead)
        for id_ in TOKENIZER.encode(piece).ids:
            text.push(id_)
            out += text.take()[0]
        text.end_prompt()
    text.end()
    return out + text.take()[0]


def joined(pieces: list[tuple[str | None, str]]) -> str:
    return written(AnswerText(TOKENIZER, []), pieces)


def test_pieces_of_one_answer_are_joined_by_their_lead() -> None:
    """Leading blanks go, an empty piece leaves no gap, and without a lead the text stays as it is."""
    assert joined([("\n", " And so"), (" ", " my fellow"), ("\n", " ask")]) == "And so my fellow\nask"
    assert joined([("\n", ""), (" ", " one"), (" ", ""), (" ", " two")]) == "one two"
    assert joined([(None, "  as it is ")]) == "  as it is "


def logprob(id_: int) -> TokenLogprob:
    return TokenLogprob(bytes(str(id_), "ascii"), -1.0)


@given(st.text("abXé😀", max_size=20), st.lists(st.text("abXé😀", min_size=1, max_size=3), max_size=2))
def test_a_tokens_logprob_comes_with_its_text(text: str, stops: list[str]) -> None:
    """Never before its text is certain, all of them in order, and none of a token that is not in the text."""
    answer = AnswerText(TOKENIZER, stops)
    answer.begin(None)
    ids = TOKENIZER.encode(text).ids
    told_text, told = "", []
    for id_ in ids:
        answer.push(id_, logprob(id_))
        more, logprobs = answer.take()
        told_text, told = told_text + more, told + list(logprobs)
        assert len(told) <= len(told_text.encode()), (
            "none of a character that is not whole, or may become a stop string"
        )
        if answer.stopped:
            break
    answer.end_prompt()
    answer.end()
    more, logprobs = answer.take()
    told_text, told = told_text + more, told + list(logprobs)
    assert told == [logprob(id_) for id_ in ids[: len(told)]]
    assert len(told) == len(told_text.encode()), "as many tokens as bytes of text, of one byte each"


def test_no_logprob_of_a_stop_string_is_told_when_it_begins_within_a_character() -> None:
    """The first half of é has no text of its own: it waits for the second."""
    answer = AnswerText(TOKENIZER, ["é"])
    answer.begin(None)
    told = []
    for id_ in TOKENIZER.encode("aé").ids:
        answer.push(id_, logprob(id_))
        told.append(answer.take())
    answer.end()
    assert told == [("a", (logprob(TOKENIZER.encode("a").ids[0]),)), ("", ()), ("", ())]
    assert answer.stopped
    assert answer.take() == ("", ())


def test_logprobs_of_tokens_without_text_come_at_the_end_of_their_prompt() -> None:
    """A model's last words may be half a character, or a special token: they were said."""
    answer = AnswerText(BYTE_FALLBACK, [])
    for last, text in ((0xC3, "\ufffd"), (SPECIAL, "")):
        answer.begin(None)
        answer.push(W, logprob(W))
        answer.push(last, logprob(last))
        assert answer.take() == ("w", (logprob(W),))
        answer.end_prompt()
        assert answer.take() == (text, (logprob(last),))
