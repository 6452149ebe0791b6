"""The server that is asked: its address, its clients of the SDK, its model, and how answers come from it."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from openai import AsyncOpenAI, OpenAI

from cli.problem import Problem

Json = dict[str, Any]


def base_url(text: str) -> str:
    """The API's address, also where only the host is given."""
    url = text if "://" in text else f"http://{text}"
    return f"{url.rstrip('/')}/v1" if urlsplit(url).path in ("", "/") else url


def connect(options: argparse.Namespace, **more: Any) -> OpenAI:
    return OpenAI(base_url=options.url, api_key=options.api_key, **more)


def connect_async(options: argparse.Namespace) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=options.url, api_key=options.api_key)


def model_name(client: OpenAI, options: argparse.Namespace) -> str:
    """The one that was named, or the first that the server tells."""
    if options.model:
        return str(options.model)
    models = client.models.list().data
    if not models:
        raise Problem(f"The server at {options.url} serves no model.")
    return models[0].id


def audio_part(audio: str) -> Json:
    """The content part for a URL, or for a file with its bytes."""
    if audio.startswith(("http://", "https://")):
        return {"type": "audio_url", "audio_url": {"url": audio}}
    path = Path(audio).expanduser()
    return recorded_part(path.read_bytes(), path.suffix[1:] or "wav")


def recorded_part(data: bytes, format: str = "wav") -> Json:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": format}}


def print_answer(client: OpenAI, request: Json) -> str:
    """Asks, prints the answer as it comes, and returns it."""
    answer = ""
    with client.chat.completions.create(**request, stream=True) as stream:
        try:
            for chunk in stream:
                piece = chunk.choices[0].delta.content or "" if chunk.choices else ""
                print(piece, end="", flush=True)
                answer += piece
        finally:
            print(flush=True)
    return answer
