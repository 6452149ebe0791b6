"""The seam `submit` bound in one process: routes, pending table and worker body without LitServe, queues or sockets."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import httpx
import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI

from api import routes
from api.link import Limits
from api.pending import PendingTable
from audio.spool import Spool, open_spool
from config import Settings
from jobqueue import JobQueue
from tests.support.speech import user
from tests.support.waiting import until
from tests.support.watching import watched
from wire import Event, Heartbeat, Job, JobId, Ready
from worker.body import WorkerBody
from worker.lit_api import AudioChatAPI


class InProcess:
    """Is the link to its worker body, and the body's source and sink."""

    api_server = 0

    def __init__(self, settings: Settings, spool: Spool) -> None:
        self.queue = JobQueue([self], lambda events: events)
        self.woken = threading.Event()
        self.ended = False
        self.cancelled: list[JobId] = []
        self.withdrawn: list[JobId] = []
        self.spool = spool
        self.loop = asyncio.get_running_loop()
        self.killed: list[int] = []
        self.pending = PendingTable(self, Limits(settings.queue_requests, 3600, settings.step_timeout))
        self.api = AudioChatAPI(settings, spool)
        self.api.setup("cpu")
        self.body = WorkerBody(self.api, self, self.deliver_soon, settings.max_rows + settings.prepare_ahead)
        self.app = FastAPI(openapi_url=None)
        self.routes = routes.mount(self.app, settings, self.pending, spool)
        self.failure: Exception | None = None  # what ended the worker, where it was not told to end
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.body.run()
        except Exception as error:
            self.failure = error

    def start(self) -> None:
        self.deliver([Ready(os.getpid(), "", self.api.capabilities), Heartbeat(os.getpid())])
        self.thread.start()

    def deliver(self, events: Iterable[Event]) -> None:
        for event in events:
            self.pending.deliver(event)

    def stop(self) -> None:
        if self.thread.ident is None:
            self.thread.start()
        self.ended = True
        self.woken.set()
        self.body.stop()
        self.thread.join(10)
        self.api.teardown()

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=watched(httpx.ASGITransport(self.app)), base_url="http://test", timeout=30)

    async def settled(self) -> None:
        """Waits until the table, the worker and its engine hold no job."""
        await until(lambda: not self.pending._entries and not self.body._live and self.api.engine.idle)

    # the link
    async def send(self, job: Job, first: bool = False) -> None:
        self.queue.put(job, first)
        self.woken.set()

    def withdraw(self, job_id: JobId) -> None:
        self.withdrawn.append(job_id)
        self.queue.discard(job_id)

    def cancel(self, job_id: JobId) -> None:
        self.cancelled.append(job_id)
        self.body.cancel(job_id)

    def watch(self, ready: Ready) -> None:
        pass

    def kill(self, pid: int) -> None:
        self.killed.append(pid)

    # the queue's outbox
    def put(self, message: list[Event]) -> None:
        self.deliver_soon(0, message)

    # the body's source and sink
    def get(self, num_held: Callable[[], int]) -> Job | None:
        while not self.ended:
            self.woken.clear()
            if job := self.queue.take(os.getpid(), not num_held()):
                return job
            self.woken.wait()
        return None

    def wake(self) -> None:
        self.woken.set()

    def deliver_soon(self, api_server: int, events: Iterable[Event]) -> None:
        self.loop.call_soon_threadsafe(self.deliver, list(events))


def request(text: str, **fields: object) -> dict:
    """The body of a question to the fake model."""
    return {"model": "fake", "messages": user(text), **fields}


@asynccontextmanager
async def run_in_process(running: bool = True, **options: object) -> AsyncIterator[InProcess]:
    """`running=False` leaves jobs in the queue. Settings by name; the fake model is served unless another is named."""
    settings = Settings(_env_file=None, **{"model": "fake", **options})
    with open_spool(None, 0) as spool:
        server = InProcess(settings, spool)
        if running:
            server.start()
        else:
            server.deliver([Ready(os.getpid(), "", server.api.capabilities)])
        try:
            yield server
        finally:
            server.stop()


def openai_client(server: InProcess, **options: object) -> AsyncOpenAI:
    """The official client; through HTTP's messages, but without a socket."""
    http = httpx2.AsyncClient(transport=watched(httpx2.ASGITransport(server.app)), base_url="http://test", timeout=30)
    return AsyncOpenAI(base_url="http://test/v1", http_client=http, **{"api_key": "none", "max_retries": 0, **options})
