"""The audio parts of one job to waveforms: spool file or address, then the decode pool, within the job's bounds.

Every part is loaded whole or the job fails with a `BadRequest` that names the part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
        """The waveforms of `parts`, in order, each of shape (samples,). Fetches side by side, the first error wins."""
        loop = asyncio.get_running_loop()
        fetch_until = loop.time() + self._fetch_timeout_s
        tasks = [asyncio.create_task(self._load_one(part, fetch_until)) for part in parts]
        try:
            waveforms = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._check_total(waveforms)
        return waveforms

    async def _load_one(self, part: AudioPart, fetch_until: float) -> Waveform:
        with located(part.place):
            async with self._encoded(part, fetch_until) as path:
                return await self._decode(path)

    @asynccontextmanager
    async def _encoded(self, part: AudioPart, fetch_until: float) -> AsyncIterator[str]:
        """The path of the part's encoded bytes. A fetched file is removed here, a client's by its API process."""
        if part.path is not None:
            yield part.path
            return
        assert part.url is not None
        target = self._spool.new_path()
        try:
            await self._fetch(part.url, target, fetch_until)
            yield str(target)
        finally:
            self._spool.remove(str(target))

    async def _fetch(self, url: str, target: Path, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._fetcher.fetch(url, target)
        except TimeoutError:
            raise BadAudioUrl(f"the audio could not be fetched within {self._fetch_timeout_s:g} seconds.") from None

    async def _decode(self, path: str) -> Waveform:
        target = str(self._spool.new_path())
        try:
            await self._decoders.decode(path, target, self._sampling_rate)
            return await asyncio.to_thread(read_waveform, target)
        finally:
            self._spool.remove(target)

    def _check_total(self, waveforms: Sequence[Waveform]) -> None:
        seconds = sum(len(waveform) for waveform in waveforms) / self._sampling_rate
        if seconds > self._max_request_seconds:
            limit = self._max_request_seconds
            raise AudioTooLong(f"the audio of all messages is longer than the limit of {limit:g} seconds.", "messages")
