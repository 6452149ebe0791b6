"""OpenAI's words to ours: a `ChatRequest` to a `Job`. Pure. The way back is `answers.py`.

Audio leaves the messages here: `build_job` hands encoded bytes to the intake (the spool) and keeps the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from api.intake import Intake, Source
from api.sampling import build_sampling, check_n, check_sampling, check_top_logprobs
from api.schema import (
    AudioUrl,
    AudioUrlBlock,
    Block,
    ChatMessage,
    ChatRequest,
    InputAudio,
    InputAudioBlock,
    RefusalBlock,
    StreamOptions,
    TextBlock,
)
from api.structure import asked_structures, build_structure, check_structure
from api.templating import build_templating, check_templating
from api.tool_schema import build_tools, check_tools, text_chars
from audio.datauri import decode_base64, is_data_uri
from config import Settings
from errors import BadRequest, located
from wire import AudioPart, Job, JobId, Message, Role, TextPart


def check_limits(chat: ChatRequest, settings: Settings) -> None:
    """Refuse what is over a limit before any audio is decoded. Raises `BadRequest`."""
    check_messages(chat.messages, settings, "messages", text_chars(chat))
    check_sampling(chat, settings)
    check_n(chat.n, settings)
    if chat.top_logprobs is not None and not chat.logprobs:
        raise BadRequest("`top_logprobs` goes with `logprobs`: true only.", "top_logprobs")
    check_top_logprobs(chat.top_logprobs, settings)
    check_structure(chat, settings)
    check_templating(chat, ends_in_answer(chat.messages[-1]), settings)
    check_tools(chat, asked_structures(chat), settings)
    check_stream_options(chat.stream_options, chat.stream)
    if "audio" in (chat.modalities or ()):
        raise BadRequest("`modalities`: this server answers with text only.", "modalities")


def check_stream_options(options: StreamOptions | None, stream: bool | None) -> None:
    """Refuse them where there is no stream. Raises `BadRequest`."""
    if options and not stream:
        raise BadRequest("`stream_options` goes with `stream`: true only.", "stream_options")
    if tells_usage(options) and not with_usage(options):
        place = "stream_options.continuous_usage_stats"
        raise BadRequest(f"`{place}` goes with `include_usage`: true only.", place)


def with_usage(options: StreamOptions | None) -> bool:
    """Whether the usage is asked for at the end of a stream."""
    return bool(options and options.include_usage)


def tells_usage(options: StreamOptions | None) -> bool:
    """Whether it is asked for in every chunk, as far as it goes."""
    return bool(options and options.continuous_usage_stats)


def build_job(chat: ChatRequest, job_id: JobId, intake: Intake, max_audio_bytes: int) -> Job:
    """The job of a request. Decodes base64 and writes files, so not for an event loop. Raises `BadRequest`."""
    return Job(
        job_id,
        build_messages(placed(chat.messages), intake, max_audio_bytes),
        build_sampling(chat, chat.n or 1, (chat.top_logprobs or 0) if chat.logprobs else None),
        spool_bytes=intake.num_bytes,
        structure=build_structure(chat),
        priority=chat.priority or 0,
        long_audio=chat.long_audio,
        templating=build_templating(chat),
        tells_usage=tells_usage(chat.stream_options),
        tools=build_tools(chat),
    )


def check_messages(messages: Sequence[ChatMessage], settings: Settings, place: str, other_chars: int = 0) -> None:
    """Refuse more audio or text than the limits. `place`: the field that they came in. `other_chars`: the length of
    text that the model is told beside them. Raises `BadRequest`."""
    clips = sum(_is_audio(block) for message in messages for block in _blocks(message))
    if clips > settings.max_clips:
        raise BadRequest(f"The messages hold {clips} audio parts; the limit is {settings.max_clips}.", place)
    if other_chars > settings.max_text_chars:
        raise BadRequest(f"`tools` holds more than {settings.max_text_chars} characters of text.", "tools")
    if sum(map(_text_chars, messages)) + other_chars > settings.max_text_chars:
        raise BadRequest(f"The messages hold more than {settings.max_text_chars} characters of text.", place)


def ends_in_answer(message: ChatMessage) -> bool:
    """Whether it is a text of the assistant's that can be continued."""
    blocks = _blocks(message)
    text = blocks[-1].text if blocks and isinstance(blocks[-1], TextBlock) else message.content
    return message.role == "assistant" and isinstance(text, str) and text.strip() != ""


def _is_audio(block: Block) -> bool:
    return isinstance(block, AudioUrlBlock | InputAudioBlock)


def _blocks(message: ChatMessage) -> list[Block]:
    return message.content if isinstance(message.content, list) else []


def _text_chars(message: ChatMessage) -> int:
    """The length of what will travel with the job: texts and addresses, not the audio in base64."""
    content = message.content
    chars = len(content) if isinstance(content, str) else sum(map(_block_chars, _blocks(message)))
    calls = [call.as_value() for call in message.tool_calls or ()]
    told = [message.name or "", message.reasoning_content or "", *(call.name + call.arguments for call in calls)]
    return chars + sum(map(len, told))


def _block_chars(block: Block) -> int:
    match block:
        case TextBlock():
            return len(block.text)
        case RefusalBlock():
            return len(block.refusal)
        case AudioUrlBlock():
            url, _ = _audio_text(block)
            return 0 if url is None or is_data_uri(url) else len(url)
        case InputAudioBlock():
            return 0


def placed(messages: Sequence[ChatMessage]) -> list[tuple[str, ChatMessage]]:
    """Each with its place in a request's `messages`."""
    return [(f"messages[{i}]", message) for i, message in enumerate(messages)]


def build_messages(messages: Iterable[tuple[str, ChatMessage]], intake: Intake, max_bytes: int) -> tuple[Message, ...]:
    """A conversation, each of whose messages comes with its place in the request. Raises `BadRequest`."""
    return _named_results([_message(message, place, intake, max_bytes) for place, message in messages])


def _message(message: ChatMessage, place: str, intake: Intake, max_bytes: int) -> Message:
    """A message that stands at `place` in the request. Raises `BadRequest`."""
    role: Role = "system" if message.role == "developer" else message.role
    if message.tool_calls and role != "assistant":
        raise BadRequest(f"`{place}.tool_calls` goes with the role `assistant` only.", f"{place}.tool_calls")
    return Message(
        role,
        _parts(message, place, intake, max_bytes),
        calls=tuple(call.as_value() for call in message.tool_calls or ()),
        call_id=message.tool_call_id if role == "tool" else None,
        name=message.name if role == "tool" else None,
        reasoning=(message.reasoning_content or None) if role == "assistant" else None,
    )


def _named_results(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same with the name of its tool in each result that has none: some templates write it."""
    names = {call.id: call.name for message in messages for call in message.calls}
    return tuple(
        replace(message, name=names.get(message.call_id)) if message.call_id and not message.name else message
        for message in messages
    )


def _parts(message: ChatMessage, place: str, intake: Intake, max_bytes: int) -> tuple[TextPart | AudioPart, ...]:
    if isinstance(message.content, str):
        return (TextPart(message.content),)
    blocks = enumerate(_blocks(message))
    return tuple(_part(block, f"{place}.content[{i}]", intake, max_bytes) for i, block in blocks)


def _part(block: Block, place: str, intake: Intake, max_bytes: int) -> TextPart | AudioPart:
    match block:
        case TextBlock():
            return TextPart(block.text)
        case RefusalBlock():
            return TextPart(block.refusal)
        case AudioUrlBlock() | InputAudioBlock():
            return _audio_part(block, place, intake, max_bytes)


def _audio_part(block: AudioUrlBlock | InputAudioBlock, place: str, intake: Intake, max_bytes: int) -> AudioPart:
    """New audio, kept under its uuid if it has one; or what is kept under a uuid that comes alone."""
    text, inner = _audio_text(block)
    if text is None:
        place = f"{place}.uuid"
        with located(place):
            source = intake.again(block.uuid or "")
        return AudioPart(place, source.path, source.url)
    place = f"{place}.{inner}"
    if isinstance(block, AudioUrlBlock) and not is_data_uri(text):
        source = Source(url=text)
    else:
        with located(place):
            source = Source(intake.store(decode_base64(text, max_bytes)))
    if block.uuid:
        intake.keep(block.uuid, source)
    return AudioPart(place, source.path, source.url)


def _audio_text(block: AudioUrlBlock | InputAudioBlock) -> tuple[str | None, str]:
    """The address, data URI or base64 of a block, if it has one, and where in the block it stands."""
    if isinstance(block, InputAudioBlock):
        if isinstance(block.input_audio, InputAudio):
            return block.input_audio.data, "input_audio.data"
        return block.input_audio, "input_audio"
    if isinstance(block.audio_url, AudioUrl):
        return block.audio_url.url, "audio_url.url"
    return block.audio_url, "audio_url"
