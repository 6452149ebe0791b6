"""`/openapi.json`.

Everybody may read it: it tells of the server, and of the model nothing that a key guards.
"""

from __future__ import annotations

from functools import cached_property

from fastapi import APIRouter
from starlette.responses import Response

from api.openapi.document import render
from config import Settings


class Documentation:
    """The handlers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def router(self, methods: list[str]) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/openapi.json", self.openapi, methods=methods)
        return router

    def openapi(self) -> Response:
        """In a thread, as it is no coroutine: the first one takes a tenth of a second."""
        return Response(self._document, media_type="application/json", headers={"cache-control": "no-cache"})

    @cached_property
    def _document(self) -> bytes:
        return render(self._settings)
