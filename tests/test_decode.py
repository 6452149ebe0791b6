"""Whatever a phone or a browser records becomes mono float32 at the model's rate; anything else a sentence."""

from __future__ import annotations

import asyncio
import io
import os
import struct
import wave
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from audio import pool as pool_module
from audio.decode import DecodeLimits
from audio.pool import DecodePool
from errors import AudioTooLong, BadAudio
from tests.support.decoding import LIMITS, decode
from tests.support.recordings import encode
from tests.support.speech import CLIPS, DATA
from tests.support.waiting import until

RATE = 16_000


def sine(seconds: float, rate: int, hertz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_real_clips_keep_their_length(clip, tmp_path: Path) -> None:
    """wav, mp3, ogg/opus, m4a/aac, webm/opus and flac; encoders pad by some milliseconds."""
    assert len(decode((DATA / clip.name).read_bytes(), tmp_path)) / RATE == pytest.approx(clip.seconds, abs=0.1)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 8_000),
        ("wav", "pcm_u8", 22_050),
        ("wav", "pcm_s24le", 96_000),
        ("wav", "pcm_f32le", 44_100),
        ("flac", "flac", 48_000),
        ("mp3", "libmp3lame", 44_100),
        ("ogg", "vorbis", 44_100),
        ("ogg", "libopus", 48_000),
        ("ipod", "aac", 44_100),
        ("mp4", "aac", 48_000),
        ("adts", "aac", 32_000),
        ("webm", "libopus", 48_000),
        ("aiff", "pcm_s16be", 44_100),
        ("au", "pcm_s16be", 8_000),
    ],
)
@pytest.mark.parametrize("target_rate", [16_000, 24_000])
def test_every_format_and_rate_gives_the_same_tone(container, codec, rate, target_rate, tmp_path: Path) -> None:
    """440 Hz at half amplitude stays 440 Hz at half amplitude."""
    layout = "stereo" if codec == "vorbis" else "mono"  # FFmpeg's own Vorbis encoder knows stereo only
    channels = np.stack([sine(1.0, rate)] * (2 if layout == "stereo" else 1))
    waveform = decode(encode(channels, rate, container, codec, layout), tmp_path, target_rate)
    middle = waveform[target_rate // 4 : 3 * target_rate // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * target_rate / len(middle) == pytest.approx(440, abs=2)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.05)


def test_resampling_is_that_of_a_perfect_filter(tmp_path: Path) -> None:
    """A tone from 44.1 kHz comes out as the tone computed at 16 kHz, to 60 dB."""
    waveform = decode(encode(sine(1.0, 44_100, 1000), 44_100, "wav", "pcm_f32le"), tmp_path)
    expected = sine(1.0, RATE, 1000)
    middle = slice(2_000, 14_000)
    assert np.abs(waveform[middle] - expected[middle]).max() < 0.5e-3


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    """Both sides of a stereo file are heard; a tone against its own inverse is silence."""
    left, right = sine(0.5, RATE, 440), sine(0.5, RATE, 880)
    mixed = decode(encode(np.stack([left, right]), RATE, "wav", "pcm_f32le", "stereo"), tmp_path)
    spectrum = np.abs(np.fft.rfft(mixed))
    assert {round(i * RATE / len(mixed)) for i in np.argsort(spectrum)[-2:]} == {440, 880}
    silence = decode(encode(np.stack([left, -left]), RATE, "wav", "pcm_f32le", "stereo"), tmp_path)
    assert np.abs(silence).max() < 1e-6


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1000,
        b"not audio at all",
        b"<html>404</html>",
        (DATA / "jfk.wav").read_bytes()[44:],
        (DATA / "jfk.ogg").read_bytes()[:20],
        b"ffconcat version 1.0\nfile 'jfk.wav'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    ],
    ids=["empty", "zeros", "text", "html", "headerless", "cut", "concat", "hls", "sdp"],
)
def test_what_is_not_audio_is_refused(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also scripts that would have FFmpeg open files or sockets, beside a file that they name."""
    monkeypatch.chdir(DATA)
    with pytest.raises(BadAudio):
        decode(data, tmp_path)


@pytest.mark.parametrize("tail", [b"\0" * 3000, bytes(range(256)) * 3, b"TAG" + b" " * 125])
def test_junk_behind_an_mp3_is_no_damage(tail: bytes, tmp_path: Path) -> None:
    """Players write tags and padding there; a hole in the middle is damage."""
    mp3 = (DATA / "jfk.mp3").read_bytes()
    assert np.array_equal(decode(mp3 + tail, tmp_path), decode(mp3, tmp_path))
    for broken in (mp3[:20_000] + b"\0" * 3000 + mp3[23_000:], mp3[: len(mp3) // 2] + b"\0" * (len(mp3) // 2)):
        with pytest.raises(BadAudio, match="damaged"):
            decode(broken, tmp_path)


def test_a_webm_that_breaks_off_is_refused(tmp_path: Path) -> None:
    """It declares how long it is; one that was recorded into a stream does not, and is heard."""
    webm = (DATA / "jfk.webm").read_bytes()
    with pytest.raises(BadAudio, match=r"breaks off after 5\.. of 11\.0 seconds"):
        decode(webm[: len(webm) // 2], tmp_path)
    duration = webm.index(b"\x44\x89\x88")  # the element "Duration", 8 bytes; a void element in its place
    streamed = webm[:duration] + b"\xec\x89" + b"\0" * 9 + webm[duration + 11 :]
    assert len(decode(streamed, tmp_path)) / RATE == pytest.approx(11.0, abs=0.1)


def test_a_video_without_sound_is_refused(tmp_path: Path) -> None:
    """There is nothing to hear in it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(BadAudio, match="no audio stream"):
        decode(buffer.getvalue(), tmp_path)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    """A header alone is empty audio."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", ""))
    with pytest.raises(BadAudio):
        decode(buffer.getvalue(), tmp_path)


def test_a_click_is_not_empty(tmp_path: Path) -> None:
    """Nor if the resampler holds back all of it until the end."""
    assert len(decode(encode(sine(0.004, 44_100), 44_100, "wav", "pcm_f32le"), tmp_path)) == pytest.approx(64, abs=2)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """They would poison a whole batch."""
    samples = sine(0.1, RATE)
    samples[100] = np.nan
    with pytest.raises(BadAudio, match="finite"):
        decode(encode(samples, RATE, "wav", "pcm_f32le"), tmp_path)


@pytest.mark.parametrize("rate", [1, 999, 800_000, 10_000_000])
def test_absurd_rates_are_refused(rate: int, tmp_path: Path) -> None:
    """A second at 1 Hz would become 16,000 samples out of one."""
    data = bytearray(encode(sine(0.1, RATE), RATE, "wav", "pcm_s16le"))
    struct.pack_into("<I", data, 24, rate)
    with pytest.raises(BadAudio, match="rate"):
        decode(bytes(data), tmp_path)


def test_seconds_and_bytes_are_counted_as_they_are_decoded(tmp_path: Path) -> None:
    """A small file of long silence stops at the limit, whatever its header says."""
    silence = encode(np.zeros(60 * RATE, dtype=np.float32), RATE, "flac", "flac")
    assert len(silence) < 50_000
    with pytest.raises(AudioTooLong, match="10 seconds"):
        decode(silence, tmp_path, limits=DecodeLimits(10, 1 << 28, 5, 1))
    with pytest.raises(AudioTooLong, match="1000 bytes"):
        decode(silence, tmp_path, limits=DecodeLimits(100, 1000, 5, 1))
    with pytest.raises(AudioTooLong, match="longer than allowed"):
        decode(silence, tmp_path, limits=DecodeLimits(100, 1 << 28, -1000, 1))
    assert (tmp_path / "target").stat().st_size < 60 * RATE * 4


def _decoders() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


async def test_a_decoder_that_dies_fails_its_audio_and_is_replaced(tmp_path: Path) -> None:
    """The next audio finds a decoder."""
    pool = DecodePool(1, LIMITS)
    try:
        pipe = tmp_path / "pipe"  # reading it waits for ever
        (tmp_path / "out").touch()
        os.mkfifo(pipe)
        waiting = asyncio.ensure_future(pool.decode(str(pipe), str(tmp_path / "out"), RATE))
        writer = await asyncio.to_thread(pipe.open, "wb", 0)  # opens as soon as the decoder reads
        for decoder in _decoders():
            decoder.kill()
        writer.close()
        with pytest.raises(BadAudio, match="crashed"):
            await waiting
        assert await pool.decode(str(DATA / "cv-en-no.mp3"), str(tmp_path / "out"), RATE) > 0
    finally:
        pool.close()


async def test_decoders_do_not_grow_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many audios another takes the place of one, and nobody notices."""
    monkeypatch.setattr(pool_module, "MAX_TASKS", 2)
    pool = DecodePool(1, LIMITS)
    try:
        (tmp_path / "out").touch()
        first = _decoders()
        for _ in range(5):
            assert await pool.decode(str(DATA / "cv-en-no.mp3"), str(tmp_path / "out"), RATE) > 0
        assert not set(first) & set(_decoders())
    finally:
        pool.close()


async def test_idle_decoders_that_die_are_replaced(tmp_path: Path) -> None:
    """All of them, and the next audio is decoded as if nothing had been."""
    pool = DecodePool(2, LIMITS)
    try:
        (tmp_path / "out").touch()
        assert await pool.decode(str(DATA / "cv-en-no.mp3"), str(tmp_path / "out"), RATE) > 0
        decoders = _decoders()
        for decoder in decoders:
            decoder.kill()
        await until(lambda: all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in decoders))
        for _ in range(3):
            assert await pool.decode(str(DATA / "cv-en-no.mp3"), str(tmp_path / "out"), RATE) > 0
    finally:
        pool.close()


async def test_audio_that_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    """What runs for long is killed, what waits never starts, and both leave no file; the next audio is decoded soon."""
    pool = DecodePool(1, LIMITS)
    pipe, target, untouched = tmp_path / "pipe", tmp_path / "out", tmp_path / "untouched"
    os.mkfifo(pipe)
    try:
        jobs = [pool.decode(str(pipe), str(target), RATE)]
        jobs += [pool.decode(str(DATA / "jfk.ogg"), str(untouched), RATE) for _ in range(5)]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        writer = await asyncio.to_thread(pipe.open, "wb", 0)  # opens as soon as the decoder reads
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        untouched.touch()
        (tmp_path / "next").touch()
        assert await pool.decode(str(DATA / "cv-en-no.mp3"), str(tmp_path / "next"), RATE) > 0
        assert not target.exists()
        assert untouched.stat().st_size == 0
        writer.close()
    finally:
        pool.close()


async def test_the_pool_decodes_and_translates_failures(tmp_path: Path) -> None:
    """In processes of its own, whose errors come back as what they were."""
    pool = DecodePool(1, LIMITS)
    try:
        target = tmp_path / "out"
        target.touch()
        assert await pool.decode(str(DATA / "jfk.ogg"), str(target), RATE) == pytest.approx(11 * RATE, abs=RATE / 10)
        with pytest.raises(BadAudio, match="FFmpeg"):
            await pool.decode(__file__, str(target), RATE)
    finally:
        pool.close()
