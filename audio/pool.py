"""A small pool of killable decode processes.

FFmpeg on hostile bytes can hang, crash or eat memory, and must not share the engine's interpreter lock. A process that
overruns or dies fails its one audio and is replaced. The processes end with their worker, also when it is killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
import threading
from concurrent.futures import Future
from contextlib import suppress

from pebble import ProcessExpired, ProcessPool

from audio.decode import DecodeLimits, decode_file
from errors import AudioTooLong, BadAudio

MAX_ADDRESS_SPACE_BYTES = 4 << 30
ABANDON_S = 1.0  # how long the decoding of an audio may go on that nobody waits for
KILL_GRACE_S = 5.0  # wall clock on top of the CPU seconds that decode_file counts itself


class DecodePool:
    """`processes` decoders, started with the pool. Used from one event loop."""

    def __init__(self, processes: int, limits: DecodeLimits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(processes)  # who waits here is not in pebble's pipe, and can still be forgotten
        self._pool = ProcessPool(
            max_workers=processes, context=multiprocessing.get_context("spawn"), initializer=_initialize
        )
        for _ in range(processes):  # the first request must not wait for an interpreter to start
            self._pool.schedule(os.getpid)

    async def decode(self, source: str, target: str, sampling_rate: int) -> int:
        """`decode_file` in one of the processes. Cancelling gives up: `target` may be removed at once."""
        await self._free.acquire()
        decoding = asyncio.wrap_future(self._schedule(source, target, sampling_rate))
        try:
            await asyncio.wait({decoding})
        except asyncio.CancelledError:
            _abandon(decoding)
            raise
        try:
            return decoding.result()
        except TimeoutError:
            raise AudioTooLong("decoding the audio takes longer than allowed.") from None
        except (ProcessExpired, MemoryError):
            raise BadAudio("the audio could not be decoded: its decoder crashed.") from None

    def _schedule(self, source: str, target: str, sampling_rate: int) -> Future[int]:
        loop = asyncio.get_running_loop()

        def release(_: Future[int]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the worker is going
                loop.call_soon_threadsafe(self._free.release)

        future: Future[int] = self._pool.schedule(
            decode_file,
            args=(source, target, sampling_rate, self._limits),
            timeout=self._limits.longest_s + KILL_GRACE_S,
        )
        future.add_done_callback(release)
        return future

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


def _abandon(decoding: asyncio.Future[int]) -> None:
    """Nobody waits for this any more. Cancelling kills the process, and a new one costs more than most audio: so it may
    end by itself first."""
    asyncio.get_running_loop().call_later(ABANDON_S, decoding.cancel)
    decoding.add_done_callback(lambda done: done.cancelled() or done.exception())


def _initialize() -> None:
    """In the decode process: follow the worker into death, take no more than a share, and stand outside the group of
    processes that Ctrl-C reaches, because the worker still needs what is being decoded."""
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ignored in the worker; here it is how an audio is given up
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE_BYTES, MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the process that spawned this one, and end this one with it, however it ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a spawned process"
    parent.join()
    os._exit(1)
