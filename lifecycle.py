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
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import wait
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import litserve as ls
from fastapi import FastAPI
from litserve.transport.factory import create_transport_from_config
from litserve.utils import WorkerSetupStatus

from api.protocol import http_protocol
from api.spec import DRAIN_SIGNAL, END_SIGNAL, AudioSpec
from audio.spool import Spool
from config import Settings
from devices import choose_accelerator
from healthcheck import is_ready
from jobqueue import JobQueue
from supervision import ServerFailed, Workers, pid_of
from worker.lit_api import AudioChatAPI
from worker.loop import WorkerStart, bus_message

log = logging.getLogger("eardrum.lifecycle")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
WATCH_S = 0.25
POLL_S = 0.05
MAX_SPOOL_PATH_BYTES = 107 - len("/4194304-control.sock")  # unix(7) holds a socket's path to 107 bytes
# Longer than clients keep an idle connection (httpx, and with it OpenAI's SDK: 5 s, which is uvicorn's default, too): a
# connection that both ends let go of at the same moment fails the request that the client was about to send.
KEEP_ALIVE_S = 65
BACKLOG = 2048  # connections that wait to be accepted; uvicorn's default
CONNECTIONS_STOP_S = 1  # for uvicorn to close what is still open after the time to drain
API_STOP_S = 3.0  # for all that an API process does after it

WELCOME = r"""
Eardrum serves {model} at {base}/v1. To try it:

  printf '{{"model":"{model}","messages":[{{"role":"user","content":[
    {{"type":"input_audio","input_audio":{{"data":"%s","format":"ogg"}}}}]}}]}}' "$(base64 < tests/data/jfk.ogg)" |
  tr -d '\n' | curl {base}/v1/chat/completions -H 'Content-Type: application/json'{key} -d @-
"""


class _Manager(SyncManager):
    """The process that carries the queues."""


_Manager.register("JobQueue", JobQueue, exposed=("put", "take", "discard"))


class EardrumServer(ls.LitServer):
    """One server run: `serve`."""

    def __init__(self, settings: Settings, lit_api: AudioChatAPI, spec: AudioSpec, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._spec = spec
        self._stopping = threading.Event()
        self._drained = threading.Event()
        self._reason: str | None = None  # why it ends, where nobody told it to
        try:
            accelerator = choose_accelerator(settings.device)
        except LookupError as error:
            raise ServerFailed(str(error)) from None
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
        self._workers = Workers(
            self.inference_workers,
            self._settings.max_restarts,
            self._settings.start_timeout,
            is_ready=self._has_loaded,
            launch=lambda index: self.launch_single_inference_worker(self.lit_api, index),
            forget=self._spool.forget,
        )
        self._workers.wait_ready(self._stopping.is_set)
        if self._stopping.is_set():
            raise SystemExit(0)

    def _has_loaded(self, index: int) -> bool:
        (status,) = [each for name, each in self.workers_setup_status.items() if name.endswith(f"_{index}")]
        return bool(status == WorkerSetupStatus.READY)

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
        can_answer = manager_lives(manager) and not self._workers.are_lost
        until = time.monotonic() + self._settings.drain_timeout + API_STOP_S
        for server in uvicorn_workers.values():
            if server.is_alive():
                os.kill(pid_of(server), DRAIN_SIGNAL if can_answer else END_SIGNAL)
        for server in uvicorn_workers.values():
            server.join(max(0.0, until - time.monotonic()))
            server.kill()
        self._drained.set()
        self._workers.end()
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
                self._workers.look_after()
            except ServerFailed as failure:
                self.stop(str(failure))
            except (EOFError, ConnectionError, FileNotFoundError):  # the manager dies, or is shut down, just now
                pass
            except OSError:  # such as no more processes or memory, for a while
                log.exception("a worker cannot be started")

    def _wait_for_a_death(self, manager: SyncManager, api_servers: list[BaseProcess]) -> None:
        """Or a moment. Of those that are known to be dead the watch knows already."""
        processes = [manager_of(manager), *api_servers, *self._workers.processes]
        alive = [process.sentinel for process in processes if process.is_alive()]
        wait(alive, WATCH_S) if alive else time.sleep(WATCH_S)


MANAGER_DIED = "The process that carries the queues died."


def manager_of(manager: SyncManager) -> BaseProcess:
    process: BaseProcess = manager._process  # type: ignore[attr-defined]
    return process


def manager_lives(manager: SyncManager) -> bool:
    return manager_of(manager).is_alive()


def _key_header(settings: Settings) -> str:
    return ' -H "Authorization: Bearer $API_KEY"' if settings.keys else ""


def check_spool(spool: Spool) -> None:
    """Workers make their sockets in its directory. Raises `ServerFailed` where its path leaves no room for a name."""
    if len(os.fsencode(spool.directory)) > MAX_SPOOL_PATH_BYTES:
        raise ServerFailed(f"{spool.directory} is too long a path. Name a shorter directory with --spool-dir.")


def end_forks_with_main() -> None:
    """Let the kernel kill processes that are forked from now on when the main one dies, however it dies."""
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
