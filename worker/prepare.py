"""A job to an engine request: its audio loaded and cut into windows, its conversation turned into prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from audio.decode import DecodeLimits, Waveform
from audio.fetch import Fetcher
from audio.pool import DecodePool
from audio.segment import split_at_quiet
from audio.source import AudioSource
from audio.spool import Spool
from config import Settings
from engine.grammar import Grammar
from engine.request import Request, RequestBuilder
from errors import AudioTooLong
from models.base import CausalModel, Clip, Conversation, Turn
from wire import AudioPart, Job, TextPart

PREPARE_THREADS = 4  # features and templates; torch uses the cores by itself
GRAMMAR_THREADS = 2  # of their own: a client's grammar may take seconds, and nobody else's audio waits for it


class Preparer:
    """Prepares many jobs side by side, from one event loop. The decode processes start with it; jobs may come once the
    model is loaded (`start`)."""

    _requests: RequestBuilder

    def __init__(self, settings: Settings, spool: Spool, model: CausalModel) -> None:
        self._settings = settings
        self._spool = spool
        self._model = model
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")
        self._grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, thread_name_prefix="grammar")
        limits = DecodeLimits(
            max_seconds=settings.max_audio_seconds,
            max_decoded_bytes=settings.max_decoded_bytes,
            base_s=settings.decode_base_s,
            s_per_minute=settings.decode_s_per_minute,
        )
        self._decoders = DecodePool(settings.decode_processes, limits)
        self._source: AudioSource | None = None

    def start(self, requests: RequestBuilder) -> None:
        """The model is loaded, and its requests are made by `requests`."""
        self._requests = requests

    async def prepare(self, job: Job) -> Request:
        """Raises `EardrumError` for what the client got wrong. Cancelling stops fetches and decoding."""
        source = self._source = self._source or self._make_source()
        loop = asyncio.get_running_loop()
        grammar = None
        if job.structure:
            grammar = await loop.run_in_executor(self._grammar_threads, self._requests.compile, job)
        waveforms = await source.load(job.audio_parts)
        return await loop.run_in_executor(self._threads, self._request, job, waveforms, grammar)

    def close(self) -> None:
        self._decoders.close()
        self._threads.shutdown(cancel_futures=True)
        self._grammar_threads.shutdown(cancel_futures=True)

    def _make_source(self) -> AudioSource:
        """Made on first use, in the event loop that its connections belong to."""
        settings = self._settings
        return AudioSource(
            spool=self._spool,
            fetcher=Fetcher(settings.max_audio_bytes, settings.fetch_redirects, settings.allow_private_networks),
            decoders=self._decoders,
            sampling_rate=self._model.capabilities.sampling_rate,
            fetch_timeout_s=settings.fetch_timeout_s,
            max_request_seconds=settings.max_request_audio_seconds,
        )

    def _request(self, job: Job, waveforms: Sequence[Waveform], grammar: Grammar | None) -> Request:
        clips = [self._clip(part, waveform) for part, waveform in zip(job.audio_parts, waveforms, strict=True)]
        seconds = sum(map(len, waveforms)) / self._model.capabilities.sampling_rate
        prompts = self._model.prepare(_conversation(job, clips))
        return self._requests.build(job, prompts, grammar, len(clips), seconds)

    def _clip(self, part: AudioPart, waveform: Waveform) -> Clip:
        """The whole waveform, in windows that the model takes; or the reason why it cannot be taken whole."""
        capabilities = self._model.capabilities
        limit = capabilities.max_seconds_per_window
        if limit is None or len(waveform) <= limit * capabilities.sampling_rate:
            return Clip((waveform,))
        if capabilities.long_audio == "error":
            raise AudioTooLong(f"`{part.place}`: this model takes at most {limit:g} seconds in one clip.", part.place)
        return Clip(tuple(split_at_quiet(waveform, capabilities.sampling_rate, limit)))


def _conversation(job: Job, clips: Iterable[Clip]) -> Conversation:
    following = iter(clips)
    return tuple(
        Turn(
            message.role,
            tuple(part.text if isinstance(part, TextPart) else next(following) for part in message.parts),
        )
        for message in job.messages
    )
