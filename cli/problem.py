"""What went wrong, as a sentence for people."""

from __future__ import annotations

import os
import sys

from openai import APIConnectionError, APIError, APITimeoutError, AuthenticationError


class Problem(Exception):
    """Ends the command with this sentence and this exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


def warn(sentence: str) -> None:
    print(f"client.py: {sentence}", file=sys.stderr)


def told(error: APIError | OSError, url: str) -> str:
    """What an exception of the API at `url`, or of a file, means."""
    match error:
        case OSError():
            return f"{os.fspath(error.filename or 'it')} cannot be read: {error.strerror}."
        case APITimeoutError():
            return f"The server at {url} takes too long to answer."
        case APIConnectionError():
            return f"No server answers at {url}. Start one with `make serve`, or name another with --url."
        case AuthenticationError():
            return f"The server refused the key: {said(error)} Give one with --api-key, or in OPENAI_API_KEY."
    return f"The server refused: {said(error)}"


def said(error: APIError) -> str:
    """The API's own message."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return str(message or error)
