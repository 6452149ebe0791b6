"""`client.py check`: is the server well? Each line is a step that went well; the first that does not ends it."""

from __future__ import annotations

import argparse
import time

from openai import InternalServerError, NotFoundError, OpenAI

from cli.problem import Problem, said
from cli.record import SAMPLE_BYTES, SAMPLING_RATE, as_wav
from cli.server import connect, model_name, recorded_part

SILENCE = as_wav(bytes(SAMPLING_RATE * SAMPLE_BYTES))  # a second


def check(options: argparse.Namespace) -> int:
    client = connect(options, max_retries=0, timeout=options.timeout)
    show("server", options.url)
    show("live", probe(client, "live"))
    show("ready", probe(client, "ready"))
    show("models", ", ".join(model.id for model in client.models.list().data))
    show("answers", answer(client, model_name(client, options)))
    return 0


def show(step: str, result: str) -> None:
    print(f"{step:<8} {result}", flush=True)


def probe(client: OpenAI, name: str) -> str:
    """Asks beside the API. Raises `Problem` where the server says that it is not well."""
    root = str(client.base_url).rstrip("/").removesuffix("/v1")
    try:
        client.with_options(base_url=root).get(f"/{name}", cast_to=object)
    except NotFoundError:
        return "not told by this server"
    except InternalServerError as error:
        raise Problem(f"The server is up, but no worker is ready: {said(error)}") from None
    return "yes"


def answer(client: OpenAI, model: str) -> str:
    """How long a small question takes."""
    content = [{"type": "text", "text": "What is said here?"}, recorded_part(SILENCE)]
    started = time.monotonic()
    messages = [{"role": "user", "content": content}]
    client.chat.completions.create(model=model, messages=messages, max_tokens=8)  # type: ignore[arg-type]  # plain JSON
    return f"a question about a second of silence, in {1000 * (time.monotonic() - started):.0f} ms"
