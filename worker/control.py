"""The worker's control socket: `Wake` and `Cancel`, which must not wait behind the job queue.

A worker listens at an address inside the run's private directory; API processes learn it from `Ready` and stay
connected.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from wire import Cancel, JobId, from_line


class ControlSocket:
    """Listens in threads of its own until the process ends."""

    def __init__(self, directory: Path, on_wake: Callable[[], None], on_cancel: Callable[[JobId], None]) -> None:
        self.address = str(directory / f"{os.getpid()}-control.sock")
        self._on_wake, self._on_cancel = on_wake, on_cancel
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.address)
        self._socket.listen()

    def start(self) -> None:
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._read, args=(connection,), name="control", daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        """One API process's lines, until it is gone."""
        with connection, connection.makefile("r") as lines:
            for line in lines:
                message = from_line(line.strip())
                if isinstance(message, Cancel):
                    self._on_cancel(message.job_id)
                else:
                    self._on_wake()
