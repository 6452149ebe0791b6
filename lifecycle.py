"""EardrumServer: LitServe's launcher with a known end.

Adds what LitServe 0.2.19 lacks: only our routes, a start that notices a worker that dies or hangs while it loads, a
limit to starting workers anew, SIGTERM, and no process left behind, also when the main one is killed. The main process
decides; the others follow it.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from multiprocessing.connection import wait
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Literal

import litserve as ls
from fastapi import FastAPI
from litserve.transport.factory import create_transport_from_config
from litserve.utils import WorkerSetupStatus

from api.protocol import http_protocol
from api.spec import DRAIN_SIGNAL, END_SIGNAL, AudioSpec
from audio.spool import Spool
from config import Settings
from healthcheck import is_ready
from jobqueue import JobQueue
from restarts import Lives
from worker.lit_api import AudioChatAPI
from worker.loop import ENGINE_FAILED, STOP_SIGNAL, WorkerStart, bus_message

log = logging.getLogger("eardrum.lifecycle")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCH_S = 0.25
POLL_S = 0.05
AGAIN_S = 2.0
MAX_SPOOL_PATH_BYTES = 107 - len("/4194304-control.sock")  # unix(7) holds a socket's path to 107 bytes
# Longer than clients keep an idle connection (httpx, and with it OpenAI's SDK: 5 s, which is uvicorn's default, too): a
# connection that both ends let go of at the same moment fails the request that the client was about to send.
KEEP_ALIVE_S = 65
BACKLOG = 2048  # connections that wait to be accepted; uvicorn's default
CONNECTIONS_STOP_S = 1  # for uvicorn to close what is still open after the time to drain
API_STOP_S = 3.0  # for all that an API process does after it
WORKER_STOP_S = 1.0  # for the step that is running; nobody waits for its outcome

WELCOME = r"""
Eardrum serves {model} at {base}/v1. To try it:

  printf '{{"model":"{model}","messages":[{{"role":"user","content":[
    {{"type":"input_audio","input_audio":{{"data":"%s","format":"ogg"}}}}]}}]}}' "$(base64 < tests/data/jfk.ogg)" |
  tr -d '\n' | curl {base}/v1/chat/completions -H 'Content-Type: application/json'{key} -d @-
"""

Accelerator = Literal["cpu", "cuda"]


class ServerFailed(Exception):
    """The server could not start, or could not go on; the message says why, and what to do."""


class _Manager(SyncManager):
    """The process that carries the queues."""


_Manager.register("JobQueue", JobQueue, exposed=("put", "take", "discard"))


@dataclass
class _Worker:
    """A worker's place: the process that fills it now, and how its predecessors fared."""

    index: int
    process: BaseProcess
    lives: Lives
    restart_at: float | None = None  # time.monotonic(), where it is dead

    def __str__(self) -> str:
        return f"Worker {self.index}"


class EardrumServer(ls.LitServer):
    """One server run: `serve`."""

    def __init__(self, settings: Settings, lit_api: AudioChatAPI, spec: AudioSpec, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._spec = spec
        self._stopping = threading.Event()
        self._drained = threading.Event()
        self._reason: str | None = None  # why it ends, where nobody told it to
        self._workers: list[_Worker] = []
        accelerator = choose_accelerator(settings.device)
        super().__init__(
            lit_api,
            accelerator=accelerator,
            workers_per_device=settings.workers_per_device,
            timeout=False,
            callbacks=WorkerStart(settings),
            restart_workers=True,
            disable_openapi_url=True,
        )
        self.uvicorn_graceful_timeout = CONNECTIONS_STOP_S

    def register_endpoints(self) -> None:
        """Ours alone. LitServe's own `/`, `/health` and `/info` would win over them."""
        self._spec._server = self
        self._spec.mount(self.app)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Of an API process."""
        async with super().lifespan(app):
            self._spec.open()
            yield

    def serve(self) -> None:
        """Run until told to stop. Raises `ServerFailed`, after all is tidied up, where it ends by itself."""
        if sys.platform != "linux":
            raise ServerFailed("Eardrum runs on Linux: it relies on the kernel to tell of processes that die.")
        self._check_port()
        self._handle_signals()
        end_forks_with_main()
        # Python's resource tracker tidies up what a killed worker leaves, and would say so after our last word.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        # Before the port is opened: a copy of it in this process would keep it open when nobody answers any more.
        self._manager = _Manager()
        self._manager.start()
        try:
            self.run(
                host=self._settings.host,
                port=self._settings.port,
                num_api_servers=self._settings.api_servers,
                log_level="warning",
                generate_client_file=False,
                http=http_protocol(self._settings.receive_timeout, self._settings.send_timeout),
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        except (EOFError, ConnectionError):
            raise ServerFailed(MANAGER_DIED) from None
        finally:
            for child in multiprocessing.active_children():
                child.kill()
        if self._reason is not None:
            raise ServerFailed(self._reason)

    def stop(self, reason: str | None = None) -> None:
        """End the run; `reason`: why it cannot go on. Any thread may call."""
        if not self._stopping.is_set():
            self._reason = reason
        self._stopping.set()

    def _check_port(self) -> None:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        with socket.socket(family) as probe, self._port_named():
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((self._settings.host, self._settings.port))

    @contextmanager
    def _port_named(self) -> Iterator[None]:
        """Says of what the kernel refuses which address or port it is."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ServerFailed(f"{self._settings.host} cannot be listened on: {error.strerror}.") from None
            raise ServerFailed(f"Port {self._settings.port} is in use. Name another with --port.") from None

    def _handle_signals(self) -> None:
        main = os.getpid()
        told = threading.Event()

        def handle(number: int, _: FrameType | None) -> None:
            if os.getpid() != main:  # a forked process that inherited the handler follows the main one
                return
            if told.is_set():
                log.warning("second signal: ending at once")
                os._exit(128 + number)
            told.set()
            # Not here: the handler may have interrupted the very lock that it would wait for.
            threading.Thread(target=self.stop, name="stop", daemon=True).start()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    # ------------------------------------------------------------------------------------------ LitServe's own steps

    def _init_manager(self, num_api_servers: int) -> SyncManager:
        """LitServe's, with our queue, and an end that only this process decides on."""
        manager = self._manager
        self.transport_config.manager = manager
        self.transport_config.num_consumers = num_api_servers
        self._transport = create_transport_from_config(self.transport_config)
        self.workers_setup_status = manager.dict()
        self._shutdown_event = self._stopping
        queue = manager.JobQueue(self._transport._queues, bus_message)  # type: ignore[attr-defined]
        self.litapi_request_queues = {api.api_path: queue for api in self.litapi_connector}
        return manager

    def verify_worker_status(self) -> None:
        """Wait until every worker has loaded its model."""
        now = time.monotonic()
        for index, process in enumerate(self.inference_workers):
            worker = _Worker(index, process, Lives(self._settings.max_restarts))
            worker.lives.start(now)
            self._workers.append(worker)
        while any(worker.lives.ready_at is None for worker in self._workers):
            if self._stopping.is_set():
                raise SystemExit(0)
            for worker in self._workers:
                if not worker.process.is_alive():
                    ending = how_it_ended(worker.process)
                    raise ServerFailed(f"{worker} {ending} while it loaded the model; what it said stands above.")
                if self._is_late(worker):
                    raise ServerFailed(f"{worker} {self._too_slow}.")
                self._note_ready(worker)
            time.sleep(POLL_S)

    def _note_ready(self, worker: _Worker) -> None:
        if worker.lives.ready_at is None:
            (status,) = [s for name, s in self.workers_setup_status.items() if name.endswith(f"_{worker.index}")]
            if status == WorkerSetupStatus.READY:
                worker.lives.ready(time.monotonic())

    def _is_late(self, worker: _Worker) -> bool:
        loading = worker.lives.ready_at is None
        return loading and time.monotonic() - worker.lives.started_at > self._settings.start_timeout

    @property
    def _too_slow(self) -> str:
        return f"has not loaded the model within {self._settings.start_timeout:g} s; see --start-timeout"

    def _start_server(
        self, port: int, servers: int, log_level: str, sockets: list[socket.socket], *more: Any, **options: Any
    ) -> Any:
        with self._port_named():  # now, as another server may have been started on it while the model was loaded
            for each in sockets:
                each.listen(BACKLOG)
        api_servers = super()._start_server(port, servers, log_level, sockets, *more, **options)
        for each in sockets:  # theirs alone from now on: the port is closed as soon as they are gone
            each.close()
        threading.Thread(target=self._announce, name="announce", daemon=True).start()
        return api_servers

    def _announce(self) -> None:
        """Say what is served, and where, as soon as it answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._settings.host, self._settings.host)  # noqa: S104
        base = f"http://{host}:{self._settings.port}"
        while not is_ready(host.strip("[]"), self._settings.port):
            if self._stopping.wait(POLL_S):
                return
        print(WELCOME.format(model=self._settings.public_name, base=base, key=_key_header(self._settings)), flush=True)

    def _perform_graceful_shutdown(
        self, manager: SyncManager, uvicorn_workers: Mapping[int, BaseProcess], shutdown_reason: str = "normal"
    ) -> None:
        """API processes first, each of which finishes its answers, if there is anybody to write them; then the workers,
        which have nothing left to do."""
        can_answer = manager_lives(manager) and any(worker.restart_at != NEVER for worker in self._workers)
        until = time.monotonic() + self._settings.drain_timeout + API_STOP_S
        for server in uvicorn_workers.values():
            if server.is_alive():
                os.kill(pid_of(server), DRAIN_SIGNAL if can_answer else END_SIGNAL)
        for server in uvicorn_workers.values():
            server.join(max(0.0, until - time.monotonic()))
            server.kill()
        self._drained.set()
        for worker in self._workers:
            if worker.process.is_alive():
                os.kill(pid_of(worker.process), STOP_SIGNAL)
        for worker in self._workers:
            worker.process.join(WORKER_STOP_S)
            worker.process.kill()
        manager_of(manager).kill()  # asking it to end would wait for one that is frozen

    # ------------------------------------------------------------------------------------------------- the watch

    def _start_worker_monitoring(self, manager: SyncManager, uvicorn_workers: Mapping[int, BaseProcess]) -> None:
        """Ours; LitServe's starts workers anew for ever, and looks at nothing else."""
        arguments = (manager, list(uvicorn_workers.values()))
        threading.Thread(target=self._watch, args=arguments, name="watch", daemon=True).start()

    def _watch(self, manager: SyncManager, api_servers: list[BaseProcess]) -> None:
        """Until the API processes have gone: start workers anew, and end the run where something cannot be mended."""
        while True:
            self._wait_for_a_death(manager, api_servers)
            if self._drained.is_set():
                return
            if not all(server.is_alive() for server in api_servers):
                self.stop("An API process died.")  # the port may be closed; a supervisor starts the server anew
            if not manager_lives(manager):
                self.stop(MANAGER_DIED)
                return
            try:
                for worker in self._workers:
                    self._look_after(worker)
            except (EOFError, ConnectionError, FileNotFoundError):  # the manager dies, or is shut down, just now
                pass
            except OSError:  # such as no more processes or memory, for a while
                log.exception("a worker cannot be started")

    def _wait_for_a_death(self, manager: SyncManager, api_servers: list[BaseProcess]) -> None:
        """Or a moment. Of those that are known to be dead the watch knows already."""
        processes = [manager_of(manager), *api_servers, *(worker.process for worker in self._workers)]
        alive = [process.sentinel for process in processes if process.is_alive()]
        wait(alive, WATCH_S) if alive else time.sleep(WATCH_S)

    def _look_after(self, worker: _Worker) -> None:
        now = time.monotonic()
        if worker.restart_at is not None:
            if now >= worker.restart_at:
                self._restart(worker, now)
        elif not worker.process.is_alive():
            self._bury(worker, now)
        elif self._is_late(worker):
            log.error("%s %s", worker, self._too_slow)
            worker.process.kill()
        else:
            self._note_ready(worker)

    def _restart(self, worker: _Worker, now: float) -> None:
        log.warning("%s is started anew", worker)
        worker.restart_at = now + AGAIN_S  # should it not succeed
        self._spool.forget(pid_of(worker.process))
        worker.lives.start(now)
        worker.process = self.launch_single_inference_worker(self.lit_api, worker.index)
        worker.restart_at = None

    def _bury(self, worker: _Worker, now: float) -> None:
        ending = how_it_ended(worker.process)
        delay_s = worker.lives.die(now)
        if delay_s is None:
            worker.restart_at = NEVER
            times = "once" if worker.lives.short == 1 else f"{worker.lives.short} times in a row"
            self.stop(
                f"{worker} died {times} without having lasted. The last time it {ending}; what it said stands above."
            )
        else:
            worker.restart_at = now + delay_s
            when = f"in {delay_s:g} s" if delay_s else "at once"
            log.error("%s %s; it is started anew %s", worker, ending, when)


NEVER = float("inf")
MANAGER_DIED = "The process that carries the queues died."


def manager_of(manager: SyncManager) -> BaseProcess:
    process: BaseProcess = manager._process  # type: ignore[attr-defined]
    return process


def manager_lives(manager: SyncManager) -> bool:
    return manager_of(manager).is_alive()


def pid_of(process: BaseProcess) -> int:
    assert process.pid is not None, "it has been started"
    return process.pid


def how_it_ended(process: BaseProcess) -> str:
    """In words that go on from its name."""
    status = process.exitcode
    if status is None:
        return "ended"
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), by hand or for want of memory,"
    if status < 0:
        return f"crashed ({signal.Signals(-status).name})"
    if status == ENGINE_FAILED:
        return "gave up"
    return f"ended with status {status}"


def _key_header(settings: Settings) -> str:
    return ' -H "Authorization: Bearer $API_KEY"' if settings.api_keys else ""


def check_spool(spool: Spool) -> None:
    """Workers make their sockets in its directory. Raises `ServerFailed` where its path leaves no room for a name."""
    if len(os.fsencode(spool.directory)) > MAX_SPOOL_PATH_BYTES:
        raise ServerFailed(f"{spool.directory} is too long a path. Name a shorter directory with --spool-dir.")


def end_forks_with_main() -> None:
    """Let the kernel kill processes that are forked from now on when the main one dies, however it dies."""
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def choose_accelerator(device: str) -> Accelerator:
    """`auto` is CUDA where there is a GPU and a torch that can use it, else the CPU. Does not import torch: a process
    that has started CUDA cannot be forked. Raises `ServerFailed` for a device that is not there."""
    if device == "cuda" and not _has_gpu():
        raise ServerFailed("No CUDA device is here: nvidia-smi lists none. See --device.")
    if device != "auto":
        return device  # type: ignore[return-value]
    return "cuda" if _has_gpu() and not metadata.version("torch").endswith("+cpu") else "cpu"


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0
