"""Long audio: what the model is given of a clip that it cannot hear at once. Pure.

Decided here, for every model alike, so that no processor ever cuts audio unseen.
"""

from __future__ import annotations

import math

from audio.decode import Waveform
from audio.segment import split_at_quiet
from errors import AudioTooLong
from models.base import Clip
from wire import Capabilities, LongAudio


def fitted(waveform: Waveform, place: str, policy: LongAudio, capabilities: Capabilities) -> Clip:
    """The clip of a waveform, shape (samples,): whole, or what `policy` makes of one that is too long. `place` is where
    the client wrote it. Raises `AudioTooLong`."""
    limit, rate = capabilities.max_seconds_per_window, capabilities.sampling_rate
    if limit is None or len(waveform) <= int(limit * rate):
        return Clip((waveform,))
    match policy:
        case "chunk":
            return Clip(tuple(split_at_quiet(waveform, rate, limit)))
        case "truncate":
            return Clip((waveform[: int(limit * rate)],))
        case "error":
            tenths = math.ceil(len(waveform) * 10 / rate)  # up, so that what is refused never reads as if it fitted
            raise AudioTooLong(
                f"`{place}`: the audio has {tenths / 10} seconds, and this model hears at most {limit:g} at once. Send "
                'less, or let `long_audio` be "chunk" (the pieces are answered one after another) or "truncate".',
                place,
            )
