"""AudioSpec: binds the seam `submit` to LitServe's queues and mounts the routes. LitServe ends here.

LitServe gives the processes, one request queue for all workers and one response queue for each API process. The stock
endpoints and response buffer are not used: events arrive under one key, and the pending table fans them out.

    api process ── job queue: Job ──────────────────▶ a worker with room
                ── its control socket: wake, cancel ─▶
                ◀── response queue: lists of events ──

An API process listens to two signals of the main process's, and to no others: to drain, and to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any

import litserve as ls
from fastapi import FastAPI
from litserve.utils import ResponseBufferItem

from api import routes
from api.control import ControlLine
from api.link import Limits
from api.pending import PendingTable
from audio.spool import Spool
from config import Settings
from errors import Unavailable
from wire import BUS, Cancel, Event, Job, JobId, Ready, Wake, to_line

log = logging.getLogger("eardrum.api")

WATCH_AGAIN_S = 1.0
DRAIN_SIGNAL = signal.SIGUSR1  # finish what was accepted, then end
END_SIGNAL = signal.SIGUSR2  # no worker will answer: fail what was accepted, then end
CANNOT_GO_ON = "The server cannot go on. Try again when it has been started anew."


class AudioSpec(ls.OpenAISpec):
    """Made in the main process, used in the API processes that are forked from it. In a worker it is only a name."""

    def __init__(self, settings: Settings, spool: Spool) -> None:
        super().__init__()
        self._settings = settings
        self._spool = spool
        servers = settings.api_servers
        max_waiting = -(-settings.queue_requests // servers)
        limits = Limits(max_waiting, settings.heartbeat_max_age_s, settings.step_timeout, settings.max_rows, servers)
        self.pending = PendingTable(self, limits)
        self._controls: dict[int, ControlLine] = {}  # by the worker's pid
        self._watched: dict[int, int] = {}  # pid: its file descriptor
        self._tasks: set[asyncio.Task[None]] = set()

    def __getstate__(self) -> dict[str, Any]:
        """What a worker gets: none of the queues, sockets and tables of the API process."""
        return {"api_path": self.api_path}

    def pre_setup(self, lit_api: ls.LitAPI) -> None:
        """LitServe's spec checks the hooks for its own loops here, and registers its own endpoints."""

    def setup(self, server: ls.LitServer) -> None:
        """In the main process, before the API processes are forked."""
        super().setup(server)
        self.response_buffer[BUS] = ResponseBufferItem(event=_Unused(), response_queue=_Bus(self.pending))

    def mount(self, app: FastAPI) -> None:
        self._api = routes.mount(app, self._settings, self.pending, self._spool)

    # ------------------------------------------------------------------------------------- in the API process

    def open(self) -> None:
        """The event loop runs: look after the workers, and from now on follow the main process alone. A signal to the
        whole group is the main process's to answer."""
        loop = asyncio.get_running_loop()
        stop_uvicorn: Callable[..., None] = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

        async def drain(timeout_s: float) -> None:
            await self._api.reception.drain(timeout_s)
            stop_uvicorn(signal.SIGTERM, None)

        def end() -> None:
            self.pending.close(Unavailable(CANNOT_GO_ON))
            self._run(drain(0))

        loop.add_signal_handler(DRAIN_SIGNAL, lambda: self._run(drain(self._settings.drain_timeout)))
        loop.add_signal_handler(END_SIGNAL, end)
        self._run(self.pending.check_forever())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------------- pending.Link

    @property
    def api_server(self) -> int:
        assert self.response_queue_id is not None, "LitServe numbers an API process before it forks it"
        return int(self.response_queue_id)

    async def send(self, job: Job, first: bool = False) -> None:
        """Put a job into the queue. One thread of our own: LitServe waits for responses in the default ones."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._sender, self.request_queue.put, job, first)
        except (EOFError, OSError):
            raise Unavailable(CANNOT_GO_ON) from None
        self._tell_workers(Wake())

    def withdraw(self, job_id: JobId) -> None:
        self._sender.submit(self.request_queue.discard, job_id)  # behind its `put`

    def cancel(self, job_id: JobId) -> None:
        self._tell_workers(Cancel(job_id))

    def watch(self, ready: Ready) -> None:
        """The kernel tells of a worker's end at once, also when it is killed."""
        loop = asyncio.get_running_loop()
        try:
            if ready.pid not in self._controls:  # it is, where only the next line failed the last time
                self._controls[ready.pid] = ControlLine(ready.control)
            descriptor = os.pidfd_open(ready.pid)
        except (ProcessLookupError, ConnectionRefusedError, FileNotFoundError):  # it is gone already
            self._gone(ready.pid)
            return
        except OSError:  # out of file descriptors, for a while
            log.exception("worker %d cannot be watched yet", ready.pid)
            loop.call_later(WATCH_AGAIN_S, self.watch, ready)
            return

        self._watched[ready.pid] = descriptor
        loop.add_reader(descriptor, self._gone, ready.pid)

    def kill(self, pid: int) -> None:
        """By its descriptor: a pid may be somebody else's by now."""
        if pid in self._watched:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._watched[pid], signal.SIGKILL)

    def _gone(self, pid: int) -> None:
        if pid in self._watched:
            descriptor = self._watched.pop(pid)
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        if pid in self._controls:
            self._controls.pop(pid).close()
        self.pending.worker_died(pid)

    def _tell_workers(self, message: Wake | Cancel) -> None:
        """Whichever has room takes a job that it is woken for, and whichever has the job cancels it."""
        for control in self._controls.values():
            control.send(to_line(message))

    @cached_property
    def _sender(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="queue")


class _Unused:
    """Stands where LitServe expects an event to set."""

    def set(self) -> None:
        pass


class _Bus:
    """Stands where LitServe expects one request's queue: it appends every message, in the event loop."""

    def __init__(self, pending: PendingTable) -> None:
        self._pending = pending

    def append(self, response: tuple[list[Event], str]) -> None:
        events, _ = response
        for event in events:
            try:
                self._pending.deliver(event)
            except Exception:  # LitServe would never listen again
                log.exception("%r could not be delivered", event)
