"""`/v1/audio/transcriptions` and `/v1/audio/translations`: an upload to a job, and its events to an answer.

The file goes to the spool while it comes. An error before the first event is an HTTP error, also where a stream was
asked for; a later one is an event in the stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import partial

from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response

from api import sse
from api.endpoint import ModelEndpoint
from api.multipart import FILE, FormReader, read_form
from api.reception import INLINE_BYTES, Accepted, Arrival, Events
from api.transcription_request import TranscriptionRequest, build_job, parse_form, parse_json
from api.transcripts import Transcript, stream_delta, stream_done
from audio.datauri import decode_base64
from errors import BadRequest, EardrumError, UnsupportedMediaType, located
from wire import AudioPart, Delta, Finished

FORM, JSON = "multipart/form-data", "application/json"
INPUT_AUDIO = "input_audio.data"


class Transcriptions(ModelEndpoint):
    """Transcriptions into the language that is spoken."""

    translate = False

    async def _accept(self, arrival: Arrival) -> Accepted:
        match arrival.media_type:
            case "multipart/form-data":
                asked, audio = await self._form(arrival)
            case "application/json":
                asked, audio = await self._json(arrival)
            case _:
                raise UnsupportedMediaType(f"Send the audio as {FORM}, or in base64 as {JSON}.")
        spooled = arrival.intake.num_bytes
        job = build_job(asked, self._pending.new_job_id(), audio, spooled, self.translate, self._settings)
        assert job.task is not None, "built so"
        transcript = Transcript(job.task, asked.wants_logprobs, asked.temperature or 0.0)
        answer = partial(_answer, asked=asked, transcript=transcript, place=audio.place)
        return Accepted(job, bool(asked.stream), answer)

    async def _form(self, arrival: Arrival) -> tuple[TranscriptionRequest, AudioPart]:
        reader = FormReader(arrival.content_type, self._settings.max_audio_bytes)
        path = arrival.intake.store(b"")
        store = partial(arrival.run, arrival.intake.append, path, large=True)
        form = await read_form(arrival.chunks(), reader, store)
        asked = parse_form(form.fields)
        self._check_model(asked.model)
        if form.num_file_bytes is None:
            raise BadRequest("`file` is missing: the form holds no part of this name.", FILE)
        return asked, AudioPart(FILE, path)

    async def _json(self, arrival: Arrival) -> tuple[TranscriptionRequest, AudioPart]:
        body = await arrival.json()
        large = len(body) > INLINE_BYTES
        asked = await arrival.run(parse_json, body, large=large)
        self._check_model(asked.model)
        return asked, await arrival.run(self._spooled, asked, arrival, large=large)

    def _spooled(self, asked: TranscriptionRequest, arrival: Arrival) -> AudioPart:
        """Base64 to the spool. Raises `BadRequest`."""
        assert asked.input_audio is not None, "checked when it was read"
        with located(INPUT_AUDIO):
            data = decode_base64(asked.input_audio.data, self._settings.max_audio_bytes)
        return AudioPart(INPUT_AUDIO, arrival.intake.store(data))


class Translations(Transcriptions):
    """And into English."""

    translate = True


async def _answer(events: Events, asked: TranscriptionRequest, transcript: Transcript, place: str) -> Response:
    """The response to a valid request, once its first event is here."""
    with _placed(place):
        first = await anext(events)
        if asked.stream:
            return sse.EventStream(_stream(first, events, transcript), events)
        transcript.add(first)
        async for event in events:
            transcript.add(event)
    return _formatted(asked, transcript)


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """What a model says of the messages is about the audio: the client has written no other."""
    try:
        yield
    except BadRequest as error:
        if error.param != "messages":
            raise
        raise type(error)(error.message, place) from error


def _formatted(asked: TranscriptionRequest, transcript: Transcript) -> Response:
    match asked.format:
        case "json":
            return JSONResponse(transcript.body())
        case "verbose_json":
            return JSONResponse(transcript.verbose())
        case "text":
            return PlainTextResponse(f"{transcript.text}\n")
        case "srt":
            return PlainTextResponse(transcript.srt())
        case "vtt":
            return PlainTextResponse(transcript.vtt())


async def _stream(first: Delta | Finished, events: Events, transcript: Transcript) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream. An error becomes its last event: the status has been sent."""

    def told(event: Delta | Finished) -> bytes:
        transcript.add(event)
        if isinstance(event, Delta):
            return sse.encode(stream_delta(event, transcript.logprobs))
        return sse.encode(stream_done(transcript))

    try:
        yield told(first)
        async for event in events:
            yield told(event)
        yield sse.DONE
    except EardrumError as error:
        yield sse.encode_error(error)
