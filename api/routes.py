"""The endpoints, plain FastAPI over `submit`. Neither LitServe nor any queue shows here.

Those that ask the model stand in files of their own, behind `reception.py`; probes and models are here.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from api.answers import Json
from api.auth import KeyCheck
from api.boundary import PROBES, RequestBoundary
from api.browsers import cors_options
from api.chat_completions import ChatCompletions
from api.completions import Completions
from api.documentation import DOCUMENTATION, Documentation
from api.endpoint import ModelEndpoint
from api.paths import PlainPath
from api.pending import PendingTable
from api.playground import read_pages, router_of
from api.reception import Reception
from api.responses import Responses
from api.tokenization import DetokenizeEndpoint, TokenizeEndpoint
from api.transcriptions import Transcriptions, Translations
from audio.spool import Spool
from config import VERSION, Settings
from errors import ModelNotFound, for_status
from wire import Capabilities

READ = ["GET", "HEAD"]  # of a HEAD, uvicorn sends the head alone

ENDPOINTS: dict[str, type[ModelEndpoint]] = {
    "/v1/chat/completions": ChatCompletions,
    "/v1/completions": Completions,
    "/v1/responses": Responses,
    "/v1/audio/transcriptions": Transcriptions,
    "/v1/audio/translations": Translations,
    "/tokenize": TokenizeEndpoint,
    "/detokenize": DetokenizeEndpoint,
}


def mount(app: FastAPI, settings: Settings, pending: PendingTable, spool: Spool) -> Api:
    """Put endpoints, error answers and middlewares on `app`."""
    api = Api(settings, pending, spool)
    pages = read_pages() if settings.playground else {}
    app.include_router(api.router())
    app.include_router(Documentation(settings).router(READ))
    app.include_router(router_of(pages))
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_middleware(KeyCheck, keys=settings.keys, open_paths=PROBES | DOCUMENTATION | pages.keys())
    app.add_middleware(PlainPath)
    app.add_middleware(RequestBoundary)
    if settings.cors_origins:  # around the boundary: a page may read errors, too
        app.add_middleware(CORSMiddleware, **cors_options(settings.cors_origins))
    return api


async def _framework_error(_: Request, error: Exception) -> Response:
    """What the framework itself refuses, such as an unknown route."""
    assert isinstance(error, HTTPException)
    translated = for_status(error.status_code, f"{error.detail}. See /docs for the endpoints.")
    return JSONResponse(translated.body(), translated.status, error.headers)


class Api:
    """The handlers, and what they share."""

    def __init__(self, settings: Settings, pending: PendingTable, spool: Spool) -> None:
        self._settings = settings
        self._pending = pending
        self.reception = Reception(settings, pending, spool)
        self._started = int(time.time())

    def router(self) -> APIRouter:
        router = APIRouter()
        for path, endpoint in ENDPOINTS.items():
            serves = endpoint(self._settings, self._pending, self.reception, self._check_model)
            router.add_api_route(path, serves.__call__, methods=["POST"])
        router.add_api_route("/v1/models", self.list_models, methods=READ)
        router.add_api_route("/v1/models/{name:path}", self.get_model, methods=READ)
        router.add_api_route("/version", self.version, methods=READ)
        router.add_api_route("/live", self.live, methods=READ)
        router.add_api_route("/ready", self.ready, methods=READ)
        router.add_api_route("/health", self.ready, methods=READ)
        return router

    # ------------------------------------------------------------------------------------------------- probes, models

    async def live(self) -> Json:
        """This process answers."""
        return {"status": "ok"}

    async def ready(self) -> JSONResponse:
        """A worker answers, too, and new requests are taken."""
        ready = self._pending.is_ready and self.reception.is_open
        return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)

    async def version(self) -> Json:
        return {"version": VERSION}

    async def list_models(self) -> Json:
        return {"object": "list", "data": [self._card(name) for name in self._settings.public_names]}

    async def get_model(self, name: str) -> Json:
        self._check_model(name)
        return self._card(name)

    def _card(self, name: str) -> Json:
        """OpenAI's model object under one of its names, and beside it what audio the model takes and
        how it writes calls and thoughts."""
        card: Json = {"id": name, "object": "model", "created": self._started, "owned_by": "eardrum"}
        if capabilities := self._pending.capabilities:
            card["audio"] = _audio_card(capabilities, self._settings)
            card["tool_call_parser"], card["reasoning_parser"] = capabilities.tools, capabilities.reasoning
        return card

    def _check_model(self, name: str) -> None:
        served = self._settings.public_names
        if name not in served:
            names = ", ".join(f"`{name}`" for name in served)
            raise ModelNotFound(f"This model does not exist here. The one that is served is {names}.", "model")


def _audio_card(model: Capabilities, settings: Settings) -> Json:
    """What audio is taken: the model's own limits within the operator's. A clip that is longer than
    `max_seconds_per_clip` is refused; where that is more than the model hears at once, `long_audio` says what becomes
    of the rest."""
    long_audio = settings.long_audio or model.long_audio
    refused_from = [settings.max_audio_seconds]
    if long_audio == "error" and model.max_seconds_per_window is not None:
        refused_from.append(model.max_seconds_per_window)
    return {
        "sampling_rate": model.sampling_rate,
        "max_seconds_per_window": model.max_seconds_per_window,
        "max_seconds_per_clip": min(refused_from),
        "max_clips": settings.max_clips if model.max_clips is None else min(settings.max_clips, model.max_clips),
        "formats": model.formats,
        "long_audio": long_audio,
        "batching": model.batching,
        "why": model.why,
    }
