"""The seam `submit` bound in one process: routes, pending table and worker body without LitServe, queues or sockets."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI

from api import routes
from api.pending import Bounds, PendingTable
from audio.spool import Spool, open_spool
from config import Settings
from wire import Event, Heartbeat, Job, JobId, Ready
from worker.body import WorkerBody
from worker.lit_api import AudioChatAPI

WORKER_PID = 1


class InProcess:
    """Is the link to its worker body, and the body's source and sink."""

    api_server = 0

    def __init__(self, settings: Settings, spool: Spool, **bounds: int) -> None:
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.cancelled: list[JobId] = []
        self.spool = spool
        self.loop = asyncio.get_running_loop()
        limits = Bounds(bounds.get("requests", 256), bounds.get("audio_bytes", 1 << 30))
        self.pending = PendingTable(self, limits, settings.request_timeout_s, heartbeat_max_age_s=3600)
        self.api = AudioChatAPI(settings, spool)
        self.api.setup("cpu")
        self.body = WorkerBody(self.api, self, self.put, settings.max_rows + settings.prepare_ahead)
        self.app = FastAPI(openapi_url=None)
        routes.mount(self.app, settings, self.pending, spool)
        self.thread = threading.Thread(target=self.body.run, daemon=True)

    def start(self) -> None:
        self.pending.deliver([Ready(WORKER_PID, "", self.api.capabilities), Heartbeat(WORKER_PID)])
        self.thread.start()

    def stop(self) -> None:
        if self.thread.ident is None:
            self.thread.start()
        self.jobs.put(None)
        self.body.stop()
        self.thread.join(10)
        self.api.teardown()

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", timeout=30)

    # the link
    async def send(self, job: Job) -> None:
        self.jobs.put(job)

    def cancel(self, job_id: JobId) -> None:
        self.cancelled.append(job_id)
        self.body.cancel(job_id)

    def watch(self, ready: Ready) -> None:
        pass

    # the body's source and sink
    def get(self) -> Job | None:
        return self.jobs.get()

    def put(self, api_server: int, events: Iterable[Event]) -> None:
        self.loop.call_soon_threadsafe(self.pending.deliver, list(events))


@asynccontextmanager
async def run_in_process(running: bool = True, **options: object) -> AsyncIterator[InProcess]:
    """`running=False` leaves jobs in the queue. Settings and bounds by name."""
    bounds = {name: options.pop(name) for name in ("requests", "audio_bytes") if name in options}
    settings = Settings(_env_file=None, model="fake", **options)
    with open_spool(None, 0) as spool:
        server = InProcess(settings, spool, **bounds)
        if running:
            server.start()
        else:
            server.pending.deliver([Ready(WORKER_PID, "", server.api.capabilities)])
        try:
            yield server
        finally:
            server.stop()
