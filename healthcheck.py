"""Exit status 0 if this machine's server is ready: the image's HEALTHCHECK. Asks directly, whatever proxy is set."""

from __future__ import annotations

import http.client
import os
import sys

PORT = int(os.environ.get("EARDRUM_PORT", "8000"))
TIMEOUT_S = 4.0


def is_ready(host: str, port: int) -> bool:
    """Whether a server answers there and has a worker that does."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if is_ready("127.0.0.1", PORT) else 1)
