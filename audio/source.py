"""The audio parts of one job to waveforms: spool file or address, then the decode pool, within the job's bounds.

Every part is loaded whole or the job fails with a `BadRequest` that names the part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from audio.decode import Waveform, read_waveform
from audio.fetch import Fetcher
from audio.pool import DecodePool
from audio.spool import Spool
from errors import AudioTooLong, BadAudioUrl, located
from wire import AudioPart


class AudioSource:
    """Loads audio for a worker. `sampling_rate`: the model's, in hertz."""

    def __init__(
        self,
        spool: Spool,
        fetcher: Fetcher,
        decoders: DecodePool,
        sampling_rate: int,
        fetch_timeout_s: float,
        max_request_seconds: float,
    ) -> None:
        self._spool = spool
        self._fetcher = fetcher
        self._decoders = decoders
        self._sampling_rate = sampling_rate
        self._fetch_timeout_s = fetch_timeout_s
        self._max_request_seconds = max_request_seconds

    async def load(self, parts: Sequence[AudioPart]) -> list[Waveform]:
        """The waveforms of `parts`, in order, each of shape (samples,). Side by side; the first error ends them all."""
        fetch_until = asyncio.get_running_loop().time() + self._fetch_timeout_s
        allowance = _Allowance(self._max_request_seconds, self._sampling_rate)
        tasks = [asyncio.create_task(self._load_one(part, fetch_until, allowance)) for part in parts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _load_one(self, part: AudioPart, fetch_until: float, allowance: _Allowance) -> Waveform:
        with located(part.place):
            if part.path is not None:  # the API process's file, which it removes itself
                return await self._decode(part.path, allowance)
            assert part.url is not None
            with self._scratch() as fetched:
                await self._fetch(part.url, fetched, fetch_until)
                return await self._decode(fetched, allowance)

    async def _fetch(self, url: str, target: str, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._fetcher.fetch(url, Path(target))
        except TimeoutError:
            raise BadAudioUrl(f"the audio could not be fetched within {self._fetch_timeout_s:g} seconds.") from None

    async def _decode(self, path: str, allowance: _Allowance) -> Waveform:
        with self._scratch() as decoded:
            allowance.take(await self._decoders.decode(path, decoded, self._sampling_rate))
            return await asyncio.to_thread(read_waveform, decoded)

    @contextmanager
    def _scratch(self) -> Iterator[str]:
        """An empty file, for a moment."""
        path = self._spool.write(b"")
        try:
            yield path
        finally:
            self._spool.remove(path)


class _Allowance:
    """How much audio the parts of one job may still hold, counted before it is read into memory."""

    def __init__(self, seconds: float, sampling_rate: int) -> None:
        self._seconds = seconds
        self._samples = int(seconds * sampling_rate)

    def take(self, samples: int) -> None:
        self._samples -= samples
        if self._samples < 0:
            raise AudioTooLong(f"the audio of all messages is longer than the limit of {self._seconds:g} seconds.")
