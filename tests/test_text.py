"""Token ids become text: whole characters, no part of a stop string, pieces joined."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.text import AnswerText, Detokenizer, StopScanner
from models.fake import _byte_tokenizer

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


def joined(pieces: list[tuple[str | None, str]]) -> str:
    text = AnswerText(TOKENIZER, [])
    out = ""
    for lead, piece in pieces:
        text.begin(lead)
        out += "".join(text.push(id_) for id_ in TOKENIZER.encode(piece).ids) + text.end_prompt()
    return out + text.end()


def test_pieces_of_one_answer_are_joined_by_their_lead() -> None:
    """Leading blanks go, an empty piece leaves no gap, and without a lead the text stays as it is."""
    assert joined([("\n", " And so"), (" ", " my fellow"), ("\n", " ask")]) == "And so my fellow\nask"
    assert joined([("\n", ""), (" ", " one"), (" ", ""), (" ", " two")]) == "one two"
    assert joined([(None, "  as it is ")]) == "  as it is "
