"""The worker processes as the main process sees them: waited for, started anew when they die, and ended."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from restarts import Lives
from worker.loop import ENGINE_FAILED, STOP_SIGNAL

log = logging.getLogger("eardrum.lifecycle")

STOP_S = 1.0  # for the step that is running; nobody waits for its outcome
POLL_S = 0.05
AGAIN_S = 2.0
NEVER = float("inf")


class ServerFailed(Exception):
    """The server could not start, or could not go on; the message says why, and what to do."""


@dataclass
class _Worker:
    """A worker's place: the process that fills it now, and how its predecessors fared."""

    index: int
    process: BaseProcess
    lives: Lives
    restart_at: float | None = None  # time.monotonic(), where it is dead

    def __str__(self) -> str:
        return f"Worker {self.index}"


class Workers:
    """All of a server's. `is_ready(index)`: whether that worker has loaded its model; `launch(index)` starts another in
    its place; `forget(pid)` tidies up behind one that is dead."""

    def __init__(
        self,
        processes: Iterable[BaseProcess],
        max_restarts: int,
        start_timeout_s: float,
        is_ready: Callable[[int], bool],
        launch: Callable[[int], BaseProcess],
        forget: Callable[[int], None],
    ) -> None:
        self._start_timeout_s = start_timeout_s
        self._is_ready, self._launch, self._forget = is_ready, launch, forget
        self._workers = [_Worker(index, process, Lives(max_restarts)) for index, process in enumerate(processes)]
        for worker in self._workers:
            worker.lives.start(time.monotonic())

    @property
    def processes(self) -> list[BaseProcess]:
        return [worker.process for worker in self._workers]

    @property
    def are_lost(self) -> bool:
        """None will ever answer again."""
        return all(worker.restart_at == NEVER for worker in self._workers)

    def wait_ready(self, stopping: Callable[[], bool]) -> None:
        """Until every one has loaded its model, or `stopping()`. Raises `ServerFailed` for one that does not."""
        while any(worker.lives.ready_at is None for worker in self._workers) and not stopping():
            for worker in self._workers:
                if not worker.process.is_alive():
                    ending = how_it_ended(worker.process)
                    raise ServerFailed(f"{worker} {ending} while it loaded the model; what it said stands above.")
                if self._is_late(worker):
                    raise ServerFailed(f"{worker} {self._too_slow}.")
                self._note_ready(worker)
            time.sleep(POLL_S)

    def look_after(self) -> None:
        """Start anew whichever is dead, when its time has come. Raises `ServerFailed` where one never lasts."""
        for worker in self._workers:
            self._look_after(worker, time.monotonic())

    def end(self) -> None:
        """All of them, after their step."""
        for process in self.processes:
            if process.is_alive():
                os.kill(pid_of(process), STOP_SIGNAL)
        for process in self.processes:
            process.join(STOP_S)
            process.kill()

    def _note_ready(self, worker: _Worker) -> None:
        if worker.lives.ready_at is None and self._is_ready(worker.index):
            worker.lives.ready(time.monotonic())

    def _is_late(self, worker: _Worker) -> bool:
        loading = worker.lives.ready_at is None
        return loading and time.monotonic() - worker.lives.started_at > self._start_timeout_s

    @property
    def _too_slow(self) -> str:
        return f"has not loaded the model within {self._start_timeout_s:g} s; see --start-timeout"

    def _look_after(self, worker: _Worker, now: float) -> None:
        if worker.restart_at is not None:
            if now >= worker.restart_at:
                self._restart(worker, now)
        elif not worker.process.is_alive():
            self._bury(worker, now)
        elif self._is_late(worker):
            log.error("%s %s", worker, self._too_slow)
            worker.process.kill()
        else:
            self._note_ready(worker)

    def _restart(self, worker: _Worker, now: float) -> None:
        log.warning("%s is started anew", worker)
        worker.restart_at = now + AGAIN_S  # should it not succeed
        self._forget(pid_of(worker.process))
        worker.lives.start(now)
        worker.process = self._launch(worker.index)
        worker.restart_at = None

    def _bury(self, worker: _Worker, now: float) -> None:
        ending = how_it_ended(worker.process)
        delay_s = worker.lives.die(now)
        if delay_s is None:
            worker.restart_at = NEVER
            times = "once" if worker.lives.short == 1 else f"{worker.lives.short} times in a row"
            raise ServerFailed(
                f"{worker} died {times} without having lasted. The last time it {ending}; what it said stands above."
            )
        worker.restart_at = now + delay_s
        when = f"in {delay_s:g} s" if delay_s else "at once"
        log.error("%s %s; it is started anew %s", worker, ending, when)


def pid_of(process: BaseProcess) -> int:
    assert process.pid is not None, "it has been started"
    return process.pid


def how_it_ended(process: BaseProcess) -> str:
    """In words that go on from its name."""
    status = process.exitcode
    if status is None:
        return "ended"
    if status == -signal.SIGKILL:
        return "was killed (SIGKILL), by hand or for want of memory,"
    if status < 0:
        return f"crashed ({signal.Signals(-status).name})"
    if status == ENGINE_FAILED:
        return "gave up"
    return f"ended with status {status}"
