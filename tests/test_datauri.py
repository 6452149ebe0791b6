"""Base64 and data URIs become bytes, or a sentence."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.datauri import decode_base64, decode_data_uri
from errors import AudioTooLong, BadAudio, BadRequest

LIMIT = 1000


@given(st.binary(min_size=1, max_size=LIMIT))
def test_base64_comes_back_as_it_went(data: bytes) -> None:
    """Plain, URL-safe, without padding and in lines."""
    plain = base64.b64encode(data).decode()
    for text in (plain, base64.urlsafe_b64encode(data).decode(), plain.rstrip("="), base64.encodebytes(data).decode()):
        assert decode_base64(text, LIMIT) == data


@given(st.binary(min_size=1, max_size=LIMIT))
def test_data_uris_come_back_as_they_went(data: bytes) -> None:
    """Base64 and percent-encoded, whatever the media type says."""
    text = base64.b64encode(data).decode()
    assert decode_data_uri(f"data:audio/ogg;base64,{text}", LIMIT) == data
    assert decode_data_uri(f"data:audio/ogg;codecs=opus;BASE64,{text}", LIMIT) == data
    assert decode_data_uri(f"data:,{quote(data)}", LIMIT) == data
    assert decode_base64(f"data:audio/wav;base64,{text}", LIMIT) == data


PARAMETERS = st.sampled_from(
    ["", ";codecs=opus", ';codecs="opus, vorbis"', ';name="a;base64,b"', ";charset=utf-8", ";x"]
)
SCHEMES = st.sampled_from(["data:", "DATA:", "Data:", " \n data:"])
MEDIA_TYPES = st.sampled_from(["", "audio/wav", "audio/ogg", "AUDIO/X-M4A", "text/plain"])


@st.composite
def written(draw: st.DrawFn, data: bytes) -> str:
    """Base64 as somebody may write it: alphabet, padding, blanks, percent signs."""
    text = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))(data).decode()
    text = text.rstrip("=") if draw(st.booleans()) else text
    blank = draw(st.sampled_from(["", " ", "\n", "\r\n"]))
    width = draw(st.integers(4, 100))
    lines = [text[i : i + width] for i in range(0, len(text), width)]
    return draw(st.sampled_from([str, lambda line: quote(line, safe="")]))(blank.join(lines))


@given(st.data(), st.binary(min_size=1, max_size=LIMIT), SCHEMES, MEDIA_TYPES, PARAMETERS)
def test_a_data_uri_may_be_written_in_many_ways(draw, data, scheme, media_type, parameters) -> None:
    """They all mean the same bytes; commas in quotes and words in them mean nothing."""
    mark = draw.draw(st.sampled_from([";base64", ";BASE64", "; base64 "]))
    uri = f"{scheme}{media_type}{parameters}{mark},{draw.draw(written(data))}"
    assert decode_data_uri(uri, LIMIT) == decode_base64(uri, LIMIT) == data
    percent = f"{scheme}{media_type}{parameters},{quote(data, safe='')}"
    assert decode_base64(percent, LIMIT) == data


@given(
    st.one_of(st.text(st.characters()), st.from_regex(r"(?i)data:[^,]*,.*"), st.text('data:;base64,%"=+ AQ\ud800\n'))
)
def test_any_text_is_bytes_or_a_bad_request(text: str) -> None:
    """No other exception, whatever is written, and never more bytes than allowed."""
    for decode in (decode_base64, decode_data_uri):
        try:
            assert 0 < len(decode(text, LIMIT)) <= LIMIT
        except BadRequest as refusal:
            assert type(refusal) in (BadAudio, AudioTooLong)


@pytest.mark.parametrize(
    "text",
    [
        "data:;base64," * 5_000 + "QUJD",
        "data:,\ud800",
        "data:;base64,\ud800",
        "data:;base64,%41%ff",
        "data:" + '"' * 50_001,
        " " * 100_000 + "!",
        "=" * 100_000,
        "data:;base64," + "%20" * 100_000,
        "A" * 100_001,
    ],
    ids=["nested", "half", "half64", "latin", "quotes", "blanks", "padding", "percent", "long"],
)
def test_what_costs_or_nests_is_refused(text: str) -> None:
    """At once, and without a recursion or a conversion that fails."""
    with pytest.raises((BadAudio, AudioTooLong)):
        decode_base64(text, 100_000)


@pytest.mark.parametrize("text", ["", "   ", "=", "not base64!", "YWJj*", "a", "Zürich"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    """Empty audio and broken base64 are a bad request."""
    with pytest.raises(BadAudio):
        decode_base64(text, LIMIT)


def test_a_data_uri_without_a_comma_is_refused() -> None:
    """There is no data in it."""
    with pytest.raises(BadAudio, match="no comma"):
        decode_data_uri("data:audio/ogg;base64", LIMIT)


@pytest.mark.parametrize("size", [LIMIT + 1, 100 * LIMIT])
def test_what_is_too_large_is_refused(size: int) -> None:
    """By its length before decoding where that tells, else after."""
    with pytest.raises(AudioTooLong):
        decode_base64(base64.b64encode(b"x" * size).decode(), LIMIT)
    with pytest.raises(AudioTooLong):
        decode_data_uri("data:," + "x" * size, LIMIT)
