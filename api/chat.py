"""OpenAI's words to ours: a `ChatRequest` to a `Job`. Pure. The way back is `answers.py`.

Audio leaves the messages here: `build_job` hands encoded bytes to `store` (the spool) and keeps the path.
"""

from __future__ import annotations

from collections.abc import Callable

from api.sampling import build_sampling, check_sampling
from api.schema import AudioUrlBlock, Block, ChatMessage, ChatRequest, InputAudioBlock, RefusalBlock, TextBlock
from api.structure import build_structure, check_structure
from audio.datauri import decode_base64, decode_data_uri, is_data_uri
from config import Settings
from errors import BadRequest, located
from wire import AudioPart, Job, JobId, Message, Role, TextPart

Store = Callable[[bytes], str]


def check_limits(chat: ChatRequest, settings: Settings) -> None:
    """Refuse what is over a limit before any audio is decoded. Raises `BadRequest`."""
    _check_messages(chat.messages, settings)
    check_sampling(chat, settings)
    check_structure(chat, settings)
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
    return Job(
        job_id,
        messages,
        build_sampling(chat),
        spool_bytes=size,
        structure=build_structure(chat),
        priority=chat.priority or 0,
        long_audio=chat.long_audio,
    )


def _check_messages(messages: list[ChatMessage], settings: Settings) -> None:
    clips = sum(_is_audio(block) for message in messages for block in _blocks(message))
    if clips > settings.max_clips:
        raise BadRequest(f"The messages hold {clips} audio parts; the limit is {settings.max_clips}.", "messages")
    if sum(map(_text_chars, messages)) > settings.max_text_chars:
        raise BadRequest(f"The messages hold more than {settings.max_text_chars} characters of text.", "messages")


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
