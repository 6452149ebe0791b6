"""The routes, the pending table and the worker's body, without LitServe between them."""

from __future__ import annotations

import asyncio
import json
import os
import threading

import httpx
import pytest

from api.blame import name_of
from errors import Overloaded
from tests.support.inprocess import InProcess, request, run_in_process
from tests.support.speech import input_audio, user
from tests.support.waiting import until
from wire import Job, JobId, Message, Sampling, Started, TextPart

CHAT = "/v1/chat/completions"


def job(server: InProcess, text: str, **sampling: object) -> Job:
    return Job(server.pending.new_job_id(), (Message("user", (TextPart(text),)),), Sampling(**sampling))


def spooled(server: InProcess) -> list[str]:
    return [path.name for path in server.spool.directory.iterdir() if path.name != "lock"]


async def test_an_answer_comes_through_the_seam() -> None:
    """The same routes and the same worker serve without a queue of LitServe's."""
    async with run_in_process() as server, server.http() as http:
        answer = (await http.post(CHAT, json=request("hello"))).json()
        assert answer["choices"][0]["message"]["content"] == "I heard nothing. You said: hello"
        audio = user(input_audio("cv-en-no.mp3"), "and?")
        answer = (await http.post(CHAT, json={"model": "fake", "messages": audio})).json()
        assert answer["choices"][0]["message"]["content"] == "I heard 4.1 s. You said: and?"
        whole = {"seconds_received": 4.104, "seconds_used": 4.104, "seconds_dropped": 0.0, "parts": 1}
        assert answer["usage"]["audio"] == whole
        await server.settled()
        assert spooled(server) == []


async def test_closing_the_events_cancels_the_job() -> None:
    """In the middle of its answer; the worker is free again, and what it sends late is dropped."""
    async with run_in_process() as server:
        events = server.pending.submit(job(server, "#tokens=100000 #delay=0.001"))
        await anext(events)
        await events.aclose()
        assert len(server.cancelled) == 1
        await server.settled()


async def test_a_suspect_is_alone_in_its_worker() -> None:
    """It waits until those that were there have ended, and those that come later wait for it."""
    async with run_in_process(max_rows=8) as server:
        order: list[str] = []

        async def ask(text: str) -> None:
            async for event in server.pending.submit(job(server, text)):
                if not order or order[-1] != text:
                    order.append(text)
                del event

        suspect = "#tokens=20 #delay=0.005 suspect"
        name = name_of(job(server, suspect))
        server.pending._blame.note_death({name: 2.0}, alone=False, refuse=set())
        before = asyncio.ensure_future(ask("#tokens=50 #delay=0.005 before"))
        await until(lambda: order)
        await asyncio.gather(before, ask(suspect), *(ask(f"#tokens=20 #delay=0.005 {i}") for i in range(3)))
    assert order[:2] == ["#tokens=50 #delay=0.005 before", suspect]
    assert suspect not in order[2:]
    assert len(order) > 5, "the others share the steps"


async def test_a_preparation_that_hangs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a step that hangs is: the worker's heartbeat tells how long it has been going on."""
    go_on = threading.Event()
    async with run_in_process() as server:
        prepare = server.api.engine.requests.prepare
        monkeypatch.setattr(server.api.engine.requests, "prepare", lambda *args: go_on.wait(10) and prepare(*args))
        asked = asyncio.ensure_future(anext(server.pending.submit(job(server, "hello"))))
        await until(lambda: server.body.step_s > 0.2)
        go_on.set()
        await asked
        await until(lambda: server.body.step_s == 0)


async def test_a_finished_job_is_not_cancelled() -> None:
    """Nor one that failed."""
    async with run_in_process() as server:
        async for _ in server.pending.submit(job(server, "hello", n=3)):
            pass
        with pytest.raises(Exception, match="refuse"):
            await anext(server.pending.submit(job(server, "#bad")))
        assert server.cancelled == []
        await server.settled()


async def test_a_client_that_left_while_its_job_was_queued() -> None:
    """No worker ever sees it; one that is taking it just then learns of it."""
    async with run_in_process(running=False) as server:
        left = job(server, "#tokens=100000 #delay=0.001")
        waiting = asyncio.ensure_future(anext(server.pending.submit(left)))
        await until(lambda: server.queue._jobs)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(server.pending._entries) == len(server.queue._jobs) == 0
        assert (server.withdrawn, server.cancelled) == ([left.id], [])
        server.pending.deliver(Started(left.id, os.getpid()))
        assert server.cancelled == [left.id]


async def test_the_queue_is_bounded_by_requests_and_by_bytes() -> None:
    """What is over is refused at once with a 429 that says when to try again."""
    settings = {"queue_requests": 2, "queue_bytes": 120_000, "max_body_bytes": 120_000}
    async with run_in_process(running=False, **settings) as server, server.http() as http:
        audio = {"model": "fake", "messages": user(input_audio("jfk.ogg"))}
        first = asyncio.ensure_future(http.post(CHAT, json=audio))
        await until(lambda: len(server.pending._entries) == 1)
        refused = await http.post(CHAT, json=audio)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        text = await http.post(CHAT, json=request("x" * 100_000))
        assert text.status_code == 429, "a body that is being read counts, too"
        second = asyncio.ensure_future(http.post(CHAT, json=request("hello")))
        await until(lambda: len(server.pending._entries) == 2)
        with pytest.raises(Overloaded):
            await anext(server.pending.submit(job(server, "third")))
        assert len(spooled(server)) == 1
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await until(lambda: not spooled(server))


async def test_a_request_past_its_time_ends() -> None:
    """With a 504, and its work is dropped."""
    async with run_in_process(request_timeout=0.2) as server, server.http() as http:
        answer = await http.post(CHAT, json=request("#tokens=100000 #delay=0.01"))
        assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")
        answer = await http.post(CHAT, json=request("#tokens=100000 #delay=0.01", stream=True))
        assert json.loads(answer.text.split("data: ")[-1])["error"]["code"] == "deadline_exceeded"
        await server.settled()


async def test_text_that_waits_takes_room() -> None:
    """As audio does."""
    async with (
        run_in_process(running=False, queue_bytes=100_000, max_body_bytes=100_000) as server,
        server.http() as http,
    ):
        first = asyncio.ensure_future(http.post(CHAT, json=request("x" * 60_000)))
        await until(lambda: server.pending._num_waiting)
        answer = await http.post(CHAT, json=request("x" * 60_000))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        server.start()
        assert (await first).status_code == 200


@pytest.mark.parametrize("fault", ["prepare", "prefill", "step"])
async def test_a_model_that_fails_answers_500_and_goes_on(fault: str) -> None:
    """Wherever it fails; nothing of its own words reaches the client, and a stream ends with an error event."""
    async with run_in_process() as server, server.http() as http:
        answer = await http.post(CHAT, json=request(f"#tokens=9 #fail={fault}"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "fake" not in answer.json()["error"]["message"]
        if fault == "step":
            answer = await http.post(CHAT, json=request("#tokens=9 #fail=step", stream=True))
            assert answer.status_code == 200
            last = answer.text.rstrip("\n").split("\n\n")[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
            assert answer.text.endswith("\n\n")
            assert "[DONE]" not in answer.text
        answer = await http.post(CHAT, json=request("#say=still_here"))
        assert answer.json()["choices"][0]["message"]["content"] == "still here"
        await server.settled()


async def test_a_failed_step_fails_everybody_in_it_and_nobody_else() -> None:
    """Those who come later are served."""
    async with run_in_process() as server, server.http() as http:
        posts = [http.post(CHAT, json=request("#tokens=500 #delay=0.001")) for _ in range(3)]
        running = [asyncio.ensure_future(post) for post in posts]
        await until(lambda: len(server.body._live) == 3)
        await http.post(CHAT, json=request("#tokens=9 #fail=step"))
        answers: list[httpx.Response] = await asyncio.gather(*running)
        assert {answer.status_code for answer in answers} <= {200, 500}
        assert (await http.post(CHAT, json=request("hello"))).status_code == 200
        await server.settled()


def test_job_ids_survive_the_control_socket() -> None:
    """They travel as text."""
    id_ = JobId(3, "abc")
    assert JobId.parse(str(id_)) == id_


async def test_a_model_that_only_fails_ends_its_worker() -> None:
    """A broken device fails every request; a new worker may do better. One success says that the device is well."""
    async with run_in_process() as server, server.http() as http:
        for failures in (29, 30):
            assert (await http.post(CHAT, json=request("hello"))).status_code == 200
            assert server.failure is None
            for _ in range(failures):
                assert (await http.post(CHAT, json=request("#fail=prefill"))).status_code == 500
        await until(lambda: server.failure)
        assert "again and again" in str(server.failure)


async def test_a_worker_ends_overdue_jobs_by_itself_and_does_not_take_them_for_a_broken_model() -> None:
    """Forty at once, of which no cancellation arrives: the worker knows their deadline, and goes on."""
    async with run_in_process(request_timeout=1.0) as server, server.http() as http:
        server.cancel = lambda job_id: None
        posts = [http.post(CHAT, json=request("#tokens=100000 #delay=0.001")) for _ in range(40)]
        answers = await asyncio.gather(*posts)
        assert {answer.status_code for answer in answers} == {504}
        await server.settled()
        assert server.failure is None
        assert (await http.post(CHAT, json=request("hello"))).status_code == 200


async def test_a_cancellation_that_comes_before_its_job_is_not_lost() -> None:
    """The client is told that its job was taken before the worker has it in hand."""
    async with run_in_process(running=False) as server:
        early = job(server, "#tokens=100000 #delay=0.001")
        server.start()
        server.cancel = lambda job_id: None  # the only one is the one that came before
        server.body.cancel(early.id)
        await until(lambda: early.id in server.body._early)
        await server.send(early)
        await until(lambda: not server.queue._jobs)
        await server.settled()
