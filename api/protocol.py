"""uvicorn's HTTP/1.1 with what it lacks: bounds on how long a client may take to send a head, and to take an answer.

Without them a connection that says nothing, or a byte now and then, would be kept for ever, and so would one whose
client reads nothing of its answer. What comes behind a head is bounded by its handler.
"""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from errors import RequestTimeout


def http_protocol(head_timeout_s: float, send_timeout_s: float) -> type[H11Protocol]:
    """A protocol for uvicorn's `http`, with these bounds."""

    class TimedH11(H11Protocol):
        _head_due: asyncio.TimerHandle | None = None
        _taking_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(0)  # any byte that the client leaves unread is noticed
            self._watch_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            """The client has left so much unread that nothing more is sent."""
            super().pause_writing()
            self._taking_due = self.loop.call_later(send_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._taking_due is not None:
                self._taking_due.cancel()
                self._taking_due = None

        def _watch_head(self) -> None:
            """From the first byte of a head, or from the connection, to the head's end; and what is left of a request
            that has been answered already."""
            if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
                self._disarm()
            elif self._head_due is None:
                self._head_due = self.loop.call_later(head_timeout_s, self._refuse)

        def _disarm(self) -> None:
            if self._head_due is not None:
                self._head_due.cancel()
                self._head_due = None

        def _refuse(self) -> None:
            if not self.transport.is_closing():
                if self.conn.our_state is h11.IDLE:
                    self.transport.write(_answer(RequestTimeout("The request's head did not arrive in time.")))
                self.transport.close()

    return TimedH11


def _answer(error: RequestTimeout) -> bytes:
    body = json.dumps(error.body()).encode()
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body
