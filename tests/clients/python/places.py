"""Where the servers and the clips are, as `tests/clients/servers.py` tells it. Runs in the clients' environment."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

FAKE = os.environ["FAKE_URL"]
WHISPER = os.environ["WHISPER_URL"]
LIMITED = os.environ["LIMITED_URL"]  # a key for each client, good for one request a minute
SPEECH = os.environ["WHISPER_MODEL"]
CLIPS = Path(os.environ["CLIPS"])

HELLO = "I heard nothing. You said: hello"
GOOD = '#say={"mood":"good"}'
WHAT = "What is said?"


class Mood(BaseModel):
    mood: Literal["good", "bad"]


def clip(name: str) -> dict:
    """OpenAI's content part."""
    data = base64.b64encode((CLIPS / name).read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": name.partition(".")[2]}}


def is_jfk(text: str) -> bool:
    return re.match(r"\W*and so,? my fellow americans,? ask not", text, re.IGNORECASE) is not None
