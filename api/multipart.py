"""A `multipart/form-data` body, read while it comes: its one file goes to the spool, its fields stay few and small.

Bytes decide what a file is: its name and its type are not looked at. The headers of a part are bounded by the parser.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from errors import AudioTooLong, BadAudio, BadRequest

FILE = "file"  # the name of the part that is audio
MAX_PARTS = 64
MAX_FIELD_BYTES = 65_536
WRITE_BYTES = 1 << 18  # of the file that are gathered before they are written


@dataclass
class Form:
    """What has come. `num_file_bytes` is `None` while there is no file."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    num_file_bytes: int | None = None


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    data: bytearray = field(default_factory=bytearray)


class FormReader:
    """Takes a body chunk by chunk. What it has of the file is in `waiting`, for its caller to take away."""

    def __init__(self, content_type: str, max_file_bytes: int) -> None:
        """Raises `BadRequest` for a header without a boundary."""
        _, options = parse_options_header(content_type)
        if not options.get(b"boundary"):
            raise BadRequest("The header `Content-Type: multipart/form-data` names no boundary.")
        self.form = Form()
        self.waiting = bytearray()
        self._max_file_bytes = max_file_bytes
        self._num_parts = 0
        self._ended = False
        self._part = _Part()
        self._header = (bytearray(), bytearray())  # name, value
        try:
            self._parser = MultipartParser(options[b"boundary"], self._callbacks())  # type: ignore[arg-type]
        except FormParserError:
            raise BadRequest(
                "The header `Content-Type: multipart/form-data` has a boundary that none can be."
            ) from None

    def feed(self, chunk: bytes) -> None:
        """Raises `BadRequest` for what is no form, or over a limit."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise _broken() from None

    def finish(self) -> Form:
        """The form, once all of the body has come. Raises `BadRequest` where it breaks off."""
        if not self._ended:
            raise _broken()
        return self.form

    def _callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._gather(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._gather(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._take(data[start:end]),
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise BadRequest(f"The form has more than the limit of {MAX_PARTS} parts.")
        self._part = _Part()

    def _gather(self, index: int, data: bytes) -> None:
        self._header[index].extend(data)

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        """The headers are complete."""
        _, options = parse_options_header(self._part.headers.get(b"content-disposition"))
        if b"name" not in options:
            raise BadRequest("A part of the form has no name (Content-Disposition: form-data; name=...).")
        self._part.name = options[b"name"].decode(errors="replace")
        if self._part.name == FILE:
            if self.form.num_file_bytes is not None:
                raise BadRequest("`file`: the form holds more than one. Send one file in a request.", FILE)
            self.form.num_file_bytes = 0

    def _take(self, data: bytes) -> None:
        part, form = self._part, self.form
        if part.name == FILE:
            assert form.num_file_bytes is not None, "opened above"
            form.num_file_bytes += len(data)
            if form.num_file_bytes > self._max_file_bytes:
                raise AudioTooLong(
                    f"`file`: the audio is larger than the limit of {self._max_file_bytes} bytes. Send it compressed, "
                    "or in parts.",
                    FILE,
                )
            self.waiting += data
            return
        if len(part.data) + len(data) > MAX_FIELD_BYTES:
            raise BadRequest(
                f"A field of the form has more than the limit of {MAX_FIELD_BYTES} bytes.", _shown(part.name)
            )
        part.data += data

    def _end_part(self) -> None:
        part = self._part
        if part.name == FILE:
            return
        try:
            text = part.data.decode()
        except UnicodeDecodeError:
            raise BadRequest("A field of the form is not text in UTF-8.", _shown(part.name)) from None
        self.form.fields.setdefault(part.name, []).append(text)

    def _end(self) -> None:
        self._ended = True


async def read_form(
    chunks: AsyncGenerator[bytes, None], reader: FormReader, store: Callable[[bytes], Awaitable[None]]
) -> Form:
    """The form in a body. `store` takes the bytes of its file, in order. Raises
    `BadRequest`."""
    async with aclosing(chunks):
        async for chunk in chunks:
            reader.feed(chunk)
            if len(reader.waiting) >= WRITE_BYTES:
                await store(_taken(reader))
    if reader.waiting:
        await store(_taken(reader))
    form = reader.finish()
    if form.num_file_bytes == 0:
        raise BadAudio("`file`: the audio is empty.", FILE)
    return form


def _taken(reader: FormReader) -> bytes:
    data, reader.waiting = bytes(reader.waiting), bytearray()
    return data


def _broken() -> BadRequest:
    return BadRequest("The request body is not a valid multipart form, or breaks off.")


def _shown(name: str) -> str | None:
    """A part's name for an error; none where it is not a plain one."""
    return name if name.isidentifier() else None
