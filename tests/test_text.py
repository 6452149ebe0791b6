"""Token ids become text: whole characters, no part of a stop string, pieces joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.text import AnswerText, Detokenizer, StopScanner
from models.fake import _byte_tokenizer
from wire import TokenLogprob

TOKENIZER = _byte_tokenizer()  # one token for each byte


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


@given(st.text("abXé", max_size=20), st.lists(st.text("abX", min_size=1, max_size=3), max_size=2))
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
        assert len(told) <= len(told_text.encode()) + 1  # the first byte of é has no text of its own
        if answer.stopped:
            break
    answer.end_prompt()
    answer.end()
    more, logprobs = answer.take()
    told_text, told = told_text + more, told + list(logprobs)
    assert told == [logprob(id_) for id_ in ids[: len(told)]]
    assert len(told) == len(told_text.encode()), "as many tokens as bytes of text, of one byte each"
