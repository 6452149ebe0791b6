"""A client leaves, wherever its request is: everything that was held for it is free again. Counted in every phase."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from tests.support.inprocess import InProcess, run_in_process
from tests.support.origin import Origin
from tests.support.speech import audio_url, input_audio, user
from tests.support.waiting import until


class Visitor:
    """A client that sends its body, takes what comes, and leaves when told to."""

    def __init__(self, server: InProcess, body: bytes, half: bool = False) -> None:
        self.received = 0  # bytes of the answer's body
        self._leave = asyncio.Event()
        self._messages = iter([{"type": "http.request", "body": body, "more_body": half}])
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"", "headers": []}
        self.task = asyncio.ensure_future(server.app(scope, self._receive, self._send))

    async def _receive(self) -> dict:
        if message := next(self._messages, None):
            return message
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        self.received += len(message.get("body", b""))

    async def leave(self) -> None:
        self._leave.set()
        await self.task


def held(server: InProcess) -> dict[str, int]:
    """What is held for requests, in every place there is."""
    live = list(server.body._live.values())
    preparer = server.api.preparer
    return {
        "inside": server.routes.reception._door._inside,
        "bytes": server.routes.reception._room.held,
        "waiting": len(server.pending._entries),
        "queued": len(server.queue._jobs),
        "files": sum(path.name != "lock" for path in server.spool.directory.iterdir()),
        "live": len(live),
        "preparing": sum(job.preparing is not None and not job.preparing.done() for job in live),
        "seconds": preparer._budget.held_s,
        "rows": 0 if server.api.engine.idle else 1,
    }


NOTHING = dict.fromkeys(("inside", "bytes", "waiting", "queued", "files", "live", "preparing", "seconds", "rows"), 0)


async def everything_free(server: InProcess) -> None:
    """Waits for it, and shows what is not."""
    try:
        await until(lambda: held(server) == NOTHING)
    except TimeoutError:
        raise AssertionError(held(server)) from None


async def visit_and_leave(
    server: InProcess, request: dict, arrived: Callable[[Visitor], object], half: bool = False
) -> None:
    """Three clients with such a request, who leave once `arrived`."""
    body = json.dumps({"model": "fake", **request}).encode()
    visitors = [Visitor(server, body[: len(body) // 2] if half else body, half) for _ in range(3)]
    await until(lambda: all(arrived(visitor) for visitor in visitors))
    assert held(server)["inside"] == 3
    await asyncio.gather(*(visitor.leave() for visitor in visitors))
    await everything_free(server)


FORMS = pytest.mark.parametrize("form", [{}, {"stream": True}, {"n": 2}, {"n": 2, "stream": True}], ids=str)


async def test_while_it_uploads() -> None:
    """Half of a body is dropped with its bytes."""
    async with run_in_process() as server:
        request = {"messages": user(input_audio("jfk.ogg"))}
        await visit_and_leave(server, request, lambda _: held(server)["bytes"] > 3 * 10_000, half=True)


@FORMS
async def test_while_it_is_queued(form: dict) -> None:
    """The job leaves the queue, and its audio the spool."""
    async with run_in_process(running=False) as server:
        request = {"messages": user(input_audio("jfk.ogg")), **form}
        await visit_and_leave(server, request, lambda _: held(server)["queued"] == 3)


@FORMS
async def test_while_its_audio_is_fetched(form: dict, origin: Origin) -> None:
    """The one fetch for all of them is given up."""
    origin.release.clear()
    async with run_in_process(allow_private_networks=True) as server:
        asked = len(origin.requested)
        request = {"messages": user(audio_url(origin.url("clip/jfk.ogg?wait=0.01"))), **form}
        await visit_and_leave(
            server, request, lambda _: len(origin.requested) == asked + 1 and held(server)["preparing"] == 3
        )
    origin.release.set()


@FORMS
async def test_while_its_audio_is_decoded(form: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that takes its time."""
    async with run_in_process() as server:
        decoding = 0

        async def decode(*_: object) -> int:
            nonlocal decoding
            decoding += 1
            return await asyncio.Event().wait()

        monkeypatch.setattr(server.api.preparer._decoders, "decode", decode)
        request = {"messages": user(input_audio("jfk.ogg")), **form}
        await visit_and_leave(server, request, lambda _: decoding == 3)


@FORMS
async def test_while_its_prompt_is_computed(form: dict) -> None:
    """Between two pieces of it."""
    async with run_in_process() as server:
        request = {"messages": user(input_audio("jfk.ogg"), "#prefill=60"), **form}
        await visit_and_leave(server, request, lambda _: held(server)["rows"] and held(server)["preparing"] == 0)


@FORMS
async def test_while_its_answer_is_written(form: dict) -> None:
    """Within a step. A stream has been heard in part, a collected answer not at all."""
    async with run_in_process() as server:
        request = {"messages": user(input_audio("jfk.ogg"), "#tokens=100000 #delay=0.01"), **form}

        def writing(visitor: Visitor) -> bool:
            entries = server.pending._entries.values()
            return visitor.received > 500 if "stream" in form else sum(len(entry.events) > 3 for entry in entries) == 3

        await visit_and_leave(server, request, writing)
