"""Encoded bytes to mono float32 at the model's rate, with PyAV (FFmpeg inside the wheel).

Runs in a decode process (pool.py): no torch, no LitServe, no network. The container and protocol whitelists keep
FFmpeg from opening files or sockets that a playlist posing as audio names. Limits are counted frame by frame, on what
was really decoded: headers lie. Down-mix (ITU-R BS.775 weights) and resampling are swresample's.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

from audio.declared import ADTS_HEADER_BYTES, break_in, frame_bytes, is_cut_frame, mp3_bytes
from audio.spool import room_for_audio
from errors import AudioTooLong, BadAudio

Waveform = npt.NDArray[np.float32]

CONTAINERS = "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,au,caf"  # FFmpeg's names; mov: mp4, m4a; matroska: webm
# The same as clients call them.
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "mp4", "aac", "webm", "mkv", "aiff", "au", "caf")
RAW_KINDS = ("mp3", "aac")  # frames without a container: tags and padding behind them are tried as frames, too
MAX_TAIL_BYTES = 8192
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 32
BLOCK_SAMPLES = 32_768
FLOAT32_BYTES = 4
FEWEST_BYTES_PER_S = 250  # what has less is silence, which takes next to no time
# By how much the declared seconds may exceed what is decoded of a whole file, by FFmpeg's name of the container. FLAC's
# are exact. Opus declares its pre-skip, 80 ms at most but for odd encoders (RFC 7845, 4.2), AAC its priming, 48 ms
# (Apple TN2258). Some MP3 headers count their own frame, 72 ms at 8 kHz. Recorders of Matroska and WebM take the clock.
MAX_PADDING_S = {"flac": 0.0, "ogg": 0.1, "mov": 0.1, "mp3": 0.1, "matroska": 0.5}
DAMAGED = "the data is not audio that FFmpeg can decode, or it is damaged."
# maxval: down-mix weights that sum to one at most. Without it swresample does so for integer samples only, and the same
# stereo recording would be 3 dB louder from a lossy file than from a WAV. The others: with swresample's own 32 taps and
# beta 9, 16 kHz is wrong by -19 dB at 7.2 kHz and lets 8.4 kHz through at -22 dB; with these by -79 and -83 dB. Twice
# the taps would add 300 Hz and take twice the time. The wheel's FFmpeg has no soxr. tests/test_resampling.py measures.
RESAMPLER_OPTIONS = {"rematrix_maxval": "1.0", "filter_size": "64", "cutoff": "0.97", "kaiser_beta": "7"}


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one audio may cost, in CPU seconds and others, and whether one that breaks off is heard."""

    max_seconds: float
    max_decoded_bytes: int
    base_s: float
    s_per_minute: float
    allow_truncated: bool = False

    def most_s(self, num_bytes: int) -> float:
        """CPU seconds that a file of this size may take, if all of it is audio."""
        return self.base_s + self.s_per_minute * min(self.max_seconds, num_bytes / FEWEST_BYTES_PER_S) / 60


def decode_file(source: str, target: str, sampling_rate: int, limits: DecodeLimits) -> int:
    """Decode `source` into `target`, raw mono float32 at `sampling_rate` hertz; the number of samples.

    `target` must exist: one that was removed says that nobody waits any more, and is not made again. Raises `BadAudio`
    for what is not audio, is empty or damaged, or breaks off, `AudioTooLong` at the first limit passed.
    """
    started = time.process_time()
    try:
        data = Path(source).read_bytes()
        out = Path(target).open("r+b")  # noqa: SIM115 -- closed below; FFmpeg's errors must not be taken for this one
    except FileNotFoundError:
        raise BadAudio("the audio is gone: its request has ended.") from None
    with room_for_audio(), out:
        try:
            samples = _decode(data, out, sampling_rate, limits, started)
        except (av.FFmpegError, ValueError) as error:
            broken = break_in(data)
            told = f"the file breaks off: {broken}." if broken else DAMAGED
            raise BadAudio(told) from error
    if samples == 0:
        raise BadAudio("the audio is empty.")
    return samples


def _decode(data: bytes, out: BinaryIO, sampling_rate: int, limits: DecodeLimits, started: float) -> int:
    with _open(data) as container:
        recording = _Recording(container, data)
        samples = _copy(_blocks(recording.frames()), out, sampling_rate, limits, started)
        broken = recording.break_off()
    if broken and not limits.allow_truncated:
        raise BadAudio(broken)
    return samples


def _open(data: bytes) -> av.container.InputContainer:
    """Open bytes by what they are: a nameless buffer gives FFmpeg no file name to guess from."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    return av.open(io.BytesIO(data), mode="r", container_options=options, metadata_errors="replace")


class _Recording:
    """The first audio stream of a container, read once from its beginning to its end."""

    def __init__(self, container: av.container.InputContainer, data: bytes) -> None:
        if not container.streams.audio:
            raise BadAudio("the file has no audio stream.")
        self._container = container
        self._data = data
        self._stream = container.streams.audio[0]
        self._kind = container.format.name.split(",")[0]
        self._is_raw = self._kind in RAW_KINDS
        self._check_form()
        self._seconds = 0.0  # decoded
        self._samples = 0
        self._last = (0, 0)  # where the last packet begins and ends
        self._is_corrupt = False
        self._damage: av.FFmpegError | None = None
        self._junk_bytes = 0  # of packets that could not be decoded

    def _check_form(self) -> None:
        context = self._stream.codec_context
        if context is None:  # PyAV's annotations leave that out
            raise BadAudio("no decoder is known for the file's audio.")
        if not MIN_RATE_HZ <= context.sample_rate <= MAX_RATE_HZ:
            raise BadAudio(f"the sampling rate of {context.sample_rate} Hz is not supported.")
        if not 1 <= context.channels <= MAX_CHANNELS:
            raise BadAudio(f"{context.channels} channels are not supported.")

    def frames(self) -> Iterator[av.AudioFrame]:
        """All frames. Raises FFmpeg's error for a hole, before the frame behind it."""
        for packet in self._packets():
            try:
                frames = packet.decode()
            except av.InvalidDataError as error:
                self._damage, self._junk_bytes = error, self._junk_bytes + packet.size
                continue
            if frames and self._damage:
                raise self._damage
            for frame in frames:
                self._samples += frame.samples
                self._seconds = self._samples / frame.sample_rate
                yield frame

    def _packets(self) -> Iterator[av.Packet[av.AudioStream]]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.size and packet.pos is not None:
                    self._check_position(packet.pos)
                    self._last = packet.pos, packet.pos + packet.size
                self._is_corrupt |= packet.is_corrupt
                yield packet
        except av.InvalidDataError as error:
            self._damage, self._junk_bytes = error, len(self._data) - self._last[1]

    def _check_position(self, position: int) -> None:
        """Behind a hole in an AAC stream FFmpeg goes on with the next frame, but from there on positions are wrong."""
        if self._kind == "aac" and frame_bytes(self._data[position : position + ADTS_HEADER_BYTES]) is None:
            raise BadAudio(DAMAGED)

    def break_off(self) -> str | None:
        """How the file breaks off, once it is read, as a sentence; None where it does not, or cannot be known to.

        Raises FFmpeg's error where the end is damaged instead; a little junk behind the last frame is no damage.
        """
        if self._damage and self._is_raw and self._junk_bytes > MAX_TAIL_BYTES:
            raise self._damage
        declared_s, padding_s = self._declared_s()
        if self._seconds < declared_s - padding_s:
            return f"the file breaks off after {self._seconds:.1f} of {declared_s:.1f} seconds."
        broken = break_in(self._data) or self._break_in_packet()
        if broken:
            return f"the file breaks off after {self._seconds:.1f} seconds: {broken}."
        if self._damage and not self._is_raw:
            raise self._damage
        return None

    def _declared_s(self) -> tuple[float, float]:
        """The seconds that the container declares (0 where FFmpeg would guess), and how many may be padding."""
        stream, padding_s = self._stream, MAX_PADDING_S.get(self._kind, 0.0)
        if self._kind == "matroska":
            if self._container.duration is None or len(self._container.streams) > 1:  # it is that of the longest
                return 0.0, 0.0
            start_s = float((stream.start_time or 0) * (stream.time_base or 0))
            return self._container.duration / av.time_base - start_s, padding_s
        if self._kind not in MAX_PADDING_S or stream.duration is None or stream.time_base is None:
            return 0.0, 0.0
        if self._kind == "mp3":
            end = mp3_bytes(self._data)
            if end is None:
                return 0.0, 0.0
            if end > len(self._data):
                padding_s = 0.0
        return float(stream.duration * stream.time_base), padding_s

    def _break_in_packet(self) -> str | None:
        if self._is_raw:
            is_cut = any(is_cut_frame(self._data, position) for position in self._last)
        else:  # streamed PCM has no packets that could break
            is_pcm = self._stream.codec_context.name.startswith("pcm_")
            is_undecoded = self._damage is not None and self._last[1] == len(self._data)
            is_cut = is_undecoded or (self._is_corrupt and not is_pcm)
        return "its last packet is incomplete" if is_cut else None


def _blocks(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    """The same samples in larger frames, as each costs the same time whatever its size."""
    fifo = av.AudioFifo()
    for frame in frames:
        frame.pts = None  # gaps in the time stamps are no matter
        fifo.write(frame)
        if fifo.samples >= BLOCK_SAMPLES:
            yield _all_of(fifo)
    if fifo.samples:
        yield _all_of(fifo)


def _all_of(fifo: av.AudioFifo) -> av.AudioFrame:
    block = fifo.read()
    assert block is not None, "only asked for when it holds samples"
    return block


def _copy(
    blocks: Iterator[av.AudioFrame], out: BinaryIO, sampling_rate: int, limits: DecodeLimits, started: float
) -> int:
    """Mix down, resample and write block by block, so that memory holds one; the number of samples."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sampling_rate, options=RESAMPLER_OPTIONS)
    samples = given = 0
    for block in blocks:
        given += block.samples
        for mono in resampler.resample(block):
            samples += _write(mono, out)
        _check(samples, samples / sampling_rate, time.process_time() - started, limits)
    for mono in resampler.resample(None) if given else ():
        samples += _write(mono, out)
    return samples


def _write(frame: av.AudioFrame, out: BinaryIO) -> int:
    waveform = np.frombuffer(memoryview(frame.planes[0]), np.float32, frame.samples)
    if not np.isfinite(waveform).all():
        raise BadAudio("the audio holds samples that are not finite numbers.")
    out.write(waveform.data)
    return len(waveform)


def _check(samples: int, seconds: float, cpu_s: float, limits: DecodeLimits) -> None:
    if seconds > limits.max_seconds:
        raise AudioTooLong(f"the audio is longer than the limit of {limits.max_seconds:g} seconds.")
    if samples * FLOAT32_BYTES > limits.max_decoded_bytes:
        raise AudioTooLong(f"decoded, the audio is larger than the limit of {limits.max_decoded_bytes} bytes.")
    if cpu_s > limits.base_s + limits.s_per_minute * math.ceil(seconds / 60):
        raise AudioTooLong(f"decoding the audio takes longer than allowed (after {seconds:.0f} seconds of it).")


def read_waveform(path: str) -> Waveform:
    """The waveform that `decode_file` wrote: shape (samples,)."""
    return np.fromfile(path, dtype=np.float32)
