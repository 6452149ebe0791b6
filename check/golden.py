"""A file of requests with the answers that an adapter gave here, and a server that is asked them again.

    record   probes ──▶ adapter, in this process ──▶ FILE: a line of JSON for each request
    replay   FILE ──▶ any OpenAI server ──▶ Comparison

The requests are what OpenAI's clients send: audio travels as WAV in base64, and is heard as a server decodes it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from check.asking import Probe
from check.sounds import as_wav, decoded
from check.subject import TEXTS, Subject
from errors import BadRequest
from models.base import Clip, Turn

Json = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    """A line of the file."""

    request: Json
    answer: str
    finish_reason: str


@dataclass(frozen=True)
class Comparison:
    """What a server has answered to a request, beside what was expected. `error`: why it has not."""

    golden: Golden
    answer: str = ""
    finish_reason: str = ""
    error: str = ""

    @property
    def is_equal(self) -> bool:
        expected = self.golden.answer, self.golden.finish_reason
        return (self.answer, self.finish_reason) == expected

    @property
    def title(self) -> str:
        """The request in a few words: its roles, audios and texts."""
        return ", ".join(
            f"{message['role']}: {_told(message['content'])}" for message in self.golden.request["messages"]
        )


def _told(content: list[Json]) -> str:
    return " + ".join(block["text"] if block["type"] == "text" else "audio" for block in content)


# --------------------------------------------------------------------------------------------------------------- record


def record(subject: Subject, path: Path) -> int:
    """Ask the adapter, and write what it answers; how many requests. Those that it refuses are left out."""
    goldens = [golden for probe in _probes(subject) if (golden := _asked(subject, probe)) is not None]
    path.write_text("".join(json.dumps(asdict(golden), ensure_ascii=False) + "\n" for golden in goldens))
    return len(goldens)


def _probes(subject: Subject) -> Iterator[Probe]:
    """Of varied lengths, texts and forms."""
    yield from subject.varied()
    turn = subject.usual(1).conversation[0]
    yield subject.talk(Turn("system", ("Answer shortly.",)), turn)
    yield subject.talk(turn, Turn("assistant", ("Hello.",)), Turn("user", (TEXTS[3],)))
    if subject.hears_several:
        yield subject.probe(subject.clip(1.2, 2), subject.clip(1.7, 3), TEXTS[0])


def _asked(subject: Subject, probe: Probe) -> Golden | None:
    rate = subject.sounds.sampling_rate
    messages = [
        {"role": turn.role, "content": [_block(part, rate) for part in turn.parts]} for turn in probe.conversation
    ]
    heard = tuple(Turn(turn.role, tuple(_as_heard(part, rate) for part in turn.parts)) for turn in probe.conversation)
    try:
        reply = subject.ask(replace(probe, conversation=heard))
    except BadRequest:
        return None
    request = {"model": subject.name, "messages": messages, "temperature": 0, "max_tokens": probe.sampling.max_tokens}
    return Golden(request, reply.text, reply.reason)


def _block(part: str | Clip, rate: int) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(as_wav(part.windows[0], rate)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def _as_heard(part: str | Clip, rate: int) -> str | Clip:
    return part if isinstance(part, str) else Clip((decoded(as_wav(part.windows[0], rate), rate),))


# --------------------------------------------------------------------------------------------------------------- replay


def replay(path: Path, url: str, api_key: str, model: str | None) -> list[Comparison]:
    """Ask the server at `url`, OpenAI's base address, what the file holds. `model` is its name there; the server's
    first where it is not given. Raises `OSError` and `ValueError` for a file that is none of ours, and `openai`'s
    errors where the server does not tell its models."""
    try:
        goldens = [Golden(**json.loads(line)) for line in path.read_text().splitlines()]
    except TypeError as error:
        raise ValueError(f"{path} holds no golden answers of ours: {error}") from error
    if not goldens:
        raise ValueError(f"{path} is empty")
    with openai.OpenAI(base_url=url, api_key=api_key) as client:
        name = model or client.models.list().data[0].id
        return [_compared(client, golden, name) for golden in goldens]


def _compared(client: openai.OpenAI, golden: Golden, model: str) -> Comparison:
    body = golden.request | {"model": model}
    try:
        choice = client.post("/chat/completions", body=body, cast_to=ChatCompletion).choices[0]
    except openai.APIError as error:
        return Comparison(golden, error=f"{type(error).__name__}: {error}")
    return Comparison(golden, choice.message.content or "", choice.finish_reason)
