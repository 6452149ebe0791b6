"""AudioChatAPI: LitServe's hooks with their own meaning, for an engine instead of one call.

    decode_request   a job to a prepared request: fetch, decode, cut, prompts. Runs beside the engine, many at a time
    batch            new requests join, those whose time is over leave, and one is prefilled
    predict          one decode step for all rows
    encode_response  a step's events to one message for each API process

The main process and the API processes import this file, too: torch comes in with `setup`, in the worker.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litserve as ls

from audio.spool import Spool
from config import Settings
from wire import Capabilities, Job, JobEvent, JobId

if TYPE_CHECKING:
    from engine.tokens import Told
    from worker.prepare import Preparer
    from worker.serving import AnyEngine, Request


log = logging.getLogger("eardrum.worker")


class AudioChatAPI(ls.LitAPI):
    """One in each worker process; before `setup` it is only settings, and travels to the worker."""

    engine: AnyEngine
    capabilities: Capabilities
    preparer: Preparer

    def __init__(self, settings: Settings, spool: Spool, **lit_api: Any) -> None:
        super().__init__(**lit_api)
        self._settings = settings
        self._spool = spool

    def setup(self, device: str) -> None:
        """Load the model onto `device` and start the decode processes."""
        from worker.prepare import Preparer  # noqa: PLC0415
        from worker.serving import load  # noqa: PLC0415

        try:
            served = load(self._settings, device)
        except (OSError, ValueError) as error:  # the operator's to mend: a sentence rather than a traceback
            log.error("%s", error)
            sys.exit(1)
        self.engine, self.capabilities = served.engine, served.capabilities
        self.preparer = Preparer(self._settings, self._spool)
        self.preparer.start(self.engine.requests, self.capabilities)

    def teardown(self) -> None:
        """End the decode processes and threads."""
        self.preparer.close()

    @property
    def run_directory(self) -> Path:
        """The private directory of this server run."""
        return self._spool.directory

    async def decode_request(self, request: Job) -> Request | Told:
        return await self.preparer.prepare(request)

    @property
    def preparing_s(self) -> float:
        """How long the longest preparation has been computing."""
        return self.preparer.oldest_s

    def forget(self, job_id: JobId) -> None:
        """The job has ended. Called in the event loop of `decode_request`."""
        self.preparer.forget(job_id)

    def batch(self, inputs: Sequence[Request]) -> Sequence[JobEvent]:
        for request in inputs:
            self.engine.submit(request)
        return [*self.engine.expire(time.monotonic()), *self.engine.admit()]

    def predict(self, x: object = None, **_: object) -> Iterator[JobEvent]:
        yield from self.engine.decode()

    def encode_response(self, output: Iterable[JobEvent], **_: object) -> Iterator[tuple[int, list[JobEvent]]]:
        """The events grouped by the API process that waits for them."""
        messages: dict[int, list[JobEvent]] = {}
        for event in output:
            messages.setdefault(event.job_id.api_server, []).append(event)
        yield from messages.items()
