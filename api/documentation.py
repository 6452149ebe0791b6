"""`/openapi.json`, and `/docs`, which shows it: Swagger UI from files of ours, so that it works without a network.

Everybody may read these: they tell of the server, and of the model nothing that a key guards.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from api.openapi.document import render
from config import Settings

DOCUMENTATION = frozenset({"/openapi.json", "/docs"})
STATIC = Path(__file__).parent / "static"
PAGE_HEADERS = {
    # Nothing from elsewhere, no inline scripts. Swagger UI's icons are data: images in its style sheet.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked again each time, and mostly answered with 304
}


class Documentation:
    """The handlers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files = StaticFiles(directory=STATIC)

    def router(self, methods: list[str]) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/openapi.json", self.openapi, methods=methods)
        router.add_api_route("/docs", self.page, methods=methods)
        router.add_api_route("/docs/{name:path}", self.file, methods=methods)
        return router

    def openapi(self) -> Response:
        """In a thread, as it is no coroutine: the first one takes a tenth of a second."""
        return Response(self._document, media_type="application/json", headers={"cache-control": "no-cache"})

    @cached_property
    def _document(self) -> bytes:
        return render(self._settings)

    async def page(self, request: Request) -> Response:
        return await self.file("docs.html", request)

    async def file(self, name: str, request: Request) -> Response:
        """Starlette's: nothing outside of the directory, 404 for what is not there, 304 for what the client has."""
        response = await self._files.get_response(name, request.scope)
        response.headers.update(PAGE_HEADERS)
        return response
