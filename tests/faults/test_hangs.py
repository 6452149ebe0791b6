"""A worker that stands still is found out: by the age of its step, and by its silence."""

from __future__ import annotations

import asyncio
import signal

from tests.faults.counting import ask, ask_many, begun, tally
from tests.faults.processes import becomes_ready, run_counted, status
from tests.support.waiting import until


async def test_a_frozen_worker_is_not_ready() -> None:
    """Within 5 s, and what it had taken goes on when it thaws; the probes need no key."""
    with run_counted(env={"EARDRUM_API_KEYS": "secret"}) as (server, processes):
        (worker,) = processes.workers()
        async with server.async_client(api_key="secret") as client:
            stream = ask(client, "#tokens=50 #delay=0.02", stream=True)
            await begun([stream])
            worker.send_signal(signal.SIGSTOP)
            await becomes_ready(server, False, within_s=5)
            assert [await status(server, path) for path in ("/live", "/health")] == [200, 503]
            assert (await ask(client, "hello").task).code == "unavailable"
            worker.send_signal(signal.SIGCONT)
            await becomes_ready(server, True, within_s=5)
            assert await tally([stream], [ask(client, "hello")]) == {"ok": 2}


async def test_a_worker_that_is_stuck_in_a_step_is_killed() -> None:
    """Who hangs it is run again once, elsewhere, and then refused; whoever sat in the same step is answered. A worker
    that is frozen is killed, too."""
    flags = ("--workers-per-device", "2", "--max-rows", "4", "--step-timeout", "1.5")
    with run_counted(*flags) as (server, processes):
        before = processes.workers()
        async with server.async_client() as client:
            hanging = ask(client, "#tokens=9 #delay=0.05 #hang")
            others = ask_many(client, [f"#tokens=20 #delay=0.05 {i}" for i in range(5)])
            assert await tally(others) == {"ok": 5}
            assert await tally([hanging]) == {"kills_workers": 1}
            await until(lambda: len(set(processes.workers()) - set(before)) == 2)
            assert server.log.read_text().count("has not moved for") >= 2

            frozen, _ = processes.workers()
            waiting = ask_many(client, [f"#tokens=40 #delay=0.02 {i}" for i in range(8)])
            await asyncio.sleep(0.4)
            frozen.send_signal(signal.SIGSTOP)
            assert await tally(waiting) == {"ok": 8}
            await until(lambda: not frozen.is_running())
