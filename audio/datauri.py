"""Base64 and `data:` URIs to bytes. Pure: no I/O, no decoding of audio."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from errors import AudioTooLong, BadAudio

_BLANKS = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")
_HEADER = re.compile(r'(?:[^,"]++|"[^"]*+")*+,')  # a parameter in quotes may hold commas
_IS_BASE64 = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_SCHEME = "data:"
_LEADING_BLANKS = 64  # more than that and it is no address


def is_data_uri(text: str) -> bool:
    return text[: _LEADING_BLANKS + len(_SCHEME)].lstrip()[: len(_SCHEME)].lower() == _SCHEME


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes of a `data:` URI (RFC 2397), base64 or percent-encoded. Its media type is ignored: the bytes decide."""
    header_end = match.end() if (match := _HEADER.match(uri)) else uri.find(",") + 1
    if not header_end:
        raise BadAudio("this data URI has no comma between its header and its data.")
    payload = uri[header_end:]
    if len(payload) > 6 * max_bytes:  # each character of base64 may be percent-encoded, too, and in lines
        raise _too_large(max_bytes)
    if not _IS_BASE64.search(uri, 0, header_end - 1):
        if len(payload) > 3 * max_bytes:
            raise _too_large(max_bytes)
        return _checked(_unquoted(payload), max_bytes)
    return _from_base64(_unquoted(payload).decode("latin-1") if "%" in payload else payload, max_bytes)


def decode_base64(text: str, max_bytes: int) -> bytes:
    """The bytes of base64 text, or of a data URI; white space, the URL-safe alphabet and missing padding are tolerated.

    The length is checked before anything is decoded. Raises `BadAudio` or `AudioTooLong`.
    """
    return decode_data_uri(text, max_bytes) if is_data_uri(text) else _from_base64(text, max_bytes)


def _from_base64(text: str, max_bytes: int) -> bytes:
    if len(text) * 3 // 4 > 2 * max_bytes:  # even with a line break after each character pair there is too much
        raise _too_large(max_bytes)
    compact = _BLANKS.sub("", text).translate(_URL_SAFE).rstrip("=")
    try:
        data = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadAudio("the data is not valid base64.") from None
    return _checked(data, max_bytes)


def _unquoted(text: str) -> bytes:
    try:
        return unquote_to_bytes(text)
    except UnicodeEncodeError:  # half a character, which JSON can write
        raise BadAudio("this data URI holds characters that no URI has.") from None


def _checked(data: bytes, max_bytes: int) -> bytes:
    if not data:
        raise BadAudio("the audio is empty.")
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> AudioTooLong:
    return AudioTooLong(f"the audio is larger than the limit of {max_bytes} bytes. Send it compressed, or in parts.")
