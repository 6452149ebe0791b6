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

from audio.spool import room_for_audio
from errors import AudioTooLong, BadAudio

Waveform = npt.NDArray[np.float32]

CONTAINERS = "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,au,caf"  # FFmpeg's names; mov: mp4, m4a; matroska: webm
# The same as clients call them.
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "mp4", "aac", "webm", "mkv", "aiff", "au", "caf")
CODECS_WITH_TAILS = ("mp3", "mp3float")
MAX_TAIL_BYTES = 8192
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
MAX_CHANNELS = 32
MAX_MISSING_S = 0.5  # encoders' padding makes the declared duration a little long
FLOAT32_BYTES = 4
# Down-mix weights that sum to one at most. Without it swresample does so for integer samples only, and the same stereo
# recording would be 3 dB louder from a lossy file than from a WAV.
RESAMPLER_OPTIONS = {"rematrix_maxval": "1.0"}


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one audio may cost. `base_s` and `s_per_minute` are CPU seconds."""

    max_seconds: float
    max_decoded_bytes: int
    base_s: float
    s_per_minute: float

    @property
    def longest_s(self) -> float:
        """CPU seconds that the longest allowed audio may take."""
        return self.base_s + self.s_per_minute * self.max_seconds / 60


def decode_file(source: str, target: str, sampling_rate: int, limits: DecodeLimits) -> int:
    """Decode `source` into `target`, raw mono float32 at `sampling_rate` hertz; the number of samples.

    `target` must exist: one that was removed says that nobody waits any more, and is not made again. Raises `BadAudio`
    for what is not audio, is empty or damaged, `AudioTooLong` at the first limit passed. A file that was cut off is
    heard to its end, where its format does not tell.
    """
    started = time.process_time()
    try:
        with room_for_audio(), _open(Path(source).read_bytes()) as container, Path(target).open("r+b") as out:
            samples = _copy(_frames(container), out, sampling_rate, limits, started)
            _check_end(container, samples / sampling_rate)
    except FileNotFoundError:
        raise BadAudio("the audio is gone: its request has ended.") from None
    except (av.FFmpegError, ValueError) as error:
        raise BadAudio("the data is not audio that FFmpeg can decode, or it is damaged.") from error
    if samples == 0:
        raise BadAudio("the audio is empty.")
    return samples


def _open(data: bytes) -> av.container.InputContainer:
    """Open bytes by what they are: a nameless buffer gives FFmpeg no file name to guess from."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    return av.open(io.BytesIO(data), mode="r", container_options=options, metadata_errors="replace")


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    if not container.streams.audio:
        raise BadAudio("the file has no audio stream.")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if not MIN_RATE_HZ <= context.sample_rate <= MAX_RATE_HZ:
        raise BadAudio(f"the sampling rate of {context.sample_rate} Hz is not supported.")
    if not 1 <= context.channels <= MAX_CHANNELS:
        raise BadAudio(f"{context.channels} channels are not supported.")
    yield from _decoded(container, stream)


def _decoded(container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """The stream's frames. A little junk behind the last frame of an MP3 (tags, padding) is no damage; more of it, or a
    hole before a frame, is."""
    damage: av.FFmpegError | None = None
    junk_bytes = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.InvalidDataError as error:
            damage, junk_bytes = error, junk_bytes + packet.size
            if stream.codec_context.name not in CODECS_WITH_TAILS or junk_bytes > MAX_TAIL_BYTES:
                raise
            continue
        if frames and damage:
            raise damage
        yield from frames


def _copy(
    frames: Iterator[av.AudioFrame], out: BinaryIO, sampling_rate: int, limits: DecodeLimits, started: float
) -> int:
    """Mix down, resample and write frame by frame, so that memory holds one frame; the number of samples."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sampling_rate, options=RESAMPLER_OPTIONS)
    samples = 0
    for frame in frames:
        for mono in resampler.resample(frame):
            samples += _write(mono, out)
        _check(samples, samples / sampling_rate, time.process_time() - started, limits)
    for mono in resampler.resample(None) if samples else ():
        samples += _write(mono, out)
    return samples


def _check_end(container: av.container.InputContainer, seconds: float) -> None:
    """Matroska and WebM declare their duration, unless they were recorded into a stream: less than that is a part."""
    if "matroska" in container.format.name and container.duration is not None:
        declared = container.duration / av.time_base
        if seconds < declared - MAX_MISSING_S:
            raise BadAudio(f"the file breaks off after {seconds:.1f} of {declared:.1f} seconds.")


def _write(frame: av.AudioFrame, out: BinaryIO) -> int:
    waveform = frame.to_ndarray().reshape(-1)
    if not np.isfinite(waveform).all():
        raise BadAudio("the audio holds samples that are not finite numbers.")
    out.write(waveform.astype(np.float32, copy=False).tobytes())
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
