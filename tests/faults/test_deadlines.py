"""A request's time is over: nobody waits longer, and nothing is computed for it any more."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from tests.support.inprocess import request, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import user
from tests.support.waiting import until

CHAT = "/v1/chat/completions"
LONG = "#tokens=100000 #delay=0.01"


async def test_running_work_is_cancelled() -> None:
    """With a 504 that is not to be retried, and in a stream with one error event."""
    async with run_in_process() as server, server.http() as http:
        began = time.monotonic()
        answers = [
            await http.post(CHAT, json=request(LONG, stream=stream), headers={"x-request-timeout": "2"})
            for stream in (False, True)
        ]
        assert time.monotonic() - began < 20
        assert (answers[0].status_code, answers[0].headers["x-should-retry"]) == (504, "false")
        assert answers[0].json()["error"]["code"] == "deadline_exceeded"
        *_, last, end = answers[1].text.split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        assert end == ""
        await server.settled()


async def test_queued_work_is_dropped_before_it_costs_anything() -> None:
    """A worker that becomes free never sees what would have killed it."""
    async with run_in_process(max_rows=1, prepare_ahead=1) as server, server.http() as http:
        running = [asyncio.ensure_future(http.post(CHAT, json=request("#tokens=60 #delay=0.02"))) for _ in range(2)]
        await until(lambda: len(server.body._live) == 2)
        headers = {"x-request-timeout": "0.2"}
        queued = await asyncio.gather(
            *(http.post(CHAT, json=request("#tokens=9 #die"), headers=headers) for _ in range(3))
        )
        assert [answer.status_code for answer in queued] == [504] * 3
        assert not server.queue._jobs
        assert [(await answer).status_code for answer in running] == [200, 200]
        await server.settled()


async def test_a_job_whose_time_is_over_is_not_handed_out() -> None:
    """Should its cancellation not have come yet."""
    async with run_in_process(running=False) as server, server.http() as http:
        server.withdraw = lambda job_id: None
        answer = await http.post(CHAT, json=request("#die #tokens=9"), headers={"x-request-timeout": "0.1"})
        assert answer.status_code == 504
        assert len(server.queue._jobs) == 1
        assert server.queue.take(1, True) is None
        assert not server.queue._jobs


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
async def test_a_header_that_is_no_time_is_a_400(value: str) -> None:
    """It names the header."""
    async with run_in_process() as server, server.http() as http:
        answer = await http.post(CHAT, json=request("hello"), headers={"x-request-timeout": value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")


async def test_a_client_cannot_ask_for_more_than_the_server_allows() -> None:
    """The server's limit holds."""
    async with run_in_process(request_timeout=0.2) as server, server.http() as http:
        answer = await http.post(CHAT, json=request(LONG), headers={"x-request-timeout": "100"})
        assert answer.status_code == 504
        await server.settled()


async def test_an_upload_has_no_more_time_than_the_request(fake_server: RunningServer) -> None:
    """A client that sends a byte now and then holds nothing for ever."""

    async def drip():
        yield b'{"model": "fake"'
        for _ in range(30):
            await asyncio.sleep(0.1)
            yield b" "

    headers = {"content-type": "application/json", "x-request-timeout": "0.5"}
    async with httpx.AsyncClient(base_url=fake_server.base_url, timeout=20) as http:
        answer = await http.post(CHAT, content=drip(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_the_sdks_header_is_heeded(fake_server: RunningServer) -> None:
    """As clients send it."""
    async with fake_server.async_client() as client:
        with pytest.raises(Exception, match="time is over") as error:
            await client.chat.completions.create(
                model="fake", messages=user(LONG), extra_headers={"x-request-timeout": "0.3"}
            )
    assert error.value.status_code == 504
