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

from pebble import ProcessExpired, ProcessPool

from audio.decode import DecodeLimits, decode_file
from errors import AudioTooLong, BadAudio

MAX_ADDRESS_SPACE_BYTES = 4 << 30
KILL_GRACE_S = 5.0  # wall clock on top of the CPU seconds that decode_file counts itself


class DecodePool:
    """`processes` decoders, started with the pool."""

    def __init__(self, processes: int, limits: DecodeLimits) -> None:
        self._limits = limits
        self._pool = ProcessPool(
            max_workers=processes, context=multiprocessing.get_context("spawn"), initializer=_initialize
        )
        for _ in range(processes):  # the first request must not wait for an interpreter to start
            self._pool.schedule(os.getpid)

    async def decode(self, source: str, target: str, sampling_rate: int) -> int:
        """`decode_file` in one of the processes; cancelling stops it."""
        future: Future[int] = self._pool.schedule(
            decode_file,
            args=(source, target, sampling_rate, self._limits),
            timeout=self._limits.longest_s + KILL_GRACE_S,
        )
        try:
            return await asyncio.wrap_future(future)
        except TimeoutError:
            raise AudioTooLong("decoding the audio takes longer than allowed.") from None
        except (ProcessExpired, MemoryError):
            raise BadAudio("the audio could not be decoded: its decoder crashed.") from None
        finally:
            future.cancel()

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


def _initialize() -> None:
    """In the decode process: follow the worker into death, leave signals to it, and take no more than a share."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE_BYTES, MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "decode processes are spawned"
    parent.join()
    os._exit(1)
