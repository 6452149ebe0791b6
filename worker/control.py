"""The worker's control socket: short datagrams that must not wait behind the job queue.

`wake` says that the queue has a job, `cancel <job id>` that nobody wants one any more. A worker listens at an address
inside the run's private directory; API processes learn it from `Ready`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from wire import JobId

log = logging.getLogger("eardrum.worker")

MAX_DATAGRAM_BYTES = 512


class ControlSocket:
    """Listens in a thread of its own until the process ends."""

    def __init__(self, directory: Path, on_wake: Callable[[], None], on_cancel: Callable[[JobId], None]) -> None:
        self.address = str(directory / f"worker-{os.getpid()}.sock")
        self._on_wake, self._on_cancel = on_wake, on_cancel
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)

    def start(self) -> None:
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def _listen(self) -> None:
        while True:
            verb, _, argument = self._socket.recv(MAX_DATAGRAM_BYTES).decode().partition(" ")
            if verb == "wake":
                self._on_wake()
            elif verb == "cancel":
                self._on_cancel(JobId.parse(argument))
            else:
                log.error("unknown control message %r", verb)
