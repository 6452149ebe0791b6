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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litserve as ls

from audio.spool import Spool
from config import Settings
from wire import Capabilities, Job, JobEvent

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.request import Request
    from models.base import CausalModel
    from worker.prepare import Preparer


log = logging.getLogger("eardrum.worker")


class AudioChatAPI(ls.LitAPI):
    """One in each worker process; before `setup` it is only settings, and travels to the worker."""

    model: CausalModel
    engine: Engine
    preparer: Preparer

    def __init__(self, settings: Settings, spool: Spool, **lit_api: Any) -> None:
        super().__init__(**lit_api)
        self._settings = settings
        self._spool = spool

    def setup(self, device: str) -> None:
        """Load the model onto `device` and start the decode processes."""
        from engine.engine import Engine  # noqa: PLC0415
        from engine.rows import EngineOptions  # noqa: PLC0415
        from models import registry  # noqa: PLC0415
        from worker.prepare import Preparer  # noqa: PLC0415

        try:
            self.model = registry.create(self._settings.model)
            self.preparer = Preparer(self._settings, self._spool, self.model)
            self.model.setup(device, self._settings.dtype)
        except (OSError, ValueError) as error:  # the operator's to mend: a sentence rather than a traceback
            log.error("%s", error)
            sys.exit(1)
        settings = self._settings
        options = EngineOptions(
            max_rows=settings.max_rows,
            prefill_tokens=settings.prefill_tokens,
            kv_tokens=settings.kv_tokens,
            encoder_cache_mb=settings.encoder_cache_mb,
            prefix_cache_mb=settings.prefix_cache_mb,
            compiled=settings.compile,
            workers_per_device=settings.workers_per_device,
        )
        self.engine = Engine(self.model, options)
        self.preparer.start(self.engine.requests)

    def teardown(self) -> None:
        """End the decode processes and threads."""
        self.preparer.close()

    @property
    def run_directory(self) -> Path:
        """The private directory of this server run."""
        return self._spool.directory

    @property
    def capabilities(self) -> Capabilities:
        """What the model takes; `batching` as it turned out."""
        capabilities = self.model.capabilities
        return replace(capabilities, batching="serial") if self.engine.is_serial else capabilities

    async def decode_request(self, request: Job) -> Request:
        return await self.preparer.prepare(request)

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
