"""Base64 and `data:` URIs to bytes. Pure: no I/O, no decoding of audio."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from errors import AudioTooLong, BadAudio

_BLANKS = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def is_data_uri(text: str) -> bool:
    return text[:5].lower() == "data:"


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes of a `data:` URI (RFC 2397), base64 or percent-encoded. Its media type is ignored: the bytes decide."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise BadAudio("this data URI has no comma between its header and its data.")
    if header.lower().endswith(";base64"):
        return decode_base64(payload, max_bytes)
    if len(payload) > 3 * max_bytes:
        raise _too_large(max_bytes)
    return _checked(unquote_to_bytes(payload), max_bytes)


def decode_base64(text: str, max_bytes: int) -> bytes:
    """The bytes of base64 text; white space, the URL-safe alphabet and missing padding are tolerated.

    The length is checked before anything is decoded. Raises `BadAudio` or `AudioTooLong`.
    """
    if is_data_uri(text):
        return decode_data_uri(text, max_bytes)
    if len(text) * 3 // 4 > 2 * max_bytes:  # even with a line break after each character pair there is too much
        raise _too_large(max_bytes)
    compact = _BLANKS.sub("", text).translate(_URL_SAFE).rstrip("=")
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadAudio("the data is not valid base64.") from None
    return _checked(data, max_bytes)


def _checked(data: bytes, max_bytes: int) -> bytes:
    if not data:
        raise BadAudio("the audio is empty.")
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> AudioTooLong:
    return AudioTooLong(f"the audio is larger than the limit of {max_bytes} bytes. Send it compressed, or in parts.")
