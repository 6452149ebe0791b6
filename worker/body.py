"""The worker's body: takes jobs from a source, puts events into a sink, and knows no transport.

    intake thread    source ── a job, when there is room
    event loop       decode_request of many jobs side by side: nobody waits for somebody else's audio
    engine thread    `run`: cancelled rows leave, new requests join, one step, events out

LitServe's queues are one transport (loop.py); tests bind the body in process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from errors import BadRequest, EardrumError, InternalError
from wire import Failed, Finished, Job, JobEvent, JobId
from worker.lit_api import AudioChatAPI

if TYPE_CHECKING:
    from worker.serving import Request

T = TypeVar("T")

log = logging.getLogger("eardrum.worker")


# So many failures one after another are not the requests' fault: a broken device answers everything with an error. A
# step that fails counts for more than a prompt that does.
MAX_FAILURES = 30
MAX_FAILED_STEPS = 3
MAX_EARLY = 4096  # cancellations to remember: every worker hears of every one


class JobSource(Protocol):
    def get(self, num_held: Callable[[], int]) -> Job | None:
        """The next job, once its API process has been told that it is taken; waits for it. `num_held()`: how many the
        worker has now. `None` ends the intake."""

    def wake(self) -> None:
        """Look again, as the worker is empty now: there may be a job that is to be alone. Any thread may call."""


Sink = Callable[[int, list[JobEvent]], None]  # API process, events


class _LiveJob:
    """One job that this worker has taken: how far it is, and how many of its choices are still open."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.open_choices = job.sampling.n
        self.preparing: asyncio.Task[None] | None = None
        self.cancelled = False
        self.in_engine = False
        self.ended = threading.Event()


class WorkerBody:
    """Runs jobs on an engine, and holds `max_jobs` at most: those that run, and more that are prepared meanwhile."""

    def __init__(self, api: AudioChatAPI, source: JobSource, sink: Sink, max_jobs: int) -> None:
        self._api = api
        self._source = source
        self._sink = sink
        self._room = threading.BoundedSemaphore(max_jobs)
        self._live: dict[JobId, _LiveJob] = {}
        self._early: dict[JobId, None] = {}  # cancellations that came before their jobs, if those come here at all
        self._inbox: queue.SimpleQueue[Request | JobId | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._failures = 0  # one after another
        self._step_since: float | None = None  # time.monotonic()

    def run(self) -> None:
        """The engine's thread: returns after `stop`."""
        threading.Thread(target=self._run_loop, name="prepare", daemon=True).start()
        threading.Thread(target=self._intake, name="intake", daemon=True).start()
        while (arrivals := self._collect()) is not None:
            self._step(arrivals)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def cancel(self, job_id: JobId) -> None:
        """Drop a job, wherever it is. Any thread may call."""
        self._call(self._cancel, job_id)

    def stop(self) -> None:
        """Let `run` return after the current step."""
        self._inbox.put(None)

    @property
    def step_s(self) -> float:
        """The seconds since the present step began, or a preparation that is longer; 0 where nothing runs."""
        since = self._step_since
        step_s = 0.0 if since is None else time.monotonic() - since
        return max(step_s, self._api.preparing_s)

    # ------------------------------------------------------------- intake and preparation: intake thread, event loop

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        """Call a function in the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker is going
            self._loop.call_soon_threadsafe(function, argument)

    def _intake(self) -> None:
        while True:
            self._room.acquire()
            job = self._source.get(lambda: len(self._live))
            if job is None:
                return
            live = self._live[job.id] = _LiveJob(job)
            self._call(self._start, live)
            if job.alone:
                live.ended.wait()

    def _start(self, live: _LiveJob) -> None:
        if live.job.id in self._early:
            self._cancel(live.job.id)
        if not live.cancelled:
            live.preparing = self._loop.create_task(self._prepare(live))

    async def _prepare(self, live: _LiveJob) -> None:
        job = live.job
        try:
            request = await self._api.decode_request(job)
        except asyncio.CancelledError:
            raise
        except EardrumError as error:
            self._fail(job.id, error)
        except Exception:
            log.exception("preparing %s failed", job.id)
            self._fail(job.id, InternalError("The server failed to prepare this request."))
        else:
            if live.cancelled:
                return
            if isinstance(request, Sequence):
                self._deliver(request)
            else:
                self._inbox.put(request)

    def _cancel(self, job_id: JobId) -> None:
        live = self._live.get(job_id)
        if live is None:
            self._early[job_id] = None
            if len(self._early) > MAX_EARLY:
                del self._early[next(iter(self._early))]
            return
        live.cancelled = True
        if live.preparing is not None:
            live.preparing.cancel()
        self._inbox.put(job_id)

    def _fail(self, job_id: JobId, error: EardrumError) -> None:
        if not isinstance(error, BadRequest):
            log.warning("%s failed: %s", job_id, error)
        self._sink(job_id.api_server, [Failed(job_id, *error.fields())])
        self._forget(job_id)

    def _forget(self, job_id: JobId) -> None:
        if live := self._live.pop(job_id, None):
            live.ended.set()
            self._room.release()
            if not self._live:
                self._source.wake()
            self._call(self._api.forget, job_id)

    # ------------------------------------------------------------------------------------------- the engine's thread

    def _collect(self) -> list[Request] | None:
        """What came in since the last step, cancellations applied; `None` to stop. Waits only where nothing runs."""
        arrivals: dict[JobId, Request] = {}
        wait = self._api.engine.idle
        while True:
            self._step_since = None if wait else time.monotonic()
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return list(arrivals.values())
            if item is None:
                return None
            if isinstance(item, JobId):
                arrivals.pop(item, None)
                self._api.engine.cancel(item)
                self._forget(item)
            else:
                arrivals[item.id] = item
            wait = False

    def _step(self, arrivals: list[Request]) -> None:
        """One step. Where it raises, every job in the engine fails, and the worker goes on with fresh slots; where that
        does not help, it ends."""
        events: list[JobEvent] = []
        try:
            self._mark(arrivals)
            events += self._api.batch(arrivals)
            events += self._api.predict()
            self._count_failures(events)
        except Exception:
            log.exception("a step failed")
            self._failures += MAX_FAILURES // MAX_FAILED_STEPS
            self._deliver(events)
            events = self._fail_engine()
        self._deliver(events)
        if self._failures >= MAX_FAILURES:
            raise RuntimeError("the model fails again and again")

    def _count_failures(self, events: Iterable[JobEvent]) -> None:
        """Any progress makes up for all failures before it. What a client got wrong or waited too long for is none."""
        for event in events:
            if isinstance(event, Failed):
                self._failures += event.kind == InternalError.__name__
            else:
                self._failures = 0

    def _mark(self, arrivals: Iterable[Request]) -> None:
        for request in arrivals:
            self._live[request.id].in_engine = True

    def _fail_engine(self) -> list[JobEvent]:
        self._api.engine.reset()
        error = InternalError("The model failed while it answered.")
        lost = [live.job.id for live in list(self._live.values()) if live.in_engine]
        return [Failed(job_id, *error.fields()) for job_id in lost]

    def _deliver(self, events: Sequence[JobEvent]) -> None:
        """Tell the API processes, and let go of what has ended."""
        for api_server, message in self._api.encode_response(events):
            self._sink(api_server, message)
        for event in events:
            if isinstance(event, Failed):
                self._forget(event.job_id)
            elif isinstance(event, Finished):
                self._close_choice(self._live[event.job_id])

    def _close_choice(self, live: _LiveJob) -> None:
        live.open_choices -= 1
        if not live.open_choices:
            self._forget(live.job.id)
