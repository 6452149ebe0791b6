"""An example of each request and answer. Those of answers are what the server sends; a test holds all against their
schemas. `NAME` stands where the served model's name goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.answers import Json

NAME = "your-model"

_SPEECH = {"type": "audio_url", "audio_url": {"url": "https://example.com/speech.ogg"}}
_SAID = "And so my fellow Americans ask not what your country can do for you"
_AUDIO: Json = {"seconds_received": 11.0, "seconds_used": 11.0, "seconds_dropped": 0.0, "parts": 1}
_NO_AUDIO: Json = {"seconds_received": 0.0, "seconds_used": 0.0, "seconds_dropped": 0.0, "parts": 0}
_USAGE: Json = {
    "prompt_tokens": 562,
    "completion_tokens": 14,
    "total_tokens": 576,
    "prompt_tokens_details": {"audio_tokens": 550, "cached_tokens": 0},
    "audio": _AUDIO,
}
_TOKENS: Json = {
    "type": "tokens",
    "input_tokens": 562,
    "output_tokens": 14,
    "total_tokens": 576,
    "input_token_details": {"audio_tokens": 550, "text_tokens": 12},
    "audio": _AUDIO,
}

CHAT_REQUEST: Json = {
    "model": NAME,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is said here?"}, _SPEECH]}],
}
CHAT_COMPLETION: Json = {
    "id": "chatcmpl-5f0c",
    "object": "chat.completion",
    "created": 1767225600,
    "model": NAME,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": _SAID, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}
CHAT_CHUNK: Json = {
    "id": "chatcmpl-5f0c",
    "object": "chat.completion.chunk",
    "created": 1767225600,
    "model": NAME,
    "choices": [{"index": 0, "delta": {"content": "And so"}, "logprobs": None, "finish_reason": None}],
}
COMPLETION_REQUEST: Json = {"model": NAME, "prompt": "Once upon a time"}
COMPLETION: Json = {
    "id": "cmpl-5f0c",
    "object": "text_completion",
    "created": 1767225600,
    "model": NAME,
    "choices": [{"index": 0, "text": " there was a voice", "logprobs": None, "finish_reason": "length"}],
    "usage": {
        "prompt_tokens": 4,
        "completion_tokens": 16,
        "total_tokens": 20,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 0},
        "audio": _NO_AUDIO,
    },
}
COMPLETION_CHUNK: Json = {
    **{key: COMPLETION[key] for key in ("id", "object", "created", "model")},
    "choices": [{"index": 0, "text": " there", "logprobs": None, "finish_reason": None}],
}
RESPONSES_REQUEST: Json = {
    "model": NAME,
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "What is said here?"}, _SPEECH]}],
}
RESPONSE: Json = {
    "id": "resp_5f0c",
    "object": "response",
    "created_at": 1767225600,
    "completed_at": 1767225601,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": NAME,
    "output": [
        {
            "id": "msg_5f0c",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": _SAID, "annotations": [], "logprobs": []}],
        }
    ],
    "usage": {
        "input_tokens": 562,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 550},
        "output_tokens": 14,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 576,
        "audio": _AUDIO,
    },
    "background": False,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": False,
    "tool_choice": "auto",
    "tools": [],
    "truncation": "disabled",
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "top_logprobs": 0,
    "top_p": None,
}
RESPONSE_EVENT: Json = {
    "type": "response.output_text.delta",
    "sequence_number": 4,
    "item_id": "msg_5f0c",
    "output_index": 0,
    "content_index": 0,
    "delta": "And so",
    "logprobs": [],
}
TOKENIZE_REQUEST: Json = {"model": NAME, "prompt": "Once upon a time", "return_token_strs": True}
TOKENS: Json = {
    "count": 4,
    "max_model_len": 32768,
    "tokens": [12522, 5193, 264, 882],
    "token_strs": ["Once", "Ġupon", "Ġa", "Ġtime"],
}
DETOKENIZE_REQUEST: Json = {"model": NAME, "tokens": [12522, 5193, 264, 882]}
DETOKENIZED: Json = {"prompt": "Once upon a time"}
TRANSCRIPTION_FORM: Json = {"model": NAME, "file": "speech.ogg", "response_format": "json"}
TRANSCRIPTION_REQUEST: Json = {"model": NAME, "input_audio": {"data": "T2dnUwAC...", "format": "ogg"}}
TRANSCRIPTION: Json = {"text": _SAID, "usage": _TOKENS}
VERBOSE_TRANSCRIPTION: Json = {
    "task": "transcribe",
    "language": "english",
    "duration": 11.0,
    "text": _SAID,
    "segments": [
        {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": 7.6,
            "text": _SAID,
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": -0.21,
            "compression_ratio": 1.1,
            "no_speech_prob": 0.0,
        }
    ],
    "usage": {"type": "duration", "seconds": 11.0, "audio": _AUDIO},
}
TRANSCRIPT_EVENT: Json = {"type": "transcript.text.delta", "delta": "And so"}
TEXTS: dict[str, str] = {
    "text": f"{_SAID}\n",
    "srt": f"1\n00:00:00,000 --> 00:00:07,600\n{_SAID}\n\n",
    "vtt": f"WEBVTT\n\n00:00:00.000 --> 00:00:07.600\n{_SAID}\n\n",
}
MODEL: Json = {
    "id": NAME,
    "object": "model",
    "created": 1767225600,
    "owned_by": "eardrum",
    "audio": {
        "sampling_rate": 16000,
        "max_seconds_per_window": 30.0,
        "max_seconds_per_clip": 3600.0,
        "max_clips": 16,
        "formats": ["wav", "flac", "mp3", "ogg", "webm"],
        "long_audio": "chunk",
        "batching": "continuous",
        "why": "each prompt is computed alone, and all answers are decoded together, row by row",
    },
}
MODELS: Json = {"object": "list", "data": [MODEL]}


def named(example: Any, name: str) -> Any:
    """The example with the served model's name."""
    if isinstance(example, Mapping):
        return {key: named(value, name) for key, value in example.items()}
    if isinstance(example, list):
        return [named(value, name) for value in example]
    return name if example == NAME else example
