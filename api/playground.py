"""The playground: the page at `/` and what it loads from `/web/`, read once at the start and served from memory.

A fixed table of paths, so no path of a client's ever meets the file system. The files hold no secrets and need no key;
the page asks the API with the key that its user types. It may load nothing from elsewhere, and run no script but these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

WEB = Path(__file__).resolve().parents[1] / "web"
INDEX = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        *("script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
        "media-src blob:",  # clips, which are played from the page's memory
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Handler = Callable[[Request], Coroutine[None, None, Response]]


@dataclass(frozen=True)
class Page:
    """One file, as it is served. A browser keeps it, and asks each time whether it is still the same."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, if_none_match: str) -> Response:
        headers = {**HEADERS, "cache-control": "no-cache", "etag": self.etag}
        known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        if known & {self.etag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def read_pages(directory: Path = WEB) -> dict[str, Page]:
    """Every file of `directory`, by its path: the index is `/`, the others are below `/web/`."""
    files = sorted(path for path in directory.iterdir() if path.suffix in TYPES)
    return {"/" if path.name == INDEX else f"/web/{path.name}": _read(path) for path in files}


def _read(path: Path) -> Page:
    content = path.read_bytes()
    return Page(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def router_of(pages: Mapping[str, Page]) -> APIRouter:
    router = APIRouter()
    for path, page in pages.items():
        router.add_api_route(path, _handler(page), methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _handler(page: Page) -> Handler:
    async def serve(request: Request) -> Response:
        return page.answer(request.headers.get("if-none-match", ""))

    return serve
