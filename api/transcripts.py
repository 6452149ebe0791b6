"""Our words to OpenAI's: a transcription's events to its answer in each format, or to those of its stream. Pure."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from api.answers import LOWEST_LOGPROB, Json, audio_usage
from api.languages import NAMES
from wire import Delta, Finished, Segment, TokenLogprob, Transcribe, Usage

FRAMES_PER_S = 100  # in which Whisper's `seek` counts
UNKNOWN = "unknown"  # the language, where neither the client nor the model tells it; OpenAI's type wants a text


@dataclass
class Transcript:
    """Collects a transcription's events. `logprobs`: whether they were asked for."""

    task: Transcribe
    logprobs: bool = False
    temperature: float = 0.0
    texts: list[str] = field(default_factory=list)
    tokens: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None
    _said: defaultdict[int, list[Delta]] = field(default_factory=lambda: defaultdict(list))  # by segment

    def add(self, event: Delta | Finished) -> None:
        if isinstance(event, Finished):
            self.end = event
            return
        self.texts.append(event.text)
        self.tokens.extend(event.logprobs)
        self._said[event.segment].append(event)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def body(self) -> Json:
        """OpenAI's `json`, with the usage that its newer models tell."""
        logprobs = {"logprobs": _logprobs(self.tokens)} if self.logprobs else {}
        return {"text": self.text, **logprobs, "usage": _usage(self._end.usage), **self._cut()}

    def verbose(self) -> Json:
        duration = round(self._end.usage.heard.seconds_received, 3)
        segments = [self._segment(number, segment, deltas) for number, (segment, deltas) in enumerate(self._segments())]
        return {
            "task": "translate" if self.task.translate else "transcribe",
            "language": self._language(),
            "duration": duration,
            "text": self.text,
            "segments": segments,
            "usage": {"type": "duration", "seconds": duration, "audio": audio_usage(self._end.usage.heard)},
            **self._cut(),
        }

    def srt(self) -> str:
        cues = (
            f"{number}\n{_clock(segment.start_s, ',')} --> {_clock(segment.end_s, ',')}\n{_line(deltas)}\n\n"
            for number, (segment, deltas) in enumerate(self._segments(), 1)
        )
        return "".join(cues)

    def vtt(self) -> str:
        cues = (
            f"{_clock(segment.start_s, '.')} --> {_clock(segment.end_s, '.')}\n{_escaped(_line(deltas))}\n\n"
            for segment, deltas in self._segments()
        )
        return "WEBVTT\n\n" + "".join(cues)

    @property
    def _end(self) -> Finished:
        assert self.end is not None, "all events are here"
        return self.end

    def _cut(self) -> Json:
        """Whether the model filled its window: OpenAI has no word for a transcript that may lack its end."""
        return {} if self._end.reason == "stop" else {"finish_reason": self._end.reason}

    def _language(self) -> str:
        code = "en" if self.task.translate else self._end.language or self.task.language
        return UNKNOWN if code is None else NAMES.get(code, code).lower()

    def _segments(self) -> Iterator[tuple[Segment, list[Delta]]]:
        """Those in which something is said."""
        for number, segment in enumerate(self._end.segments):
            deltas = self._said[number]
            if _line(deltas):
                yield segment, deltas

    def _segment(self, number: int, segment: Segment, deltas: list[Delta]) -> Json:
        """OpenAI's, which is Whisper's own. What no model here tells is empty or 0: the token ids, and whether there is
        speech, as what is said is told only where there is."""
        text = "".join(delta.text for delta in deltas)
        values = [token.logprob for delta in deltas for token in delta.logprobs]
        encoded = text.encode()
        return {
            "id": number,
            "seek": int(segment.start_s * FRAMES_PER_S),
            "start": round(segment.start_s, 3),
            "end": round(segment.end_s, 3),
            "text": text,
            "tokens": [],
            "temperature": self.temperature,
            "avg_logprob": sum(values) / len(values) if values else 0.0,
            "compression_ratio": len(encoded) / len(zlib.compress(encoded)),
            "no_speech_prob": 0.0,
        }


def stream_delta(event: Delta, logprobs: bool) -> Json:
    told = {"logprobs": _logprobs(list(event.logprobs))} if logprobs else {}
    return {"type": "transcript.text.delta", "delta": event.text, **told}


def stream_done(transcript: Transcript) -> Json:
    return {"type": "transcript.text.done", **transcript.body()}


def _line(deltas: list[Delta]) -> str:
    """A cue's text: a blank line would end it."""
    return " ".join("".join(delta.text for delta in deltas).split())


def _escaped(text: str) -> str:
    """As WebVTT wants it: W3C, WebVTT 1, section 4.2.2."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    """`00:01:02,345`."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _usage(usage: Usage) -> Json:
    """OpenAI's usage in tokens, and beside it the audio."""
    return {
        "type": "tokens",
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_token_details": {
            "audio_tokens": usage.audio_tokens,
            "text_tokens": usage.prompt_tokens - usage.audio_tokens,
        },
        "audio": audio_usage(usage.heard),
    }


def _logprobs(tokens: list[TokenLogprob]) -> list[Json]:
    """Half a character is a replacement character as text; `bytes` are exact."""
    return [
        {
            "token": each.token.decode(errors="replace"),
            "logprob": max(LOWEST_LOGPROB, each.logprob),
            "bytes": list(each.token),
        }
        for each in tokens
    ]
