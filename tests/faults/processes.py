"""A server's processes, by what they are."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from tests.faults.counting import Asked
from tests.support.servers import RunningServer, run_server
from tests.support.waiting import until

WORKERS_S = 40.0  # after several deaths they are started anew only after some seconds


class Processes:
    """Of one server."""

    def __init__(self, server: RunningServer, spool: Path) -> None:
        self.main = psutil.Process(server.process.pid)
        self._spool = spool

    def spawned(self) -> list[psutil.Process]:
        """The workers, also those that still load; the oldest first."""
        return [child for child in self._children() if any("spawn_main" in part for part in _command(child))]

    def workers(self) -> list[psutil.Process]:
        """Those that have loaded their model: each has a control socket."""
        sockets = {int(path.name.partition("-")[0]) for path in self._spool.glob("*/*-control.sock")}
        return [worker for worker in self.spawned() if worker.pid in sockets]

    def forked(self) -> list[psutil.Process]:
        """The manager, then the API processes."""
        return [child for child in self._children() if _command(child) == _command(self.main)]

    def _children(self) -> list[psutil.Process]:
        return sorted(self.main.children(), key=psutil.Process.create_time)

    @property
    def manager(self) -> psutil.Process:
        return self.forked()[0]

    @property
    def api(self) -> psutil.Process:
        return self.forked()[1]

    async def workers_ready(self, count: int, but: psutil.Process | None = None) -> list[psutil.Process]:
        """Waits until so many workers are there, not counting `but`."""

        def there() -> list[psutil.Process]:
            return [worker for worker in self.workers() if worker != but]

        await until(lambda: len(there()) == count, WORKERS_S)
        return there()

    @property
    def spool_is_gone(self) -> bool:
        return not any(self._spool.iterdir())

    def left_over(self) -> list[str]:
        """The names of files that belong to no worker that lives."""
        sockets = {f"{worker.pid}-control.sock" for worker in self.spawned()}
        return sorted({path.name for path in self._spool.glob("*/*")} - {"lock"} - sockets)

    def spooled(self) -> list[str]:
        """The files of audio that are there now."""
        return [path.name for path in self._spool.glob("*/*.audio")]

    async def accepted(self, asked: Sequence[Asked]) -> None:
        """Waits until each of these requests, which have a clip of their own, is inside: the only API process has put
        it into the spool, where it stays until the request's end."""
        mine = f"{self.api.pid}-"

        def inside() -> int:
            ended = sum(each.task.done() for each in asked)
            return ended + sum(name.startswith(mine) for name in self.spooled())

        await until(lambda: inside() >= len(asked))


def _command(process: psutil.Process) -> list[str]:
    """Nothing where it is gone."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def run_counted(*flags: str, **options: object) -> Iterator[tuple[RunningServer, Processes]]:
    """A server with the fake model, unless another is named, and its processes."""
    model = () if "--model" in flags else ("--model", "fake")
    with (
        tempfile.TemporaryDirectory() as spool,
        run_server(*model, "--spool-dir", spool, *flags, **options) as server,
    ):
        yield server, Processes(server, Path(spool))


async def status(server: RunningServer, path: str) -> int | None:
    """Of the answer to a GET; `None` where nobody listens."""
    try:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=10) as http:
            return (await http.get(path)).status_code
    except httpx.ConnectError:
        return None


async def becomes_ready(server: RunningServer, ready: bool, within_s: float = 10.0) -> None:
    """Waits until `/ready` says so."""
    async with asyncio.timeout(within_s):
        while await status(server, "/ready") != (200 if ready else 503):  # noqa: ASYNC110 -- nobody tells
            await asyncio.sleep(0.02)


def last_line(server: RunningServer) -> str:
    """Of all that the server said."""
    return server.log.read_text().rstrip().splitlines()[-1]
