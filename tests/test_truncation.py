"""A file that breaks off is never heard as the whole, wherever it was cut; one whose length nobody knew is heard."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from audio.declared import break_in, mp3_bytes
from audio.decode import DecodeLimits
from errors import BadAudio
from tests.support.decoding import LIMITS, RATE, decode
from tests.support.recordings import DATA, FORMS, SECONDS, encode, recording, speech

TRUNCATED = replace(LIMITS, allow_truncated=True)
CUTS = 16  # over the whole file
CLIPS = ("jfk.wav", "jfk.mp3", "jfk.ogg", "jfk.m4a", "jfk.webm", "librispeech-61-70968-0000.flac")
# What FFmpeg has when a header breaks off, before it has any sound.
NOTHING_HEARD = re.compile("damaged|no audio stream|no decoder|empty|breaks off")


def cuts(data: bytes) -> list[int]:
    """Places all over a file, and each of its last bytes."""
    return [*range(0, len(data) - 12, len(data) // CUTS), *range(len(data) - 12, len(data))]


def heard(data: bytes, directory: Path) -> float | None:
    """Seconds; None where the file is refused. Any other exception fails the test."""
    try:
        return len(decode(data, directory)) / RATE
    except BadAudio as refusal:
        assert NOTHING_HEARD.search(refusal.message)
        return None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def refused(files: Iterable[bytes], directory: Path) -> None:
    before = open_files()
    for data in files:
        assert heard(data, directory) is None, f"heard {len(data)} bytes of it"
    assert open_files() == before


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.declares])
def test_what_declares_its_end_is_refused_without_it(name: str, tmp_path: Path) -> None:
    """Cut anywhere. Whole, it is heard whole."""
    data = recording(name)
    assert heard(data, tmp_path) == pytest.approx(SECONDS, abs=0.05)
    refused((data[:cut] for cut in cuts(data)), tmp_path)


@pytest.mark.parametrize("name", CLIPS)
def test_so_are_real_recordings(name: str, tmp_path: Path) -> None:
    """Other encoders' files."""
    data = (DATA / name).read_bytes()
    refused((data[:cut] for cut in cuts(data)[:: CUTS // 6]), tmp_path)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if not form.declares])
def test_what_declares_no_end_is_refused_inside_a_packet(name: str, tmp_path: Path) -> None:
    """Between two packets nobody can know; what is heard then are whole packets."""
    data = recording(name)
    assert heard(data, tmp_path) == pytest.approx(SECONDS, abs=0.05)
    refusals = [heard(data[:cut], tmp_path) is None for cut in cuts(data)]
    assert sum(refusals) >= len(refusals) - 1


def test_an_mp3_without_a_header_is_heard_up_to_a_frames_end(tmp_path: Path) -> None:
    """26 ms less than the whole; a byte less or more is a broken frame, even if it is but the beginning of a header."""
    data = recording("mp3 without xing")
    last = data.rindex(data[data.index(b"\xff\xfb") :][:2])
    whole, less = heard(data, tmp_path), heard(data[:last], tmp_path)
    assert whole is not None and less == pytest.approx(whole - 1152 / 44_100, abs=1e-3)
    refused((data[: last + byte] for byte in (-1, 1, 2, 3, 5, len(data) - last - 1)), tmp_path)


def test_an_aac_stream_is_heard_up_to_a_frames_end(tmp_path: Path) -> None:
    """The same for ADTS, whose headers have seven bytes."""
    data = recording("aac")
    last = data.rindex(data[:2])
    whole, less = heard(data, tmp_path), heard(data[:last], tmp_path)
    assert whole is not None and less == pytest.approx(whole - 1024 / 44_100, abs=1e-3)
    broken = [data[: last + byte] for byte in (-1, 1, 2, 3, 6, 7, 8, len(data) - last - 1)]
    refused(broken, tmp_path)
    assert all(len(decode(cut, tmp_path, limits=TRUNCATED)) > RATE for cut in broken)


@pytest.mark.parametrize("limits", [LIMITS, TRUNCATED], ids=["", "truncated"])
@pytest.mark.parametrize("name", ["aac", "mp3", "mp3 without xing"])
def test_a_hole_near_the_end_is_no_tail(name: str, limits: DecodeLimits, tmp_path: Path) -> None:
    """As small as a tag would be, but sound comes behind it; allowed to break off is not allowed to have holes."""
    data = recording(name)
    with pytest.raises(BadAudio, match="damaged"):
        decode(data[:-3_000] + bytes(1_000) + data[-2_000:], tmp_path, limits=limits)


@pytest.mark.parametrize("name", FORMS)
def test_truncated_audio_is_heard_where_it_is_allowed(name: str, tmp_path: Path) -> None:
    """As far as it goes: nine tenths of the file are some of the sound, unless they lack its index."""
    data = recording(name)
    cut = data[: len(data) * 9 // 10]
    if name in ("m4a", "m4a alac"):  # their index comes last
        with pytest.raises(BadAudio, match="breaks off"):
            decode(cut, tmp_path, limits=TRUNCATED)
    else:
        assert 0.4 * SECONDS < len(decode(cut, tmp_path, limits=TRUNCATED)) / RATE < SECONDS


def test_a_refusal_tells_how_much_is_there(tmp_path: Path) -> None:
    """In seconds where they are declared, else in bytes."""
    told = {
        "flac": r"after \d\.\d of 2\.0 seconds\.$",
        "mp3": r"after \d\.\d of 2\.0 seconds\.$",
        "webm": r"after \d\.\d of 2\.0 seconds\.$",
        "wav": r"after \d\.\d seconds: 32039 of 64078 bytes are there\.$",
        "m4a": r"breaks off: \d+ of \d+ bytes are there\.$",
        "opus": r"breaks off: its last page has \d+ of \d+ bytes or more\.$|after .* of .* bytes or more\.$",
        "aac": r"after \d\.\d seconds: its last packet is incomplete\.$",
    }
    for name, text in told.items():
        data = recording(name)
        with pytest.raises(BadAudio, match=text):
            decode(data[: len(data) // 2], tmp_path)


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def streamed_wav(size: int) -> Callable[[], bytes]:
    def make() -> bytes:
        data = recording("wav")
        return patched(data, data.index(b"data") + 4, struct.pack("<I", size))

    return make


def streamed_flac() -> bytes:
    """STREAMINFO with no number of samples: the last 36 of 64 bits behind the sizes."""
    data = recording("flac")
    at = 4 + 4 + 13
    return patched(data, at, bytes([data[at] & 0xF0]) + b"\0" * 4)


def streamed_au() -> bytes:
    return patched(recording("au"), 8, b"\xff" * 4)


def streamed_caf() -> bytes:
    data = recording("caf")
    return patched(data, data.index(b"data") + 4, b"\xff" * 8)


STREAMED = {
    "wav 0": streamed_wav(0),
    "wav -1": streamed_wav(0xFFFFFFFF),
    "wav sox": streamed_wav(0x7FFFF000),
    "wav gstreamer": streamed_wav(0x7FFF0000),
    "flac": streamed_flac,
    "au": streamed_au,
    "caf": streamed_caf,
    "webm": lambda: recording("webm live"),
    "mp4": lambda: recording("mp4 fragmented"),
}


@pytest.mark.parametrize("name", STREAMED)
def test_a_length_that_nobody_knew_is_none_that_is_missing(name: str, tmp_path: Path) -> None:
    """Streams declare none, or nonsense that means so."""
    assert heard(STREAMED[name](), tmp_path) == pytest.approx(SECONDS, abs=0.05)


def test_the_beginning_of_a_header_is_a_break(tmp_path: Path) -> None:
    """Of a fragment's, in MP4 and WebM: some bytes tell that more was to come."""
    mp4, webm = recording("mp4 fragmented"), recording("webm live")
    fragment, cluster = mp4.rindex(b"moof"), webm.rindex(b"\x1f\x43\xb6\x75")
    refused((mp4[:fragment], mp4[: fragment + 2], webm[: cluster + 1], webm[: cluster + 3]), tmp_path)
    assert heard(mp4[: fragment - 4], tmp_path) == pytest.approx(1.5, abs=0.2)
    assert heard(webm[:cluster], tmp_path) is not None


def test_a_streamed_flac_is_refused_inside_a_frame(tmp_path: Path) -> None:
    """It declares no samples, but its frame has a length."""
    data = streamed_flac()
    refused((data[:-byte] for byte in (1, 2, 7, 100, 700)), tmp_path)
    assert len(decode(data[:-100], tmp_path, limits=TRUNCATED)) / RATE > 1.8


@pytest.mark.parametrize(
    "tail",
    [b"TAG" + b" " * 125, b"APETAGEX" + b"\0" * 100, b"ID3\x04" + b"\0" * 60, b"\0" * 512],
    ids=["ID3v1", "APE", "ID3v2", "padding"],
)
@pytest.mark.parametrize(
    "name", ["wav", "aiff", "caf", "flac", "mp3", "mp3 without xing", "aac", "opus", "m4a", "webm"]
)
def test_junk_behind_the_end_is_no_truncation(name: str, tail: bytes, tmp_path: Path) -> None:
    """Tags and padding change nothing of what is heard."""
    data = recording(name)
    assert heard(data + tail, tmp_path) == heard(data, tmp_path)


def test_an_ogg_that_lacks_its_last_page_is_refused(tmp_path: Path) -> None:
    """Cut between two pages it looks whole, but for the mark that the standard wants on the last one."""
    data = (DATA / "jfk.ogg").read_bytes()
    cut = data[: data.rindex(b"OggS")]
    with pytest.raises(BadAudio, match="the page is missing that ends it"):
        decode(cut, tmp_path)
    assert len(decode(cut, tmp_path, limits=TRUNCATED)) / RATE > 9


def test_a_page_that_is_lost_on_the_way_is_missed(tmp_path: Path) -> None:
    """Its time is missing in the end, though the file ends as it should."""
    data = (DATA / "jfk.ogg").read_bytes()
    pages = [match.start() for match in re.finditer(b"OggS", data)]
    with pytest.raises(BadAudio, match=r"after 10\.0 of 11\.0 seconds"):
        decode(data[: pages[5]] + data[pages[6] :], tmp_path)


def test_an_mp3_cut_between_two_frames_is_told_by_its_header(tmp_path: Path) -> None:
    """Its bytes tell exactly. Its frames alone might count the header's own: so less than 0.1 s is not missed."""
    data = recording("mp3 mpeg2")
    frames = [match.start() for match in re.finditer(re.escape(data[data.index(b"\xff\xf3") :][:2]), data)]
    assert mp3_bytes(data) == len(data)
    refused((data[:end] for end in (frames[-1], frames[-2], frames[-10])), tmp_path)
    flags = data.index(b"Info") + 4
    count, rest = data[flags + 4 : flags + 8], data[flags + 12 : frames[1]]
    frames_only = data[:flags] + b"\0\0\0\x0d" + count + rest + bytes(4) + data[frames[1] :]
    assert heard(frames_only[: frames[-1]], tmp_path) is not None
    refused([frames_only[: frames[-5]]], tmp_path)
    one_more = (int.from_bytes(count, "big") + 1).to_bytes(4, "big")
    assert heard(patched(data, flags + 4, one_more), tmp_path) is not None


def test_a_guessed_length_is_not_missed(tmp_path: Path) -> None:
    """Without a Xing header FFmpeg takes the first frames' bit rate for that of all, here a quarter of it."""
    low, high = (
        encode(
            speech(44_100),
            44_100,
            "mp3",
            "libmp3lame",
            options={"write_xing": "0", "id3v2_version": "0"},
            bit_rate=rate,
        )
        for rate in (32_000, 128_000)
    )
    assert heard(low + high, tmp_path) == pytest.approx(2 * SECONDS, abs=0.2)


def test_a_streamed_block_that_breaks_off_is_refused(tmp_path: Path) -> None:
    """ADPCM has blocks of a kilobyte, which FFmpeg decodes in parts, too."""
    data = recording("wav adpcm")
    streamed = patched(data, data.index(b"data") + 4, b"\xff" * 4)
    assert heard(streamed, tmp_path) == heard(data, tmp_path)
    with pytest.raises(BadAudio, match="its last packet is incomplete"):
        decode(streamed[:-400], tmp_path)


def test_a_last_packet_of_nonsense_is_damage(tmp_path: Path) -> None:
    """Complete, but no ALAC; and no more of the sound than padding might be."""
    data = recording("m4a alac")
    end = data.rindex(b"moov") - 4
    with pytest.raises(BadAudio, match="damaged"):
        decode(data[: end - 4_200] + b"\xff" * 4_200 + data[end:], tmp_path, limits=TRUNCATED)


def test_frames_that_are_lost_from_an_aac_stream_are_missed(tmp_path: Path) -> None:
    """Also where those around them are whole."""
    data = recording("aac")
    frames = [match.start() for match in re.finditer(re.escape(data[:2]), data)]
    first, behind = frames[40], frames[43]
    with pytest.raises(BadAudio, match="damaged"):
        decode(data[:first] + bytes(behind - first) + data[behind:], tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\0\0\0\0WAVEdata\xff",
        b"RIFF\0\0\0\0WAVE" + b"LIST\xff\xff\xff\x7f" + b"\0" * 100,
        b"FORM\0\0\0\0AIFF" + b"SSND",
        b"caff\0\1\0\0" + b"data" + b"\x80" + b"\0" * 7,
        b".snd\0",
        b"\x1a\x45\xdf\xa3\x00" + b"\0" * 100,
        b"\0\0\0\1ftyp" + b"\0" * 8,
        b"\0\0\0\0moov",
    ],
)
def test_headers_that_make_no_sense_declare_nothing(data: bytes) -> None:
    """FFmpeg says what is wrong with them."""
    assert break_in(data) is None
