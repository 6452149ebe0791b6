"""Base64 and data URIs become bytes, or a sentence."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio.datauri import decode_base64, decode_data_uri
from errors import AudioTooLong, BadAudio

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
