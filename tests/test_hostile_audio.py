"""Files made to mislead: what they claim, what they name, what they cost. Each is a sentence to the client, no more."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from audio.decode import DecodeLimits
from audio.pool import KILL_GRACE_S, DecodePool
from errors import AudioTooLong, BadAudio
from tests.support.decoding import RATE, decode
from tests.support.recordings import DATA, encode, recording, speech

ROOT = Path(__file__).resolve().parents[1]
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c63f8ffff3f0005fe02fe"
    "a7355b0b0000000049454e44ae426082".replace(" ", "")
)

# ------------------------------------------------------------------------------------------------- what a header claims


def wav(**fields: int) -> bytes:
    """Two seconds of 16-bit speech at 16 kHz, with some fields of its header set to something else."""
    data = bytearray(recording("wav"))
    fmt, payload = data.index(b"fmt ") + 8, data.index(b"data") + 4
    places = {
        "channels": (fmt + 2, "<H"),
        "rate": (fmt + 4, "<I"),
        "bytes_per_s": (fmt + 8, "<I"),
        "block": (fmt + 12, "<H"),
        "bits": (fmt + 14, "<H"),
        "size": (payload, "<I"),
    }
    for name, value in fields.items():
        at, form = places[name]
        struct.pack_into(form, data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rate": 0}, "damaged|rate of 0 Hz"),
        ({"rate": 10_000_000}, "rate of 10000000 Hz"),
        ({"channels": 0}, "damaged|channels"),
        ({"channels": 1000, "block": 2000}, "channels are not supported"),
        ({"bits": 0}, "no decoder is known"),
        ({"size": 64_001}, "64078 of 64079 bytes"),
        ({"size": 1 << 30}, "64078 of"),
    ],
)
def test_a_lying_header_is_refused(fields: dict[str, int], text: str, tmp_path: Path) -> None:
    """No rate, no channels, more samples than there are."""
    with pytest.raises(BadAudio, match=text):
        decode(wav(**fields), tmp_path)


@pytest.mark.parametrize("fields", [{"block": 0}, {"bytes_per_s": 0}, {"bytes_per_s": 0xFFFFFFFF}])
def test_fields_that_follow_from_others_are_not_believed(fields: dict[str, int], tmp_path: Path) -> None:
    """The same samples, though the header says nonsense."""
    assert np.array_equal(decode(wav(**fields), tmp_path), decode(wav(), tmp_path))


def test_the_data_ends_where_it_is_declared_to_end(tmp_path: Path) -> None:
    """What stands behind a WAV's samples is no sound: other chunks, as a rule."""
    assert np.array_equal(decode(wav(size=32_000), tmp_path), decode(wav(), tmp_path)[:RATE])


@pytest.mark.parametrize("name", ["wav", "aiff", "au", "w64"])
def test_a_file_without_samples_is_empty(name: str, tmp_path: Path) -> None:
    """A header, and the end."""
    header = {"wav": 44, "aiff": 54, "au": 32, "w64": 104}[name]
    data = bytearray(
        encode(np.zeros((1, 1), np.float32), RATE, name, "pcm_s16le" if name in ("wav", "w64") else "pcm_s16be")
    )
    with pytest.raises(BadAudio):
        decode(bytes(data[:header]), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 20_000, -1])
def test_one_sample_that_is_no_number_is_enough(value: float, at: int, tmp_path: Path) -> None:
    """Wherever it is, also behind the last whole block."""
    samples = speech(RATE).copy()
    samples[0, at] = value
    with pytest.raises(BadAudio, match="not finite numbers"):
        decode(encode(samples, RATE, "wav", "pcm_f32le"), tmp_path)


def test_a_number_that_float32_cannot_hold_is_none(tmp_path: Path) -> None:
    """Doubles can be too large."""
    data = bytearray(encode(speech(RATE), RATE, "wav", "pcm_f64le"))
    struct.pack_into("<d", data, len(data) - 800, 1e300)
    with pytest.raises(BadAudio, match="not finite numbers"):
        decode(bytes(data), tmp_path)


# ------------------------------------------------------------------------------------------------ what is not the sound


def test_the_first_sound_of_a_video_is_heard(tmp_path: Path) -> None:
    """Not its pictures, not its other languages."""
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        tracks = [out.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for _ in range(30):  # three seconds, longer than the sound
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")
            out.mux(video.encode(frame))
        for track, hertz in zip(tracks, (440, 880), strict=True):
            tone = (8_000 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            frame.sample_rate = RATE
            out.mux(track.encode(frame))
        for stream in (video, *tracks):
            out.mux(stream.encode(None))
    waveform = decode(path.read_bytes(), tmp_path)
    assert len(waveform) == RATE
    assert np.argmax(np.abs(np.fft.rfft(waveform))) == 440


def with_cover(name: str, picture: bytes) -> bytes:
    data = recording(name)
    if name == "mp3":
        apic = b"\0image/png\0\x03\0" + picture
        frame = b"APIC" + struct.pack(">IH", len(apic), 0) + apic
        sizes = bytes(len(frame) >> bits & 0x7F for bits in (21, 14, 7, 0))
        return b"ID3\x03\0\0" + sizes + frame + data[data.index(b"\xff\xfb") :]
    fields = struct.pack(">II9sIIIIII", 3, 9, b"image/png", 0, 1, 1, 32, 0, len(picture)) + picture
    return data[:42] + b"\x06" + len(fields).to_bytes(3, "big") + fields + data[42:]


@pytest.mark.parametrize("size", [len(PNG), 3_000_000])
@pytest.mark.parametrize("name", ["mp3", "flac"])
def test_a_cover_is_no_sound(name: str, size: int, tmp_path: Path) -> None:
    """Nor is it in the way, as large as it may be."""
    picture = PNG + bytes(size - len(PNG))
    assert np.array_equal(decode(with_cover(name, picture), tmp_path), decode(recording(name), tmp_path))
    with pytest.raises(BadAudio):
        decode(picture, tmp_path)


# ---------------------------------------------------------------------------------------------------- what a file names


@pytest.mark.parametrize("container", ["avi", "nut", "voc", "asf"])
def test_other_formats_are_not_even_tried(container: str, tmp_path: Path) -> None:
    """FFmpeg knows hundreds, few as well tested as those that we take."""
    with pytest.raises(BadAudio, match="not audio that FFmpeg can decode"):
        decode(encode(speech(RATE), RATE, container, "pcm_s16le"), tmp_path)


CONCAT = "ffconcat version 1.0\nfile '{file}'\n"
HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" '
    'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="audio/mp4"><Representation '
    'id="0" bandwidth="1000"><BaseURL>{address}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
RTSP = "RTSP/1.0 200 OK\r\nLocation: {address}\r\n\r\n"
M3U = "{address}\n{file}\n"
SCRIPTS = {"concat": CONCAT, "hls": HLS, "dash": DASH, "sdp": SDP, "rtsp": RTSP, "m3u": M3U}


@pytest.mark.parametrize("scheme", ["file", "http", "tcp", "relative"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_opens_nothing(script: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that it names is there, and would be heard; the socket that it names listens, and hears nothing."""
    (tmp_path / "secret.wav").write_bytes(recording("wav"))
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        address = {
            "file": f"file://{tmp_path}/secret.wav",
            "http": f"http://127.0.0.1:{port}/secret.wav",
            "tcp": f"tcp://127.0.0.1:{port}",
            "relative": "secret.wav",
        }[scheme]
        text = SCRIPTS[script].format(address=address, port=port, file=address if scheme != "file" else "secret.wav")
        with pytest.raises(BadAudio, match="not audio that FFmpeg can decode"):
            decode(text.encode(), tmp_path)
        with pytest.raises(BlockingIOError):
            listener.accept()


# -------------------------------------------------------------------------------------------------------- what it costs


def test_hours_of_silence_stop_at_the_limit(tmp_path: Path) -> None:
    """Opus makes eight hours of 25 MB, and here a minute of little: no more is decoded than a block over the limit."""
    data = encode(np.zeros((1, 60 * 48_000), np.float32), 48_000, "ogg", "libopus")
    assert len(data) < 40_000
    with pytest.raises(AudioTooLong, match="limit of 5 seconds"):
        decode(data, tmp_path, limits=DecodeLimits(5, 1 << 28, 5, 1))
    assert (tmp_path / "target").stat().st_size <= 6 * RATE * 4


async def test_a_decoder_that_overruns_its_time_is_killed(tmp_path: Path) -> None:
    """A pipe that nobody writes to: the client is told, the process is gone, and the next audio is decoded. The hours
    that the limit allows are for files that may hold so much."""
    hanging = DecodeLimits(max_seconds=36_000, max_decoded_bytes=1 << 28, base_s=0.5 - KILL_GRACE_S, s_per_minute=1)
    pool = DecodePool(1, hanging)
    try:
        pipe, target = tmp_path / "pipe", tmp_path / "out"
        os.mkfifo(pipe)
        target.touch()
        waiting = asyncio.ensure_future(pool.decode(str(pipe), str(target), RATE))
        with await asyncio.to_thread(pipe.open, "wb", 0):  # opens as soon as the decoder reads
            (decoder,) = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
            with pytest.raises(AudioTooLong, match="takes longer than allowed"):
                await waiting
        decoder.wait(10)
        with pytest.raises(AudioTooLong, match=r"after \d seconds"):  # by its own count now: it lives
            await pool.decode(str(DATA / "jfk.ogg"), str(target), RATE)
    finally:
        pool.close()


PEAK = """
import sys
from audio.decode import DecodeLimits, decode_file
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
limits = DecodeLimits(10_000, 1 << 30, 100, 100)
decode_file(sys.argv[1], sys.argv[3], 16_000, limits)
before = peak()
decode_file(sys.argv[2], sys.argv[3], 16_000, limits)
print(peak() - before)
"""


def test_memory_holds_the_file_once(tmp_path: Path) -> None:
    """24 MB of WAV need 24 MB and some blocks, not a copy for each step. Measured: 24.6 to 24.7 MB."""
    noise = np.random.default_rng(0).integers(-9_000, 9_000, 12_000_000, dtype=np.int16).tobytes()
    small = wav()
    (tmp_path / "small").write_bytes(small)
    at = small.index(b"data") + 4
    (tmp_path / "large").write_bytes(small[:at] + struct.pack("<I", len(noise)) + noise)
    (tmp_path / "out").touch()
    command = [sys.executable, "-c", PEAK, *(str(tmp_path / name) for name in ("small", "large", "out"))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1.25 * len(noise)
