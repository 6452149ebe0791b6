"""A job to an engine request: its audio loaded and cut into windows, its conversation turned into prompts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

from audio.addresses import FetchRules, domain, port_range
from audio.budget import AudioBudget
from audio.decode import DecodeLimits, Waveform
from audio.fetch import Fetcher
from audio.pool import DecodePool
from audio.room import Room
from audio.source import AudioSource
from audio.spool import Spool
from config import MB, Settings
from engine.grammar import Grammar
from engine.tokens import Told
from errors import BadRequest, Overloaded
from models.base import Clip, Conversation, Turn
from wire import Capabilities, Heard, Job, JobId, TextPart
from worker.clips import fitted
from worker.serving import Request, Requests

PREPARE_THREADS = 4  # features and templates; torch uses the cores by itself
GRAMMAR_THREADS = 2  # of their own: a client's grammar may take seconds, and nobody else's audio waits for it


class Preparer:
    """Prepares many jobs side by side, from one event loop. The decode processes start with it; jobs may come once the
    model is loaded (`start`)."""

    _requests: Requests
    _capabilities: Capabilities

    def __init__(self, settings: Settings, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._threads = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare")
        self._running: dict[JobId, float] = {}  # since when a thread makes the job's request; time.monotonic()
        self._grammar_threads = ThreadPoolExecutor(GRAMMAR_THREADS, thread_name_prefix="grammar")
        limits = DecodeLimits(
            max_seconds=settings.max_audio_seconds,
            max_decoded_bytes=settings.max_decoded_bytes,
            base_s=settings.decode_base_s,
            s_per_minute=settings.decode_s_per_minute,
            allow_truncated=settings.allow_truncated_audio,
        )
        self._decoders = DecodePool(settings.decode_processes, limits)
        self._fetch_rules = _fetch_rules(settings)
        self._budget = AudioBudget(settings.prepare_ahead_s)
        self._source: AudioSource | None = None

    def start(self, requests: Requests, capabilities: Capabilities) -> None:
        """The model is loaded, takes what `capabilities` say, and its requests are made by `requests`."""
        self._requests = requests
        self._capabilities = capabilities

    async def prepare(self, job: Job) -> Request | Told:
        """A request for the engine; or the whole answer, where it takes no model. Raises `EardrumError` for what the
        client got wrong. Cancelling stops fetches and decoding.

        The job holds its seconds of audio until `forget`, and waits here while those before it hold too many.
        """
        self._check_clips(job)
        self._check_tools(job)
        source = self._source = self._source or self._make_source()
        loop = asyncio.get_running_loop()
        grammar = None
        if job.structure or job.tools:
            grammar = await loop.run_in_executor(self._grammar_threads, self._requests.compile, job)
        waveforms = await source.load(job.id, job.audio_parts)
        return await loop.run_in_executor(self._threads, self._request, job, waveforms, grammar)

    @property
    def oldest_s(self) -> float:
        """How long a thread has been making the request that it has made for the longest; 0 where none does."""
        return time.monotonic() - min(list(self._running.values()), default=time.monotonic())

    def forget(self, job_id: JobId) -> None:
        """The job has ended, however it did: its seconds of audio are free. In the event loop, like `prepare`, which is
        cancelled first where it still runs."""
        self._budget.release(job_id)

    def close(self) -> None:
        self._decoders.close()
        self._threads.shutdown(cancel_futures=True)
        self._grammar_threads.shutdown(cancel_futures=True)

    def _make_source(self) -> AudioSource:
        """Made on first use, in the event loop that its connections belong to."""
        settings = self._settings
        room = Room(
            settings.fetch_ahead_mb * MB, lambda: Overloaded("Too much audio is being fetched. Try again later.")
        )
        return AudioSource(
            spool=self._spool,
            fetcher=Fetcher(self._fetch_rules, self._spool, room),
            room=room,
            decoders=self._decoders,
            budget=self._budget,
            sampling_rate=self._capabilities.sampling_rate,
            fetch_timeout_s=settings.fetch_timeout,
            max_audio_seconds=settings.max_audio_seconds,
            max_request_seconds=settings.max_request_audio_seconds,
        )

    def _check_clips(self, job: Job) -> None:
        limit, parts = self._capabilities.max_clips, job.audio_parts
        if limit is not None and len(parts) > limit:
            place = parts[limit].place
            if limit == 0:
                raise BadRequest(f"`{place}`: this model reads text only, and hears no audio.", place)
            raise BadRequest(
                f"`{place}`: the messages hold {len(parts)} audio parts, and this model hears at most {limit}.",
                place,
            )

    def _check_tools(self, job: Job) -> None:
        if job.tools is not None and self._capabilities.tools is None:
            raise BadRequest(
                "`tools`: the served model knows no tools, or writes calls of them in a way that the server does not "
                "read. Leave them out, or set `tool_choice` to `none`.",
                "tools",
            )

    def _request(self, job: Job, waveforms: Sequence[Waveform], grammar: Grammar | None) -> Request | Told:
        self._running[job.id] = time.monotonic()
        try:
            return self._made(job, waveforms, grammar)
        finally:
            del self._running[job.id]

    def _made(self, job: Job, waveforms: Sequence[Waveform], grammar: Grammar | None) -> Request | Told:
        policy = job.long_audio or self._settings.long_audio or self._capabilities.long_audio
        clips = [
            fitted(waveform, part.place, policy, self._capabilities)
            for part, waveform in zip(job.audio_parts, waveforms, strict=True)
        ]
        rate = self._capabilities.sampling_rate
        ends = tuple(accumulate(len(window) / rate for clip in clips for window in clip.windows))
        heard = Heard(len(clips), sum(map(len, waveforms)) / rate, ends[-1] if ends else 0.0, ends if job.task else ())
        conversation = _conversation(job, clips)
        if job.tokens is not None:
            return self._requests.tokens(job, conversation, heard)
        return self._requests.prepare(job, conversation, heard, grammar)


def _fetch_rules(settings: Settings) -> FetchRules:
    return FetchRules(
        max_bytes=settings.max_audio_bytes,
        max_redirects=settings.fetch_redirects,
        allow_http=settings.allow_http,
        allow_ports=tuple(map(port_range, settings.allow_ports)),
        allow_domains=tuple(map(domain, settings.allow_domains)),
        allow_networks=settings.allow_networks,
        allow_private=settings.allow_private_networks,
        first_byte_s=settings.fetch_first_byte,
        min_bytes_per_s=settings.fetch_min_bytes_per_s,
        cache_bytes=settings.fetch_cache_mb * MB,
    )


def _conversation(job: Job, clips: Iterable[Clip]) -> Conversation:
    following = iter(clips)
    return tuple(
        Turn(
            message.role,
            tuple(part.text if isinstance(part, TextPart) else next(following) for part in message.parts),
            message.calls,
            message.call_id,
            message.name,
            message.reasoning,
        )
        for message in job.messages
    )
