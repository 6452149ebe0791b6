"""Ask an audio-language model about a clip: `python client.py speech.ogg "What is said here?"`.

Works with any server that speaks the OpenAI API and takes audio; copy it into your own project. The answer goes to
stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIError, OpenAI

URL = "http://127.0.0.1:8000/v1"


def main() -> int:
    options = parse_options()
    client = OpenAI(base_url=options.url, api_key=os.environ.get("OPENAI_API_KEY") or "none")
    try:
        answer(client, options)
    except APIConnectionError:
        return fail(f"No server answers at {options.url}. Start one with `make serve`, or name another with --url.")
    except APIError as error:
        told = error.body.get("message") if isinstance(error.body, dict) else None
        return fail(f"The server refused: {told or error}")
    except OSError as error:
        return fail(f"{options.audio} cannot be read: {error.strerror}.")
    except KeyboardInterrupt:
        return 130
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask an audio-language model about a clip.")
    parser.add_argument("audio", help="a file, or an http(s) URL that the server fetches")
    parser.add_argument("question", nargs="?", default="What is said here?")
    parser.add_argument("--url", default=os.environ.get("OPENAI_BASE_URL") or URL, help="the server (%(default)s)")
    parser.add_argument("--model", help="its model; by default the first that it serves")
    parser.add_argument("--no-stream", action="store_true", help="wait for the whole answer")
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--temperature", type=float)
    return parser.parse_args()


def answer(client: OpenAI, options: argparse.Namespace) -> None:
    """Ask, and print the answer as it comes."""
    content = [{"type": "text", "text": options.question}, audio_part(options.audio)]
    request: dict[str, Any] = {
        "model": options.model or client.models.list().data[0].id,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }
    if options.no_stream:
        completion = client.chat.completions.create(**request)
        print(completion.choices[0].message.content)
        return
    for chunk in client.chat.completions.create(**request, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def audio_part(audio: str) -> dict[str, Any]:
    """The content part for a URL, or for a file with its bytes."""
    if audio.startswith(("http://", "https://")):
        return {"type": "audio_url", "audio_url": {"url": audio}}
    path = Path(audio)
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": path.suffix[1:] or "wav"}}


def fail(message: str) -> int:
    print(f"client.py: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
