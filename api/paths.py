"""Paths as the routes write them: a slash at the end means nothing.

A redirect, which is what the framework would do, loses the body of a POST with many clients.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class PlainPath:
    """ASGI middleware. Stands before whatever decides by the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self._app(scope, receive, send)
