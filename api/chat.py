"""OpenAI's words to ours and back: a `ChatRequest` to a `Job`, events to a completion or to chunks. Pure.

Audio leaves the messages here: `build_job` hands encoded bytes to `store` (the spool) and keeps the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from api.schema import AudioUrlBlock, Block, ChatMessage, ChatRequest, InputAudioBlock, RefusalBlock, TextBlock
from audio.datauri import decode_base64, decode_data_uri, is_data_uri
from config import Settings
from errors import BadRequest, located
from wire import AudioPart, Delta, Finished, Job, JobId, Message, Role, Sampling, TextPart, Usage

Json = dict[str, Any]
Store = Callable[[bytes], str]


def check_limits(chat: ChatRequest, settings: Settings) -> None:
    """Refuse what is over a limit before any audio is decoded. Raises `BadRequest`."""
    clips = sum(_is_audio(block) for message in chat.messages for block in _blocks(message))
    if clips > settings.max_clips:
        raise BadRequest(f"The messages hold {clips} audio parts; the limit is {settings.max_clips}.", "messages")
    if (chat.n or 1) > settings.max_n:
        raise BadRequest(f"`n` is over the limit of {settings.max_n}.", "n")
    if len(_stops(chat)) > settings.max_stop:
        raise BadRequest(f"`stop` has {len(_stops(chat))} strings; the limit is {settings.max_stop}.", "stop")
    if sum(map(_text_chars, chat.messages)) > settings.max_text_chars:
        raise BadRequest(f"The messages hold more than {settings.max_text_chars} characters of text.", "messages")
    if chat.stream_options and not chat.stream:
        raise BadRequest("`stream_options` goes with `stream`: true only.", "stream_options")
    if "audio" in (chat.modalities or ()):
        raise BadRequest("`modalities`: this server answers with text only.", "modalities")


def build_job(chat: ChatRequest, job_id: JobId, store: Store, max_audio_bytes: int) -> Job:
    """The job of a request. Decodes base64 and calls `store`, so not for an event loop. Raises `BadRequest`."""
    size = 0

    def counted_store(data: bytes) -> str:
        nonlocal size
        size += len(data)
        return store(data)

    messages = tuple(
        _message(message, f"messages[{i}]", counted_store, max_audio_bytes) for i, message in enumerate(chat.messages)
    )
    return Job(job_id, messages, _sampling(chat), size)


def _is_audio(block: Block) -> bool:
    return isinstance(block, AudioUrlBlock | InputAudioBlock)


def _blocks(message: ChatMessage) -> list[Block]:
    return message.content if isinstance(message.content, list) else []


def _text_chars(message: ChatMessage) -> int:
    """The length of what will travel with the job: texts and addresses, not the audio in base64."""
    if isinstance(message.content, str):
        return len(message.content)
    return sum(map(_block_chars, _blocks(message)))


def _block_chars(block: Block) -> int:
    match block:
        case TextBlock():
            return len(block.text)
        case RefusalBlock():
            return len(block.refusal)
        case AudioUrlBlock():
            url = _url(block)
            return 0 if is_data_uri(url) else len(url)
        case InputAudioBlock():
            return 0


def _url(block: AudioUrlBlock) -> str:
    return block.audio_url if isinstance(block.audio_url, str) else block.audio_url.url


def _stops(chat: ChatRequest) -> list[str]:
    return [chat.stop] if isinstance(chat.stop, str) else chat.stop or []


def _sampling(chat: ChatRequest) -> Sampling:
    return Sampling(
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        temperature=chat.temperature,
        top_p=1.0 if chat.top_p is None else chat.top_p,
        stop=tuple(_stops(chat)),
        seed=chat.seed,
        n=chat.n or 1,
    )


def _message(message: ChatMessage, place: str, store: Store, max_bytes: int) -> Message:
    role: Role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Message(role, (TextPart(message.content),))
    parts = [_part(block, f"{place}.content[{i}]", store, max_bytes) for i, block in enumerate(_blocks(message))]
    return Message(role, tuple(parts))


def _part(block: Block, place: str, store: Store, max_bytes: int) -> TextPart | AudioPart:
    match block:
        case TextBlock():
            return TextPart(block.text)
        case RefusalBlock():
            return TextPart(block.refusal)
        case InputAudioBlock():
            place = f"{place}.input_audio.data"
            with located(place):
                return AudioPart(place, path=store(decode_base64(block.input_audio.data, max_bytes)))
        case AudioUrlBlock():
            place = f"{place}.audio_url" if isinstance(block.audio_url, str) else f"{place}.audio_url.url"
            return _url_part(_url(block), place, store, max_bytes)


def _url_part(url: str, place: str, store: Store, max_bytes: int) -> AudioPart:
    if not is_data_uri(url):
        return AudioPart(place, url=url)
    with located(place):
        return AudioPart(place, path=store(decode_data_uri(url, max_bytes)))


# --------------------------------------------------------------------------------------------------- answers


def _usage(usages: Iterable[Usage]) -> Json:
    """OpenAI's usage of all choices together, and beside it the audio that was heard, in seconds."""
    each = list(usages)
    first, completion = each[0], sum(usage.completion_tokens for usage in each)
    seconds = round(first.audio_seconds, 3)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"audio_tokens": first.audio_tokens, "cached_tokens": 0},
        "audio": {"seconds_received": seconds, "seconds_used": seconds, "parts": first.audio_parts},
    }


@dataclass(frozen=True)
class Reply:
    """What is the same in all chunks of an answer."""

    id: str
    created: int  # Unix seconds
    model: str

    def frame(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


@dataclass
class Completion:
    """Collects a job's events into one `chat.completion`."""

    reply: Reply
    n: int
    texts: dict[int, list[str]] = field(default_factory=dict)
    ends: dict[int, Finished] = field(default_factory=dict)

    def add(self, event: Delta | Finished) -> None:
        if isinstance(event, Delta):
            self.texts.setdefault(event.choice, []).append(event.text)
        else:
            self.ends[event.choice] = event

    def body(self) -> Json:
        choices = [self._choice(i) for i in range(self.n)]
        usage = _usage(end.usage for end in self.ends.values())
        return {**self.reply.frame("chat.completion"), "choices": choices, "usage": usage}

    def _choice(self, index: int) -> Json:
        message = {"role": "assistant", "content": "".join(self.texts.get(index, [])), "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": self.ends[index].reason,
        }


@dataclass
class Chunks:
    """Turns a job's events into `chat.completion.chunk`s: one id and time for all, the role once for each choice."""

    reply: Reply
    include_usage: bool
    begun: set[int] = field(default_factory=set)
    usages: list[Usage] = field(default_factory=list)

    def of(self, event: Delta | Finished) -> Iterator[Json]:
        if event.choice not in self.begun:
            self.begun.add(event.choice)
            yield self._chunk(event.choice, {"role": "assistant", "content": ""}, None)
        if isinstance(event, Delta):
            yield self._chunk(event.choice, {"content": event.text}, None)
        else:
            self.usages.append(event.usage)
            yield self._chunk(event.choice, {}, event.reason)

    def last(self) -> Iterator[Json]:
        """The chunk with the usage, if it was asked for."""
        if self.include_usage:
            yield {**self._frame(), "choices": [], "usage": _usage(self.usages)}

    def _chunk(self, choice: int, delta: Json, reason: str | None) -> Json:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        usage = {"usage": None} if self.include_usage else {}
        return {**self._frame(), "choices": choices, **usage}

    def _frame(self) -> Json:
        return self.reply.frame("chat.completion.chunk")
