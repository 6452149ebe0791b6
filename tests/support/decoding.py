"""Decoding in the test's own process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from audio.decode import DecodeLimits, decode_file, read_waveform

RATE = 16_000
LIMITS = DecodeLimits(max_seconds=100, max_decoded_bytes=1 << 28, base_s=5, s_per_minute=1)


def decode(data: bytes, directory: Path, rate: int = RATE, limits: DecodeLimits = LIMITS) -> npt.NDArray[np.float32]:
    """The waveform of an encoded file, shape (samples,)."""
    source, target = directory / "source", directory / "target"
    source.write_bytes(data)
    target.write_bytes(b"")
    samples = decode_file(str(source), str(target), rate, limits)
    waveform = read_waveform(str(target))
    assert len(waveform) == samples
    assert waveform.dtype == np.float32
    return waveform
