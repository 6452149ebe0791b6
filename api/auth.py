"""Bearer keys. Asked before the body is read, on the path that is routed and not on a URL rebuilt from headers."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable, Set

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from errors import InvalidApiKey


class KeyCheck:
    """ASGI middleware: lets open paths and preflights pass, and all else with a key. Without keys, everything."""

    def __init__(self, app: ASGIApp, keys: Iterable[SecretStr], open_paths: Set[str]) -> None:
        self._app = app
        self._open_paths = open_paths
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_pass(scope):
            raise InvalidApiKey(
                "No valid API key was provided. Send it in an Authorization header: `Authorization: Bearer YOUR_KEY`."
            )
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if not self._digests or scope["method"] == "OPTIONS" or self._is_open(scope["path"]):
            return True
        key = _key(scope)
        return key is not None and self._is_known(key)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith("/docs/")

    def _is_known(self, key: bytes) -> bool:
        """Compare with every key, in a time that tells nothing of them."""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def owner_of(scope: Scope, keys: Collection[SecretStr]) -> str:
    """Whose request it is that passed: a name for its key, the same for all where there are no keys."""
    return _digest(_key(scope) or b"").hex() if keys else ""


def _key(scope: Scope) -> bytes | None:
    """The bearer key of a request, as the bytes that came."""
    scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
