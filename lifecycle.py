"""EardrumServer: LitServe's launcher with a known end.

Adds what LitServe 0.2.19 lacks: only our routes, a start that notices a worker that dies while it loads, SIGTERM, and
no process left behind, also when the main one is killed. The main process decides; the others follow it.
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
from collections.abc import Mapping
from importlib import metadata
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Literal

import litserve as ls
from litserve.utils import WorkerSetupStatus

from api.spec import AudioSpec
from audio.spool import Spool
from config import Settings
from healthcheck import is_ready
from worker.lit_api import AudioChatAPI
from worker.loop import STOP_SIGNAL, WorkerStart

log = logging.getLogger("eardrum.lifecycle")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
MONITOR_S = 0.5
MAX_RESTARTS, RESTARTS_WITHIN_S = 5, 60
POLL_S = 0.05
MAX_SPOOL_PATH_BYTES = 107 - len("/worker-4194304.sock")  # unix(7) holds a socket's path to 107 bytes
# Longer than clients keep an idle connection (httpx, and with it OpenAI's SDK: 5 s, which is uvicorn's default, too): a
# connection that both ends let go of at the same moment fails the request that the client was about to send.
KEEP_ALIVE_S = 65
API_STOP_S = 3.0  # for what an API process does after its time to drain
WORKER_STOP_S = 3.0  # for the step that is running; nobody waits for its outcome

WELCOME = r"""
Eardrum serves {model} at {base}/v1. To try it:

  printf '{{"model":"{model}","messages":[{{"role":"user","content":[
    {{"type":"input_audio","input_audio":{{"data":"%s","format":"ogg"}}}}]}}]}}' "$(base64 < tests/data/jfk.ogg)" |
  tr -d '\n' | curl {base}/v1/chat/completions -H 'Content-Type: application/json'{key} -d @-
"""

Accelerator = Literal["cpu", "cuda"]


class StartFailed(Exception):
    """The server could not start; the message says what to do."""


class EardrumServer(ls.LitServer):
    """One server run. `serve` returns its exit status."""

    def __init__(self, settings: Settings, lit_api: AudioChatAPI, spec: AudioSpec) -> None:
        self._settings = settings
        self._spec = spec
        self._stopping = threading.Event()
        self._exit_status = 0
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
        self.monitor_internal = MONITOR_S
        self.uvicorn_graceful_timeout = settings.drain_timeout_s
        self._restarts: list[float] = []  # time.monotonic() of each

    def register_endpoints(self) -> None:
        """Ours alone. LitServe's own `/`, `/health` and `/info` would win over them."""
        self._spec._server = self
        self._spec.mount(self.app)

    def serve(self) -> int:
        """Run until told to stop."""
        if sys.platform != "linux":
            raise StartFailed("Eardrum runs on Linux: it relies on the kernel to tell of processes that die.")
        self._check_port()
        self._handle_signals()
        end_forks_with_main()
        try:
            self.run(
                host=self._settings.host,
                port=self._settings.port,
                num_api_servers=self._settings.api_servers,
                log_level="warning",
                generate_client_file=False,
                http="h11",  # httptools bounds no headers
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        finally:
            for child in multiprocessing.active_children():
                child.kill()
        return self._exit_status

    def stop(self, exit_status: int = 0) -> None:
        """End the run. Any thread may call; a signal handler may not, because it would wait for itself."""
        self._exit_status = self._exit_status or exit_status
        self._stopping.set()
        if self._shutdown_event is not None:
            self._shutdown_event.set()

    def _check_port(self) -> None:
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._settings.host, self._settings.port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise StartFailed(f"{self._settings.host} cannot be listened on: {error.strerror}.") from None
                raise StartFailed(f"Port {self._settings.port} is in use. Name another with --port.") from None

    def _handle_signals(self) -> None:
        main = os.getpid()

        def handle(number: int, _: FrameType | None) -> None:
            if os.getpid() != main:  # a forked process that inherited the handler follows the main one
                return
            if self._stopping.is_set():
                log.warning("second signal: ending at once")
                os._exit(128 + number)
            threading.Thread(target=self.stop, name="stop", daemon=True).start()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    # ------------------------------------------------------------------------------------------ LitServe's own steps

    def verify_worker_status(self) -> None:
        """Wait until every worker has loaded its model."""
        while not self._all_ready():
            if self._stopping.is_set():
                raise SystemExit(0)
            failed = WorkerSetupStatus.ERROR in self.workers_setup_status.values()
            if failed or not all(worker.is_alive() for worker in self.inference_workers):
                raise StartFailed("A worker could not load the model; the reason stands above.")
            time.sleep(POLL_S)

    def _all_ready(self) -> bool:
        return all(status == WorkerSetupStatus.READY for status in self.workers_setup_status.values())

    def launch_single_inference_worker(self, lit_api: Any, worker_id: int) -> Any:
        """Start a worker anew that has died; too often in short time, and it is not worth it."""
        now = time.monotonic()
        self._restarts = [*(at for at in self._restarts if now - at < RESTARTS_WITHIN_S), now]
        if len(self._restarts) > MAX_RESTARTS:
            log.error("workers died %d times in %d s; the server ends", len(self._restarts), RESTARTS_WITHIN_S)
            self.stop(exit_status=1)
        return super().launch_single_inference_worker(lit_api, worker_id)

    def _start_server(self, *args: Any, **kwargs: Any) -> Any:
        servers = super()._start_server(*args, **kwargs)
        threading.Thread(target=self._watch_api_servers, args=(servers,), name="watch", daemon=True).start()
        threading.Thread(target=self._announce, name="announce", daemon=True).start()
        return servers

    def _announce(self) -> None:
        """Say what is served, and where, as soon as it answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._settings.host, self._settings.host)  # noqa: S104
        base = f"http://{host}:{self._settings.port}"
        while not is_ready(host.strip("[]"), self._settings.port):
            if self._stopping.wait(POLL_S):
                return
        print(WELCOME.format(model=self._settings.public_name, base=base, key=_key_header(self._settings)), flush=True)

    def _watch_api_servers(self, servers: Mapping[int, Any]) -> None:
        """Without its API process the port would accept connections and never answer: better to end, and be started
        anew by a supervisor."""
        wait([server.sentinel for server in servers.values()])
        if not self._stopping.is_set():
            log.error("an API process died; the server ends")
            self.stop(exit_status=1)

    def _perform_graceful_shutdown(
        self, manager: Any, uvicorn_workers: Mapping[int, Any], shutdown_reason: str = "normal"
    ) -> None:
        """API processes first, each of which finishes its answers; then the workers, which have nothing left to do."""
        self._stopping.set()
        for server in uvicorn_workers.values():
            server.terminate()
        for server in uvicorn_workers.values():
            server.join(self._settings.drain_timeout_s + API_STOP_S)
        for worker in self.inference_workers:
            if worker.is_alive():
                os.kill(worker.pid, STOP_SIGNAL)
        for worker in self.inference_workers:
            worker.join(WORKER_STOP_S)
            worker.kill()
        manager.shutdown()


def _key_header(settings: Settings) -> str:
    return ' -H "Authorization: Bearer $API_KEY"' if settings.api_keys else ""


def check_spool(spool: Spool) -> None:
    """Workers make their sockets in its directory. Raises `StartFailed` where its path leaves no room for a name."""
    if len(os.fsencode(spool.directory)) > MAX_SPOOL_PATH_BYTES:
        raise StartFailed(f"{spool.directory} is too long a path. Name a shorter directory with --spool-dir.")


def end_forks_with_main() -> None:
    """Let the kernel kill processes that are forked from now on when the main one dies, however it dies."""
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def choose_accelerator(device: str) -> Accelerator:
    """`auto` is CUDA where there is a GPU and a torch that can use it, else the CPU. Does not import torch: a process
    that has started CUDA cannot be forked. Raises `StartFailed` for a device that is not there."""
    if device == "cuda" and not _has_gpu():
        raise StartFailed("No CUDA device is here: nvidia-smi lists none. See --device.")
    if device != "auto":
        return device  # type: ignore[return-value]
    return "cuda" if _has_gpu() and not metadata.version("torch").endswith("+cpu") else "cpu"


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0
