"""The audio parts of one job to waveforms, within the job's bounds and the worker's budget.

    fetch all ──▶ reserve, once for the job ──▶ decode all ──▶ settle ──▶ read all

A job that waits holds nothing of the budget, neither while its hosts are slow nor while others are in its way, so no
two can wait for one another. Every part is loaded whole or the job fails with a `BadRequest` that names the part.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Hashable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from audio.budget import AudioBudget
from audio.decode import Waveform, read_waveform
from audio.fetch import Fetcher
from audio.pool import DecodePool
from audio.room import Reservation, Room
from audio.spool import Spool, SpoolFiles
from errors import AudioTooLong, BadAudioUrl, located
from wire import AudioPart

T = TypeVar("T")

# Encoded speech has hardly less: MP3 begins at 8 kbit/s, and Opus is rarely set lower. Silence can have far less.
LOWEST_BYTES_PER_S = 1000
PADDING_S = 0.1  # what encoders and resamplers add
WAV_RATE_AT = 28  # where a WAV with its `fmt ` chunk first has its bytes per second, 4 of them, little-endian


class AudioSource:
    """Loads audio for a worker. `sampling_rate`: the model's, in hertz."""

    def __init__(
        self,
        spool: Spool,
        fetcher: Fetcher,
        room: Room,
        decoders: DecodePool,
        budget: AudioBudget,
        sampling_rate: int,
        fetch_timeout_s: float,
        max_audio_seconds: float,
        max_request_seconds: float,
    ) -> None:
        self._spool = spool
        self._fetcher = fetcher
        self._room = room
        self._decoders = decoders
        self._budget = budget
        self._sampling_rate = sampling_rate
        self._fetch_timeout_s = fetch_timeout_s
        self._max_audio_seconds = max_audio_seconds
        self._max_request_seconds = max_request_seconds

    async def load(self, key: Hashable, parts: Sequence[AudioPart]) -> list[Waveform]:
        """The waveforms of `parts`, in order, each of shape (samples,). Side by side; the first error ends them all.

        Their seconds are held under `key`, the job's, until the caller releases it, also where this fails.
        """
        if not parts:  # who brings no audio waits for nobody
            return []
        fetch_until = asyncio.get_running_loop().time() + self._fetch_timeout_s
        with closing(self._spool.files()) as fetched, closing(self._room.reserve()) as held:
            paths = await _side_by_side(self._encoded(part, fetched, held, fetch_until) for part in parts)
            try:
                return await self._decode(key, self._likely_s(paths), parts, paths)
            except _LongerThanReserved as longer:
                self._budget.release(key)
                return await self._decode(key, longer.seconds, parts, paths)

    async def _encoded(self, part: AudioPart, fetched: SpoolFiles, held: Reservation, until: float) -> str:
        """The file of one part: the API process's, which it removes itself, or one in `fetched`."""
        if part.path is not None:
            return part.path
        assert part.url is not None
        with located(part.place):
            path = await self._fetch(part.url, fetched, until)
            held.add(_size(path))
            return path

    async def _fetch(self, url: str, fetched: SpoolFiles, until: float) -> str:
        try:
            async with asyncio.timeout_at(until):
                return await self._fetcher.fetch(url, fetched)
        except TimeoutError:
            raise BadAudioUrl(f"the audio could not be fetched within {self._fetch_timeout_s:g} seconds.") from None

    def _likely_s(self, paths: Iterable[str]) -> float:
        """Hardly less than the seconds of audio in these files: rather too many, for they are soon settled. An estimate
        is enough, since what turns out longer is decoded again."""
        clips = (min(_bytes_over_rate(path), self._max_audio_seconds) + PADDING_S for path in paths)
        return min(sum(clips), self._max_request_seconds)

    async def _decode(
        self, key: Hashable, reserve_s: float, parts: Sequence[AudioPart], paths: Sequence[str]
    ) -> list[Waveform]:
        """Raises `_LongerThanReserved` before anything is read into memory that was not reserved."""
        await self._budget.reserve(key, reserve_s)
        allowance = _Allowance(self._max_request_seconds, self._sampling_rate)
        with closing(self._spool.files()) as decoded:
            clips = zip(parts, paths, strict=True)
            targets = await _side_by_side(self._decode_one(part, path, decoded, allowance) for part, path in clips)
            if allowance.taken_s > reserve_s:
                raise _LongerThanReserved(allowance.taken_s)
            self._budget.settle(key, allowance.taken_s)
            return [await self._read(target) for target in targets]

    async def _decode_one(self, part: AudioPart, path: str, decoded: SpoolFiles, allowance: _Allowance) -> str:
        with located(part.place):
            target = decoded.write(b"")
            allowance.take(await self._decoders.decode(path, target, self._sampling_rate))
            return target

    async def _read(self, path: str) -> Waveform:
        """The file goes at once: a spool in /dev/shm is memory, too."""
        waveform = await asyncio.to_thread(read_waveform, path)
        self._spool.remove(path)
        return waveform


class _LongerThanReserved(Exception):
    """The audio of a job has `seconds`, and fewer were reserved."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Allowance:
    """How much audio the parts of one job have, and may have, counted before it is read into memory."""

    def __init__(self, seconds: float, sampling_rate: int) -> None:
        self._seconds = seconds
        self._sampling_rate = sampling_rate
        self._taken = 0  # samples

    @property
    def taken_s(self) -> float:
        return self._taken / self._sampling_rate

    def take(self, samples: int) -> None:
        self._taken += samples
        if self.taken_s > self._seconds:
            raise AudioTooLong(f"the audio of all messages is longer than the limit of {self._seconds:g} seconds.")


def _bytes_over_rate(path: str) -> float:
    """Seconds of audio in a file by its size: a WAV says how many bytes a second has."""
    try:
        with Path(path).open("rb") as file:
            head, size = file.read(WAV_RATE_AT + 4), file.seek(0, os.SEEK_END)
    except FileNotFoundError:
        return 0.0  # its request has ended; decoding will say so
    says = int.from_bytes(head[WAV_RATE_AT:], "little") if head[8:16] == b"WAVEfmt " else 0
    return size / max(says, LOWEST_BYTES_PER_S)


def _size(path: str) -> int:
    return Path(path).stat().st_size


async def _side_by_side(steps: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order. The first error ends them all, and none is left running."""
    tasks = [asyncio.create_task(step) for step in steps]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
