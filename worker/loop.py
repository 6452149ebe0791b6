"""EngineLoop: a LitServe loop that runs the worker's body on LitServe's queues.

LitServe's own loops call the hooks one after the other and wait for each; this one runs intake, preparation and engine
steps side by side (body.py), and sends one message for each step to each API process instead of one for each token.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from litserve.callbacks import Callback
from litserve.loops.base import LitLoop
from litserve.transport.base import MessageTransport
from litserve.utils import LitAPIStatus, LoopResponseType

from audio.pool import end_with_parent
from config import Settings, configure_logging
from wire import BUS, Event, Heartbeat, Job, Ready
from worker.body import WorkerBody
from worker.control import ControlSocket
from worker.lit_api import AudioChatAPI

log = logging.getLogger("eardrum.worker")

HEARTBEAT_S = 1.0
POLL_S = 1.0  # a look into the queue, should a wake-up have been lost
COURTESY_S, GLANCE_S = 0.01, 0.001
STOP_SIGNAL = signal.SIGUSR1  # from the main process, when nobody is waiting for an answer any more
ENGINE_FAILED = 70  # exit status: EX_SOFTWARE of sysexits.h


def bus_message(events: Sequence[Event]) -> object:
    """Events as LitServe's response queue carries them."""
    return BUS, (list(events), LitAPIStatus.OK, LoopResponseType.STREAMING, 0)


class QueueSource:
    """Jobs from the job queue. Waits for a wake-up, and then asks: a wait *in* the queue would outlive its worker.

    A worker whose `rows` are all taken lets others go first for a moment.
    """

    def __init__(self, job_queue: Any, rows: int) -> None:
        self._queue = job_queue
        self._rows = rows
        self._wake = threading.Event()

    def wake(self) -> None:
        self._wake.set()

    def get(self, num_held: Callable[[], int]) -> Job | None:
        while True:
            self._wake.clear()
            self._let_others_go_first(num_held)
            try:
                job: Job | None = self._queue.take(os.getpid(), not num_held())
            except (EOFError, ConnectionError, FileNotFoundError):  # the manager is gone, and so is the server
                return None
            except Exception:  # such as no more file descriptors: rather a new worker than one that takes no jobs
                log.exception("the queue could not be asked; the worker ends and is started anew")
                os._exit(ENGINE_FAILED)
            if job is not None:
                return job
            self._wake.wait(POLL_S)

    def _let_others_go_first(self, num_held: Callable[[], int]) -> None:
        """Until there is a free row here, and no longer than it takes another worker that has one."""
        until = time.monotonic() + COURTESY_S
        while num_held() >= self._rows and time.monotonic() < until:
            time.sleep(GLANCE_S)


class BusSender:
    """Events to API processes: one message for each process and round, with a heartbeat now and then."""

    def __init__(self, transport: MessageTransport, num_api_servers: int, heartbeat: Callable[[], Heartbeat]) -> None:
        self._transport = transport
        self._num_api_servers = num_api_servers
        self._heartbeat = heartbeat
        self._outbox: queue.SimpleQueue[tuple[int, Sequence[Event]]] = queue.SimpleQueue()
        self._next_heartbeat = 0.0

    def put(self, api_server: int, events: Sequence[Event]) -> None:
        self._outbox.put((api_server, events))

    def start(self, ready: Ready) -> None:
        """Says that the worker is ready, before anything else of it can be heard."""
        for api_server in range(self._num_api_servers):
            self._send(api_server, [ready])
        threading.Thread(target=self._send_forever, name="sender", daemon=True).start()

    def _send_forever(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # the manager is gone, and so is the server
            while True:
                for api_server, events in self._gather().items():
                    self._send(api_server, events)

    def _send(self, api_server: int, events: Sequence[Event]) -> None:
        self._transport.send(bus_message(events), consumer_id=api_server)

    def _gather(self) -> dict[int, list[Event]]:
        """What is to be sent now; waits for something until the next heartbeat is due."""
        messages: dict[int, list[Event]] = {}
        timeout = max(0.0, self._next_heartbeat - time.monotonic())
        with contextlib.suppress(queue.Empty):
            while True:
                api_server, events = self._outbox.get(timeout=timeout)
                messages.setdefault(api_server, []).extend(events)
                timeout = 0.0
        if time.monotonic() >= self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + HEARTBEAT_S
            for api_server in range(self._num_api_servers):
                messages.setdefault(api_server, []).append(self._heartbeat())
        return messages


class EngineLoop(LitLoop):
    """Owns the worker process, from `setup` to its end."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def pre_setup(self, lit_api: AudioChatAPI, spec: object = None) -> None:
        """LitServe's loops check the hooks here; ours are called by our own code."""

    def __call__(
        self,
        lit_api: AudioChatAPI,
        device: str,
        worker_id: int,
        request_queue: Any,
        transport: MessageTransport,
        workers_setup_status: dict[str, str],
        callback_runner: object,
    ) -> None:
        try:
            self._run(lit_api, request_queue, transport)
        except BaseException:
            log.exception("the engine's thread failed; the worker ends and is started anew")
            os._exit(ENGINE_FAILED)

    def _run(self, lit_api: AudioChatAPI, request_queue: Any, transport: MessageTransport) -> None:
        settings, pid = self._settings, os.getpid()
        source = QueueSource(request_queue, settings.max_rows)
        sender = BusSender(transport, settings.api_servers, lambda: Heartbeat(pid, body.step_s))
        body = WorkerBody(lit_api, source, sender.put, settings.max_rows + settings.prepare_ahead)
        control = ControlSocket(lit_api.run_directory, source.wake, body.cancel)
        control.start()
        sender.start(Ready(pid, control.address, lit_api.capabilities))
        signal.signal(STOP_SIGNAL, lambda *_: body.stop())
        body.run()
        lit_api.teardown()


class WorkerStart(Callback):
    """First thing in a worker process, before the model is loaded.

    Leaves signals to the main process, which ends its workers itself; ends the worker when the main process is gone.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def on_before_setup(self, *_: object, **__: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        threading.Thread(target=end_with_parent, name="follow", daemon=True).start()
        configure_logging(self._settings.log_level)
