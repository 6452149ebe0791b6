"""The API process's end of a worker's control socket.

Sending never blocks and never loses: what the socket does not take at once waits here, and goes when it does.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress


class ControlLine:
    """A connection to one worker. Used from one event loop."""

    def __init__(self, address: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(address)  # local: the kernel answers at once
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def send(self, line: str) -> None:
        """Send a line. To a worker that is gone it goes nowhere; who watches the worker learns of its end."""
        waiting = bool(self._unsent)
        self._unsent += line.encode() + b"\n"
        if not waiting and not self._flush():
            self._loop.add_writer(self._socket, self._flush_later)

    def _flush(self) -> bool:
        """Send what can be sent; whether that was all."""
        with suppress(BlockingIOError):
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except ConnectionError:
                self._unsent.clear()
        return not self._unsent

    def _flush_later(self) -> None:
        if self._flush():
            self._loop.remove_writer(self._socket)

    def close(self) -> None:
        self._loop.remove_writer(self._socket)
        self._socket.close()
