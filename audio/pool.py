"""A small pool of killable decode processes.

FFmpeg on hostile bytes can hang, crash or eat memory, and must not share the engine's interpreter lock. A process that
overruns or dies fails its one audio and is replaced. The processes end with their worker, also when it is killed.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import resource
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from audio.decode import DecodeLimits, decode_file
from errors import AudioTooLong, BadAudio, InternalError

log = logging.getLogger("eardrum.worker")

MAX_ADDRESS_SPACE_BYTES = 4 << 30
MAX_TASKS = 5000  # of one process: FFmpeg keeps some kilobytes for each file that is broken in odd ways
ABANDON_S = 1.0  # how long the decoding of an audio may go on that nobody waits for
KILL_GRACE_S = 5.0  # wall clock on top of the CPU seconds that decode_file counts itself


class _PoolBroken(Exception):
    """Not the audio is at fault but the pool."""


class DecodePool:
    """`processes` decoders, started with the pool. Used from one event loop."""

    def __init__(self, processes: int, limits: DecodeLimits) -> None:
        self._processes = processes
        self._limits = limits
        self._free = asyncio.Semaphore(processes)  # who waits here is not in pebble's pipe, and can still be forgotten
        self._pool = self._start()

    def _start(self) -> ProcessPool:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPool(self._processes, MAX_TASKS, initializer=_initialize, context=spawn)
        for _ in range(self._processes):  # the first request must not wait for an interpreter to start
            pool.schedule(os.getpid)
        return pool

    async def decode(self, source: str, target: str, sampling_rate: int) -> int:
        """`decode_file` in one of the processes. Cancelling gives up: `target` may be removed at once."""
        async with self._free:
            for _ in range(2):
                pool = self._pool
                try:
                    return await self._decode_in(pool, source, target, sampling_rate)
                except _PoolBroken:
                    self._replace(pool)
        raise InternalError("The decoders keep dying.")

    async def _decode_in(self, pool: ProcessPool, source: str, target: str, sampling_rate: int) -> int:
        timeout = self._limits.most_s(_size(source)) + KILL_GRACE_S
        try:
            task = pool.schedule(decode_file, args=(source, target, sampling_rate, self._limits), timeout=timeout)
        except RuntimeError as error:  # pebble gives up its pool when an idle process dies
            raise _PoolBroken from error
        decoding: asyncio.Future[int] = asyncio.wrap_future(task)
        try:
            await asyncio.wait({decoding}, timeout=timeout + KILL_GRACE_S)
        except asyncio.CancelledError:
            _abandon(decoding)
            raise
        return _result(decoding)

    def _replace(self, broken: ProcessPool) -> None:
        if self._pool is broken:
            log.error("the decode processes are started anew")
            self._pool = self._start()
            threading.Thread(target=_end, args=(broken,), daemon=True).start()  # it waits for its processes

    def close(self) -> None:
        _end(self._pool)


def _size(path: str) -> int:
    """0 where it is gone: its request has ended."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return 0


def _result(decoding: asyncio.Future[int]) -> int:
    if not decoding.done():
        raise _PoolBroken
    try:
        return decoding.result()
    except TimeoutError:
        raise AudioTooLong("decoding the audio takes longer than allowed.") from None
    except BrokenProcessPool as error:
        raise _PoolBroken from error
    except (ProcessExpired, MemoryError):
        raise BadAudio("the audio could not be decoded: its decoder crashed.") from None


def _end(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


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
