"""Real speech in every format that is taken, made by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import numpy.typing as npt

DATA = Path(__file__).resolve().parents[1] / "data"  # as in speech.py, which takes seconds to import

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """A container, a codec and what the muxer is told. Without `declares` a cut between two packets cannot be known."""

    container: str
    codec: str
    rate: int = 16_000
    layout: str = "mono"
    options: tuple[tuple[str, str], ...] = ()
    declares: bool = True


FASTSTART = (("movflags", "+faststart"),)
FRAGMENTED = (("movflags", "+empty_moov"), ("frag_duration", "500000"))

FORMS = {
    "wav": Form("wav", "pcm_s16le"),
    "wav float": Form("wav", "pcm_f32le", 44_100, "stereo"),
    "wav adpcm": Form("wav", "adpcm_ms"),
    "wav mulaw": Form("wav", "pcm_mulaw", 8_000),
    "rf64": Form("wav", "pcm_s16le", options=(("rf64", "always"),)),
    "w64": Form("w64", "pcm_s16le"),
    "aiff": Form("aiff", "pcm_s16be"),
    "au": Form("au", "pcm_s16be"),
    "caf": Form("caf", "pcm_s16be"),
    "flac": Form("flac", "flac"),
    "mp3": Form("mp3", "libmp3lame", 44_100),
    "mp3 mpeg2": Form("mp3", "libmp3lame"),
    "mp3 without xing": Form("mp3", "libmp3lame", 44_100, options=(("write_xing", "0"),), declares=False),
    "opus": Form("ogg", "libopus", 48_000),
    "vorbis": Form("ogg", "vorbis", 44_100, "stereo"),
    "ogg flac": Form("ogg", "flac"),
    "m4a": Form("ipod", "aac", 44_100),
    "m4a faststart": Form("ipod", "aac", 44_100, options=FASTSTART),
    "m4a alac": Form("ipod", "alac", 44_100),
    "mp4 fragmented": Form("mp4", "aac", 44_100, options=FRAGMENTED, declares=False),
    "mov": Form("mov", "pcm_s16le", options=FASTSTART),
    "aac": Form("adts", "aac", 44_100, declares=False),
    "webm": Form("webm", "libopus", 48_000),
    "webm live": Form("webm", "libopus", 48_000, options=(("live", "1"),), declares=False),
    "mkv": Form("matroska", "flac"),
    "mkv aac": Form("matroska", "aac", 44_100),
}
SECONDS = 2.0


def encode(
    samples: Samples,
    rate: int,
    container: str,
    codec: str,
    layout: str = "mono",
    options: dict[str, str] | None = None,
    bit_rate: int | None = None,
) -> bytes:
    """Samples, shape (channels, samples) or (samples,), in a file. `options` are the muxer's."""
    with TemporaryDirectory() as directory:  # a file, as some muxers read again what they wrote
        path = Path(directory) / "recording"
        with av.open(str(path), "w", format=container, options=options or {}) as out:
            stream = out.add_stream(codec, rate=rate, layout=layout, options={"strict": "experimental"})
            assert isinstance(stream, av.AudioStream)
            if bit_rate is not None:
                stream.bit_rate = bit_rate
            for piece in _pieces(samples, stream):
                out.mux(stream.encode(piece))
            out.mux(stream.encode(None))
        return path.read_bytes()


def _pieces(samples: Samples, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
    """In the encoder's sample format and frame size."""
    context = stream.codec_context
    layout = context.layout
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(np.atleast_2d(samples)), format="fltp", layout=layout.name)
    frame.sample_rate = context.sample_rate
    resampler, fifo = av.AudioResampler(context.format, layout, context.sample_rate), av.AudioFifo()
    for ready in (*resampler.resample(frame), *resampler.resample(None)):
        ready.pts = None
        fifo.write(ready)
    written = 0
    while (piece := fifo.read(context.frame_size or 1024, partial=True)) is not None:
        piece.pts, piece.time_base = written, Fraction(1, context.sample_rate)
        written += piece.samples
        yield piece


@cache
def speech(rate: int, layout: str = "mono", seconds: float = SECONDS) -> Samples:
    """The beginning of a real recording, shape (channels, samples)."""
    with av.open(str(DATA / "jfk.wav")) as container:
        resampler = av.AudioResampler("fltp", layout, rate)
        frames = [piece for frame in (*container.decode(audio=0), None) for piece in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)[:, : int(seconds * rate)]


@cache
def recording(name: str, seconds: float = SECONDS) -> bytes:
    """One of `FORMS`."""
    form = FORMS[name]
    samples = speech(form.rate, form.layout, seconds)
    return encode(samples, form.rate, form.container, form.codec, form.layout, dict(form.options))
