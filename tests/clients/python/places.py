"""Where the servers and the clips are, as `tests/clients/servers.py` tells it. Runs in the clients' environment."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel

FAKE = os.environ["FAKE_URL"]
WHISPER = os.environ["WHISPER_URL"]
LIMITED = os.environ["LIMITED_URL"]  # a key for each client, good for one request a minute
SPEECH = os.environ["WHISPER_MODEL"]
CLIPS = Path(os.environ["CLIPS"])

HELLO = "I heard nothing. You said: hello"
GOOD = '#say={"mood":"good"}'
WHAT = "What is said?"
TELL = "#tools"  # a tool's result that makes the fake model answer with all it is told of tools
PARIS = {"city": "Paris", "days": 2}


class Mood(BaseModel):
    mood: Literal["good", "bad"]


def clip(name: str) -> dict:
    """OpenAI's content part."""
    data = base64.b64encode((CLIPS / name).read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": name.partition(".")[2]}}


def to_call(name: str, arguments: dict) -> str:
    """What makes the fake model call a tool, as its dialect has it."""
    return f"#text={quote(as_call(name, arguments))}"


def as_call(name: str, arguments: dict) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def check_told(text: str, name: str, call_id: str | None = None) -> None:
    """That the model was told of a tool's call and of its result, with the same id."""
    question, said, result = json.loads(text)["history"][-3:]
    (call,) = said["tool_calls"]
    assert (question["role"], said["role"], result["role"]) == ("user", "assistant", "tool")
    assert call["function"] == {"name": name, "arguments": PARIS}
    assert call["id"] == result["tool_call_id"] == (call_id or call["id"])


def is_jfk(text: str) -> bool:
    return re.match(r"\W*and so,? my fellow americans,? ask not", text, re.IGNORECASE) is not None
