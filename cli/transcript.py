"""A transcript as the API sends it, and what can be read off it. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cli.problem import Problem

FORMATS = {"text": "txt", "srt": "srt", "vtt": "vtt", "json": "json", "verbose_json": "verbose.json"}  # and suffixes
_CUE_END = re.compile(r"^[\d:.,]+ --> (?:(\d+):)?(\d+):(\d+)[,.](\d+)", re.M)


@dataclass(frozen=True)
class Transcript:
    text: str  # as it is written
    seconds: float  # of audio; of subtitles, to the end of the last
    is_cut: bool  # the model had no room for all of it

    @classmethod
    def read(cls, body: str, format: str) -> Transcript:
        """`text` was asked for as JSON, which tells more, and which every server knows. Raises `Problem`."""
        if format in ("srt", "vtt"):
            return cls(body, _last_cue_end_s(body), is_cut=False)
        answer = _object(body)
        text = f"{answer['text'].strip()}\n" if format == "text" else f"{body.strip()}\n"
        return cls(text, _seconds(answer), answer.get("finish_reason") == "length")


def _object(body: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise Problem("The server's answer is no transcript.")
    return answer


def _seconds(answer: dict[str, Any]) -> float:
    usage = answer.get("usage") or {}
    audio = usage.get("audio") or {}
    return float(audio.get("seconds_received") or answer.get("duration") or usage.get("seconds") or 0)


def _last_cue_end_s(subtitles: str) -> float:
    ends = _CUE_END.findall(subtitles)
    if not ends:
        return 0.0
    hours, minutes, seconds, milliseconds = (int(value or 0) for value in ends[-1])
    return 3600 * hours + 60 * minutes + seconds + milliseconds / 1000
