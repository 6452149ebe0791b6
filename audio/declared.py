"""What a file says of its end: where its audio stops, and whether the file goes that far. Pure: bytes in, words out.

FFmpeg reads what is there and calls it the whole. Where it does tell the seconds that were declared, decode.py asks it;
this file reads the rest. A length that its writer did not know (a recorder's stream) is no break, and neither is junk
behind the end (tags, padding). Nothing here knows codecs, but for the frame headers of MP3 and AAC.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Streams write what they cannot know as the largest number, or so (FFmpeg 0xFFFFFFFF, SoX 0x7FFFF000, GStreamer
# 0x7FFF0000, less a header in others), or as 0.
UNKNOWN_FROM = 0x7FFF_0000
# An hour of WebM has 180,000 packets of 20 ms. A file with more than this is not looked through.
MAX_ELEMENTS = 1_000_000

W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
EBML = b"\x1a\x45\xdf\xa3"
# Behind the header, a segment and a cluster, then their parts (RFC 9559); empty space and checksums may stand anywhere.
_ELEMENT_NAMES = """1A45DFA3 18538067 1F43B675 114D9B74 1549A966 1654AE6B 1C53BB6B 1941A469 1043A770 1254C367
    E7 A3 A0 A7 AB AF 5854 EC BF"""
ELEMENTS = frozenset(bytes.fromhex(name) for name in _ELEMENT_NAMES.split())
# ISO/IEC 14496-12: what may stand at the top of a file.
BOXES = frozenset(b"ftyp styp moov moof mdat free skip wide uuid sidx ssix mfra meta emsg prft pdin pnot udta".split())
# ISO/IEC 11172-3 and 13818-3, layer III: kbit/s by MPEG-1 or not, Hz by the version's two bits.
MP3_KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MP3_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
OGG_HEADER_BYTES, MP3_HEADER_BYTES, ADTS_HEADER_BYTES = 27, 4, 7


def break_in(data: bytes) -> str | None:
    """How the file ends too early, as the second half of a sentence; None where it does not, or does not tell."""
    if data[:4] == b"OggS":
        return _break_in_ogg(data)
    end = declared_bytes(data)
    if end is None or end <= len(data):
        return None
    return f"{len(data)} of {end} bytes are there"


def declared_bytes(data: bytes) -> int | None:
    """How many bytes the file has at least, as its container says; None where that is not said."""
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return _end_of_wav(data)
    if data[:16] == W64_RIFF:
        return _end_of_chunk(_w64_chunks(data), {b"data"})
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return _end_of_chunk(_chunks(data, 12, ">4sI", 2), {b"SSND"})
    if data[:4] == b"caff":
        return _end_of_chunk(_chunks(data, 8, ">4sq", 1), {b"data", b"pakt"})
    if data[:4] == b".snd" and len(data) >= 12:
        offset, size = struct.unpack_from(">II", data, 4)
        return None if size >= UNKNOWN_FROM else int(offset + size)
    if data[:4] == EBML:
        return _end_of_ebml(data)
    if data[4:8] in BOXES:
        return _end_of_boxes(data)
    return None


def _chunks(data: bytes, start: int, header: str, alignment: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and size of each chunk's contents, until one is not all there."""
    header_bytes = struct.calcsize(header)
    for _ in range(MAX_ELEMENTS):
        if start + header_bytes > len(data):
            return
        name, size = struct.unpack_from(header, data, start)
        yield name, start + header_bytes, size
        if size < 0:
            return
        start += header_bytes + size + -size % alignment


def _w64_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Sony Wave64's sizes count their headers of 24 bytes."""
    start = 40
    while start + 24 <= len(data):
        size = struct.unpack_from("<q", data, start + 16)[0]
        yield data[start : start + 4], start + 24, size - 24
        if size < 24:
            return
        start += size + -size % 8


def _end_of_chunk(chunks: Iterator[tuple[bytes, int, int]], names: set[bytes]) -> int | None:
    """Where the last of the named chunks ends."""
    ends = [begin + size for name, begin, size in chunks if name in names and 0 < size < UNKNOWN_FROM]
    return max(ends, default=None)


def _end_of_wav(data: bytes) -> int | None:
    long_size = 0
    for name, begin, size in _chunks(data, 12, "<4sI", 2):
        if name == b"ds64" and begin + 16 <= len(data):  # the sizes of RF64 (EBU Tech 3306): the file's, the data's
            long_size = struct.unpack_from("<Q", data, begin + 8)[0]
        if name == b"data":
            size = long_size if size == 0xFFFF_FFFF else size
            return begin + size if 0 < size < UNKNOWN_FROM else None
    return None


def _end_of_boxes(data: bytes) -> int:
    """Where the last of an MP4's boxes ends, or its header."""
    start = 0
    for _ in range(MAX_ELEMENTS):
        head = data[start : start + 16]
        if not head.strip(b"\0") or (len(head) >= 8 and head[4:8] not in BOXES):
            break  # the end, or junk behind it
        if len(head) < 8:
            return start + 8
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        if size < 8:  # 0: to the end of the file
            break
        start += size
    return start


def _end_of_ebml(data: bytes) -> int:
    """Where the last of a Matroska's elements ends, or its header. What has no size (a live segment or cluster) is
    walked through. RFC 8794, sections 4 and 5."""
    start = 0
    for _ in range(MAX_ELEMENTS):
        if start >= len(data) or data[start] == 0:
            break
        size_at = start + _vint_bytes(data[start])
        name = data[start:size_at]
        if size_at >= len(data) and any(known.startswith(name) for known in ELEMENTS):
            return size_at + 1
        if name not in ELEMENTS or size_at >= len(data) or data[size_at] == 0:
            break  # junk behind the end
        begin = size_at + _vint_bytes(data[size_at])
        unknown = (1 << 7 * (begin - size_at)) - 1
        size = int.from_bytes(data[size_at:begin], "big") & unknown
        start = begin if size == unknown or begin > len(data) else begin + size
    return start


def _vint_bytes(first: int) -> int:
    """The length of a number of EBML, by its first byte."""
    return 9 - first.bit_length()


def _break_in_ogg(data: bytes) -> str | None:
    """RFC 3533, section 6: each logical stream ends with a page that says so."""
    open_streams: set[bytes] = set()
    start = 0
    for _ in range(MAX_ELEMENTS):
        start = data.find(b"OggS", start)
        if start < 0:
            return "the page is missing that ends it" if open_streams else None
        table = start + OGG_HEADER_BYTES
        count = data[table - 1] if table <= len(data) else 0
        end = table + count + sum(data[table : table + count])
        if end > len(data):
            return f"its last page has {len(data) - start} of {end - start} bytes or more"
        flags, serial = data[start + 5], data[start + 14 : start + 18]
        if flags & 2:
            open_streams.add(serial)
        if flags & 4:
            open_streams.discard(serial)
        start = end
    return None


def mp3_bytes(data: bytes) -> int | None:
    """Where an MP3's last frame ends, as its Xing, Info or VBRI header says; None where it has none. Without one FFmpeg
    guesses the duration."""
    start = _behind_id3(data)
    size = frame_bytes(data[start : start + ADTS_HEADER_BYTES])
    frame = data[start : start + (size or 0)]
    for name, flags_at in ((b"Xing", 4), (b"Info", 4)):
        at = frame.find(name)
        if at > 0 and len(frame) >= at + 16:
            flags, first, second = struct.unpack_from(">III", frame, at + flags_at)
            if flags & 3 == 3 and first and second:  # the number of frames, then the number of bytes
                return start + int(second)
            return start if flags & 1 else None
    if frame[36:40] == b"VBRI" and len(frame) >= 50:
        return start + int(struct.unpack_from(">I", frame, 46)[0])
    return None


def _behind_id3(data: bytes) -> int:
    """ID3v2.4, section 3.1: sizes of four times seven bits, without the header and the footer."""
    start = 0
    while data[start : start + 3] == b"ID3" and len(data) >= start + 10:
        flags, *sizes = data[start + 5 : start + 10]
        size = 0
        for bits in sizes:
            size = size << 7 | bits & 0x7F
        start += 10 + size + (10 if flags & 0x10 else 0)
    return start


def frame_bytes(header: bytes) -> int | None:
    """The length of the MP3 (layer III) or ADTS frame that begins with `header`, 7 bytes; None where none does."""
    if len(header) < MP3_HEADER_BYTES or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    if layer == 0 and header[1] & 0xF0 == 0xF0:
        known = len(header) >= 6
        return max(ADTS_HEADER_BYTES, (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5) if known else None
    kbits, hz, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if layer != 1 or version not in MP3_HZ or kbits in (0, 15) or hz == 3:
        return None
    is_mpeg1 = version == 3
    return (144 if is_mpeg1 else 72) * 1000 * MP3_KBITS[is_mpeg1][kbits] // MP3_HZ[version][hz] + padding


def is_cut_frame(data: bytes, start: int) -> bool:
    """Whether an MP3 or ADTS frame begins at `start` that the file ends before."""
    header = data[start : start + ADTS_HEADER_BYTES]
    size = frame_bytes(header)
    if size is not None:
        return start + size > len(data)
    is_short = 0 < len(header) < ADTS_HEADER_BYTES and start + len(header) == len(data)
    return is_short and header[0] == 0xFF and (len(header) == 1 or header[1] & 0xE0 == 0xE0)
