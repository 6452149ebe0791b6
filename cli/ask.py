"""`client.py FILE "question"`: one question about one clip."""

from __future__ import annotations

import argparse

from cli.server import Json, audio_part, connect, model_name, print_answer


def ask(options: argparse.Namespace) -> int:
    content = [{"type": "text", "text": options.question}, audio_part(options.audio)]
    client = connect(options)
    request: Json = {
        "model": model_name(client, options),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }
    if options.no_stream:
        print(client.chat.completions.create(**request).choices[0].message.content or "")
    else:
        print_answer(client, request)
    return 0
