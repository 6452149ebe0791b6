"""What web pages of other origins may do, where the operator names some: ask with any header, and read the headers that
clients heed. A preflight is answered before any key is asked for, as browsers send none with it.
"""

from __future__ import annotations

from typing import Any

from api.limits import LIMITED

METHODS = ("GET", "HEAD", "POST")
READABLE = (
    *("x-request-id", "openai-processing-ms", "retry-after", "x-should-retry"),
    *(f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in LIMITED),
)
PREFLIGHT_AGE_S = 600


def cors_options(origins: tuple[str, ...]) -> dict[str, Any]:
    """Of Starlette's `CORSMiddleware`. Any header: the SDKs send `authorization` and a dozen `x-stainless-*`, more with
    each version. No credentials: keys travel in a header, and cookies mean nothing here."""
    return {
        "allow_origins": origins,
        "allow_methods": METHODS,
        "allow_headers": ("*",),
        "expose_headers": READABLE,
        "max_age": PREFLIGHT_AGE_S,
    }
