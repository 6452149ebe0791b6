"""`python -m tests.faults.soak --seconds 600`: one server under a mixed load, while its workers are killed.

Every request must end as something that a client can understand: answered, refused, failed with a reason, or left by
the client itself. Ends with 1 where one was lost or got somebody else's answer, where a process that lives on has
grown, or where something stays behind. What is asked, and how an answer is judged, stands in load.py.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import get_args

from openai import AsyncOpenAI
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import models  # noqa: F401 -- before tests.support imports transformers: it brings the guard for torchaudio
from tests.faults.load import Account, Mix, Outcome, Record
from tests.faults.processes import Processes, run_counted
from tests.support.origin import Origin, run_origin
from tests.support.servers import RunningServer, still_running

WORKERS, DECODERS = 2, 4
FLAGS = (
    *("--model", "fake", "--workers-per-device", str(WORKERS), "--max-rows", "8", "--queue-requests", "32"),
    *("--max-restarts", "1000000", "--request-timeout", "60", "--allow-private-networks"),
)

Range = tuple[float, float]

CLIENTS = 24
BURST = 80  # requests at once: more than may wait
CALM = 24  # requests before and after the load, all of which must be answered
KILL_EVERY_S: Range = (4.0, 12.0)
DEADLY_EVERY_S: Range = (20.0, 40.0)
BURST_EVERY_S: Range = (10.0, 20.0)
TELL_EVERY_S: Range = (60.0, 60.0)
RETRY_AFTER_S: Range = (0.2, 1.0)

SETTLE_LIMIT_S = 30.0  # until what was killed last is there again
QUIET_S = 2.0  # until closed connections are closed on the server's side, too
# Until the server closes what a client has left open: httpx forgets connections whose request is cancelled midway.
FORGOTTEN_S = 75.0

NEVER: tuple[Outcome, ...] = ("lost", "crossed")
LIVING_ON = ("main", "manager", "api")  # workers come and go
MAX_MORE_DESCRIPTORS = 20
MAX_RESIDENT = 1.5, 50.0  # of what it was, and MB more
SHOWN = 8  # sorts of errors in the table
WIDTH = 120  # characters, where no terminal tells
LOG = Path(tempfile.gettempdir()) / "eardrum-soak.log"


@dataclass(frozen=True)
class Size:
    """What some processes take together."""

    resident_mb: float
    descriptors: int


Sizes = dict[str, Size]  # by role


@dataclass
class Run:
    """What one run has seen."""

    console: Console
    account: Account = field(default_factory=Account)
    started_at: float = field(default_factory=time.monotonic)  # of the load, as soon as there is one
    killed_at: list[float] = field(default_factory=list)
    before: Sizes = field(default_factory=dict)
    after: Sizes = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


# ---------------------------------------------------------------------------------------------------------- processes


def sizes_of(processes: Processes) -> Sizes:
    """By what each process is; those of the same role together."""
    manager, *api = processes.forked()
    workers = processes.spawned()
    numbered = {f"worker {i}": [worker] for i, worker in enumerate(workers, 1)}
    decoders = [child for worker in workers for child in worker.children()]
    roles = {"main": [processes.main], "manager": [manager], "api": api, **numbered, "decoders": decoders}
    return {
        role: Size(sum(p.memory_info().rss for p in each) / 1e6, sum(p.num_fds() for p in each))
        for role, each in roles.items()
    }


# ---------------------------------------------------------------------------------------------------------------- load


class Soak:
    """The load and the faults of one run."""

    def __init__(self, server: RunningServer, processes: Processes, origin: Origin, run: Run, seed: int) -> None:
        self._server, self._processes = server, processes
        self._origin, self._run, self._seed = origin, run, seed
        self._rng = Random(f"{seed} faults")
        self._until = 0.0  # time.monotonic()

    async def load(self, sdk: AsyncOpenAI, seconds: float, kill_every_s: Range) -> None:
        """Returns when every request has ended."""
        self._run.started_at = time.monotonic()
        self._until = self._run.started_at + seconds
        bursts, deadly = self._mix("bursts"), self._mix("deadly")
        async with asyncio.TaskGroup() as group:
            for i in range(CLIENTS):
                group.create_task(self._client(self._mix(f"client {i}"), sdk))
            group.create_task(self._again(kill_every_s, self._kill))
            group.create_task(self._again(BURST_EVERY_S, lambda: self._burst(bursts, sdk)))
            group.create_task(self._again(DEADLY_EVERY_S, lambda: self._run.account.send(deadly.deadly(), sdk)))
            group.create_task(self._again(TELL_EVERY_S, self._tell))

    async def calm(self, sdk: AsyncOpenAI) -> None:
        """Without load and faults, each must be answered."""
        mix = self._mix("calm")
        ends = [await self._run.account.send(mix.audio(), sdk) for _ in range(CALM)]
        answered = sum(end.outcome == "ok" for end in ends)
        self._run.check(answered == CALM, f"of {CALM} requests without load and faults, {answered} were answered")

    def _mix(self, name: str) -> Mix:
        return Mix(Random(f"{self._seed} {name}"), self._origin)

    def _is_over(self) -> bool:
        return time.monotonic() >= self._until or self._server.process.poll() is not None

    async def _client(self, mix: Mix, sdk: AsyncOpenAI) -> None:
        while not self._is_over():
            end = await self._run.account.send(mix.any(), sdk)
            if end.outcome == "refused":
                await asyncio.sleep(self._rng.uniform(*RETRY_AFTER_S))

    async def _again(self, every_s: Range, act: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(min(self._rng.uniform(*every_s), self._until - time.monotonic()))
            if self._is_over():
                return
            await act()

    async def _kill(self) -> None:
        if workers := self._processes.spawned():
            self._rng.choice(workers).kill()
            self._run.killed_at.append(time.monotonic())

    async def _burst(self, mix: Mix, sdk: AsyncOpenAI) -> None:
        await asyncio.gather(*(self._run.account.send(mix.any(), sdk) for _ in range(BURST)))

    async def _tell(self) -> None:
        counts = ", ".join(f"{len(self._run.account.of(outcome))} {outcome}" for outcome in get_args(Outcome))
        self._run.console.print(f"{time.monotonic() - self._run.started_at:.0f} s: {counts}")


async def settle(processes: Processes) -> None:
    """Returns once every process is there and nothing is in the spool, or after a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_LIMIT_S):
            while not is_complete(processes) or processes.left_over():  # noqa: ASYNC110 -- nobody tells
                await asyncio.sleep(0.1)


def is_complete(processes: Processes) -> bool:
    workers = processes.spawned()
    return len(workers) == WORKERS and sum(len(worker.children()) for worker in workers) == DECODERS


# -------------------------------------------------------------------------------------------------------------- verdict


def check(run: Run, server: RunningServer, processes: Processes) -> None:
    """Whether what must hold does; the server is stopped then."""
    check_account(run)
    if (status := server.process.poll()) is None:
        check_growth(run)
        check_end(run, server, processes)
    else:
        run.problems.append(f"the server ended with status {status} in the middle")


def check_account(run: Run) -> None:
    sent, ended = run.account.sent, len(run.account.records)
    run.check(sent == ended, f"{sent} requests were sent, {ended} have ended")
    for outcome in NEVER:
        count = len(run.account.of(outcome))
        run.check(count == 0, f"{count} requests were {outcome}")


def check_growth(run: Run) -> None:
    factor, more_mb = MAX_RESIDENT
    for role in LIVING_ON:
        before, after = run.before[role], run.after[role]
        more = more_descriptors(run, role)
        run.check(more <= MAX_MORE_DESCRIPTORS, f"{role} has {more} more descriptors than before")
        grown = f"{role} has grown from {before.resident_mb:.0f} to {after.resident_mb:.0f} MB"
        run.check(after.resident_mb <= factor * before.resident_mb + more_mb, grown)


def more_descriptors(run: Run, role: str) -> int:
    return run.after[role].descriptors - run.before[role].descriptors


def check_end(run: Run, server: RunningServer, processes: Processes) -> None:
    left = processes.left_over()
    sorts = Counter(Path(name).suffix for name in left)
    run.check(not left, f"files of nobody are in the spool: {dict(sorts)}, such as {left[0] if left else None}")
    tree = server.tree()
    status = server.stop()
    run.check(status == 0, f"the server ended with status {status}")
    run.check(not still_running(tree), "processes of the server run on after its end")
    run.check(processes.spool_is_gone, "the server has left its spool")


# --------------------------------------------------------------------------------------------------------------- report


def print_report(run: Run) -> None:
    for record in (record for outcome in NEVER for record in run.account.of(outcome)):
        run.console.print(escape(_line(run, record)), soft_wrap=True)
    run.console.print(_requests_table(run), _processes_table(run))
    for problem in run.problems:
        run.console.print(f"[bold red]problem:[/] {escape(problem)}")
    run.console.print("[bold red]failed[/]" if run.problems else "[green]passed[/]")


def _line(run: Run, record: Record) -> str:
    sent_s, took_s = record.sent_at - run.started_at, record.ended_at - record.sent_at
    end = f"{record.end.outcome} after {took_s:.1f} s: {record.end.came}"
    return f"sent at {sent_s:.1f} s: {record.request}; {end}"


def _requests_table(run: Run) -> Table:
    table = Table("requests", "", "what came")
    table.add_row("sent", str(run.account.sent))
    for outcome in get_args(Outcome):
        records = run.account.of(outcome)
        came = Counter(record.end.came for record in records if record.end.came and outcome not in NEVER)
        shown = ", ".join(f"{times} x {text}" for text, times in came.most_common(SHOWN))
        table.add_row(outcome, str(len(records)), escape(shown))
    bad = [record for record in run.account.records if record.request.status != 200]
    right = sum(record.end.status == record.request.status for record in bad)
    table.add_row("bad inputs", str(len(bad)), f"{right} answered rightly, the others refused or failed by a kill")
    if next_s := run.account.next_answers_s(run.killed_at):
        shown = f"until the next answer: {statistics.median(next_s):.2f} s (median), {max(next_s):.2f} s (worst)"
        table.add_row("kills", str(len(next_s)), shown)
    return table


def _processes_table(run: Run) -> Table:
    table = Table("process", *(f"{what} {when}" for what in ("MB", "descriptors") for when in ("before", "after")))
    for role in run.before | run.after:
        sizes = [sizes.get(role) for sizes in (run.before, run.after)]
        megabytes = [f"{size.resident_mb:.0f}" if size else "-" for size in sizes]
        table.add_row(role, *megabytes, *(str(size.descriptors) if size else "-" for size in sizes))
    return table


# ------------------------------------------------------------------------------------------------------------- the run


async def soak(
    server: RunningServer, processes: Processes, faults: Soak, run: Run, options: argparse.Namespace
) -> None:
    """Calm, load, calm; measured in the same state before and after."""
    run.before = await _sizes_after_calm(faults, server, processes)
    async with server.async_client(timeout=None) as sdk:
        await faults.load(sdk, options.seconds, options.kill_every_s)
    if server.process.poll() is None:
        await settle(processes)
        run.after = await _sizes_after_calm(faults, server, processes)
        until = time.monotonic() + FORGOTTEN_S
        while more_descriptors(run, "api") > MAX_MORE_DESCRIPTORS and time.monotonic() < until:
            await asyncio.sleep(QUIET_S)
            run.after = sizes_of(processes)


async def _sizes_after_calm(faults: Soak, server: RunningServer, processes: Processes) -> Sizes:
    async with server.async_client(timeout=None) as sdk:
        await faults.calm(sdk)
    await asyncio.sleep(QUIET_S)
    return sizes_of(processes)


def main() -> int:
    """The exit status: 0 where all is well."""
    options = _options()
    run = Run(Console(width=None if sys.stdout.isatty() else WIDTH))
    run.console.print(f"{options.seconds:g} s, --seed {options.seed}; the server's log will be in {LOG}")
    with run_origin() as origin, run_counted(*FLAGS) as (server, processes):
        faults = Soak(server, processes, origin, run, options.seed)
        asyncio.run(soak(server, processes, faults, run, options))
        check(run, server, processes)
        shutil.copy(server.log, LOG)
    print_report(run)
    return 1 if run.problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults.soak", description="A server under load and faults.")
    parser.add_argument("--seconds", type=float, default=600, help="of load")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the requests and faults")
    parser.add_argument(
        "--kill-every-s", type=float, nargs=2, default=KILL_EVERY_S, metavar=("MIN", "MAX"), help="kill a worker"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
