"""`/v1/audio/transcriptions` and `/v1/audio/translations`: real speech through the official client, what each kind of
model makes of language, prompt and task, and what a form may hold."""

from __future__ import annotations

import asyncio
import io
import re
import textwrap
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
import transformers
from openai import AsyncOpenAI, OpenAI
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    Translation,
)
from transformers import GenerationMixin

from api.multipart import MAX_FIELD_BYTES, MAX_PARTS
from api.reception import INLINE_BYTES
from api.transcription_request import build_job, parse_form
from config import Settings
from tests.support.directories import saved
from tests.support.inprocess import InProcess, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import CLIPS, DATA, JFK, LONG, RATE, as_base64, silence, spoken, word_error_rate
from tests.support.tiny_models import sweep
from tests.support.waiting import until
from wire import AudioPart, JobId, Transcribe

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the SDK's, for its translations
]

PATH, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
TOLD = Settings(_env_file=None).transcription_prompt
FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
RISING = sweep(1.2, 200, 900)


def clip(name: str) -> bytes:
    return (DATA / name).read_bytes()


def as_wav(*samples: np.ndarray) -> bytes:
    """Mono float32 samples at 16 kHz, one after another."""
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(samples), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture
def client(whisper_server: RunningServer) -> Iterator[OpenAI]:
    with whisper_server.client() as client:
        yield client


@pytest.fixture
def fake(fake_server: RunningServer) -> Iterator[OpenAI]:
    with fake_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@asynccontextmanager
async def serving(model: str, **settings: object) -> AsyncIterator[AsyncOpenAI]:
    async with (
        run_in_process(model=model, served_model_name="tiny", **settings) as server,
        server.http() as http,
        AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


def transcribe(client: OpenAI, file: object, **options: object):
    return client.audio.transcriptions.create(model="my-model", file=file, **options)


def transcribe_at_once(client: OpenAI, file: Path | bytes, *options: dict) -> list:
    """The answers to several requests, which share the server's steps."""
    with ThreadPoolExecutor(len(options)) as pool:
        return list(pool.map(lambda each: transcribe(client, file, **each), options))


# ------------------------------------------------------------------------------------------------------- real speech


@pytest.mark.parametrize("spoken_clip", CLIPS[1:6], ids=lambda each: each.name)
def test_files_of_all_formats(client: OpenAI, spoken_clip) -> None:
    """Under a browser's name and no type: the bytes decide."""
    answer = transcribe(client, ("blob", clip(spoken_clip.name), "application/octet-stream"))
    assert word_error_rate(spoken_clip.text, answer.text) <= spoken_clip.wer
    assert answer.usage.audio["seconds_received"] == pytest.approx(spoken_clip.seconds, abs=0.1)


def test_json_has_openais_shape(whisper_server: RunningServer) -> None:
    """As its own package declares it, strictly; and the answer is the one of a chat."""
    with whisper_server.http() as http:
        raw = http.post(PATH, data={"model": "my-model"}, files={"file": ("jfk.ogg", clip("jfk.ogg"))})
    answer = Transcription.model_validate_json(raw.text, strict=True)
    assert answer.usage.type == "tokens"
    assert answer.usage.input_tokens + answer.usage.output_tokens == answer.usage.total_tokens
    details = answer.usage.input_token_details
    assert details.audio_tokens + details.text_tokens == answer.usage.input_tokens
    assert details.audio_tokens == 550
    assert answer.logprobs is None
    assert "finish_reason" not in raw.json()


def test_plain_text(whisper_server: RunningServer, client: OpenAI) -> None:
    """With the line's end that OpenAI writes, and no JSON around it."""
    text = transcribe(client, DATA / "jfk.ogg", response_format="text")
    assert text == transcribe(client, DATA / "jfk.ogg").text + "\n"
    with whisper_server.http() as http:
        form = {"model": "my-model", "response_format": "text"}
        raw = http.post(PATH, data=form, files={"file": clip("jfk.ogg")})
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"


def test_verbose_json_has_openais_shape(whisper_server: RunningServer) -> None:
    """Strictly; its segments hold all of the text, in order, inside the audio."""
    with whisper_server.http() as http:
        form = {"model": "my-model", "response_format": "verbose_json"}
        raw = http.post(PATH, data=form, files={"file": clip("jfk.ogg")})
    answer = TranscriptionVerbose.model_validate_json(raw.text, strict=True)
    assert (answer.language, raw.json()["task"]) == ("english", "transcribe")
    assert answer.duration == pytest.approx(11.0, abs=0.1)
    assert answer.usage.seconds == answer.duration
    assert word_error_rate(JFK, answer.text) == 0
    assert "".join(segment.text for segment in answer.segments) == answer.text
    assert [segment.id for segment in answer.segments] == list(range(len(answer.segments)))
    assert all(-1 < segment.avg_logprob < 0 < segment.compression_ratio < 2.4 for segment in answer.segments)


def test_segments_tell_when_something_is_said(client: OpenAI) -> None:
    """Two readings with a pause of three seconds between them: the times are Whisper's own, and those of the speech."""
    first, second = spoken("austen-0890.wav"), spoken("austen-0930.wav")
    begin = len(first) / RATE + 3
    audio = as_wav(first, silence(3), second)
    answer = transcribe(client, audio, response_format="verbose_json", timestamp_granularities=["segment"])
    segments = [segment for segment in answer.segments if "amiable" in segment.text]
    assert len(segments) == 1
    assert segments[0].start == pytest.approx(begin, abs=1)
    assert segments[0].end == pytest.approx(begin + len(second) / RATE, abs=1)
    before = answer.segments[: segments[0].id]
    assert before[0].start < 1
    assert before[-1].end < begin


def test_subtitles_are_the_segments(client: OpenAI) -> None:
    """In both formats, cue by cue, over audio of several windows: their times go on where the last window ended."""
    formats = ("verbose_json", "srt", "vtt")
    verbose, srt, vtt = transcribe_at_once(client, DATA / LONG.name, *({"response_format": each} for each in formats))
    assert word_error_rate(LONG.text, verbose.text) <= LONG.wer + 3
    times = [(segment.start, segment.end) for segment in verbose.segments]
    assert all(start < end <= verbose.duration for start, end in times)
    assert all(end <= start for (_, end), (start, _) in pairwise(times))
    assert times[-1][1] == pytest.approx(LONG.seconds, abs=1.5)
    texts = [segment.text.strip() for segment in verbose.segments]
    assert cues(srt, ",") == list(zip(times, texts, strict=True))
    assert vtt.startswith("WEBVTT\n\n")
    assert cues(vtt, ".") == cues(srt, ",")
    assert re.findall(r"^\d+$", srt, re.M) == [str(i + 1) for i in range(len(times))]


def cues(text: str, point: str) -> list[tuple[tuple[float, float], str]]:
    time = rf"(\d\d):(\d\d):(\d\d)\{point}(\d\d\d)"
    found = re.findall(rf"^{time} --> {time}\n(.+)\n\n", text, re.M)
    return [((_seconds(each[:4]), _seconds(each[4:8])), each[8]) for each in found]


def _seconds(clock: tuple[str, ...]) -> float:
    hours, minutes, seconds, milliseconds = map(int, clock)
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


@pytest.mark.parametrize("response_format", FORMATS)
def test_silence_is_nothing(client: OpenAI, response_format: str) -> None:
    """No text, and no segment that would claim some."""
    answer = transcribe(client, as_wav(silence(3)), response_format=response_format)
    if response_format == "verbose_json":
        assert (answer.text, answer.segments) == ("", [])
    else:
        assert (
            getattr(answer, "text", answer)
            == {"json": "", "text": "\n", "srt": "", "vtt": "WEBVTT\n\n"}[response_format]
        )


def test_a_prompt_steers_whisper(client: OpenAI) -> None:
    """What stands before goes on in its manner, in all formats; silence stays silent."""
    plain = transcribe(client, DATA / "jfk.ogg").text
    prompt = "mr quilter's manner less interesting than his matter. nor is mr quilter's"
    for options in ({}, {"response_format": "verbose_json"}):
        steered = transcribe(client, DATA / "jfk.ogg", prompt=prompt, **options).text
        assert steered != plain
        assert word_error_rate(JFK, steered) == 0
    assert transcribe(client, as_wav(silence(3)), prompt="Anna").text == ""


def test_temperature(client: OpenAI) -> None:
    """Greedy unless it is said."""
    quiet = as_wav(0.02 * spoken("austen-0880.wav"))
    assert len({answer.text for answer in transcribe_at_once(client, quiet, *[{}] * 3)}) == 1
    assert len({answer.text for answer in transcribe_at_once(client, quiet, *[{"temperature": 1.0}] * 6)}) > 1


# ------------------------------------------------------------------------------------------------------------ streams


def test_a_stream(client: OpenAI, whisper_server: RunningServer) -> None:
    """Deltas, one done event with all of the text and the usage, and an end; in OpenAI's shapes, strictly."""
    whole = transcribe(client, DATA / "jfk.ogg")
    *deltas, done = transcribe(client, DATA / "jfk.ogg", stream=True)
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert "".join(event.delta for event in deltas) == done.text == whole.text
    assert done.usage.model_dump() == whole.usage.model_dump()
    with whisper_server.http() as http:
        raw = http.post(PATH, data={"model": "my-model", "stream": "true"}, files={"file": clip("jfk.ogg")})
    assert raw.headers["content-type"].startswith("text/event-stream")
    *events, last, rest = raw.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    for event in events[:-1]:
        TranscriptionTextDeltaEvent.model_validate_json(event.removeprefix("data: "), strict=True)
    TranscriptionTextDoneEvent.model_validate_json(events[-1].removeprefix("data: "), strict=True)


def test_logprobs(client: OpenAI) -> None:
    """Those of the tokens of the text, in the answer and in a stream."""
    answer = transcribe(client, DATA / "jfk.ogg", include=["logprobs"])
    assert b"".join(bytes(map(int, token.bytes)) for token in answer.logprobs).decode().strip() == answer.text
    assert all(token.logprob <= 0 for token in answer.logprobs)
    *deltas, done = transcribe(client, DATA / "jfk.ogg", include=["logprobs"], stream=True)
    assert [token.token for event in deltas for token in event.logprobs] == [each.token for each in answer.logprobs]
    assert len(done.logprobs) == len(answer.logprobs)


def test_an_error_in_a_stream(fake: OpenAI) -> None:
    """Before the first event it has a status; later it is an event, which the client raises."""
    with pytest.raises(openai.InternalServerError):
        fake.audio.transcriptions.create(model="fake", file=as_wav(RISING), prompt="#fail=prepare", stream=True)
    with pytest.raises(openai.APIError) as raised:
        list(fake.audio.transcriptions.create(model="fake", file=as_wav(RISING), prompt="#fail=step", stream=True))
    assert not isinstance(raised.value, openai.APIStatusError)


# ------------------------------------------------------------------------------------------------- how models are asked


def test_a_model_that_chats_is_asked_in_words(fake: OpenAI) -> None:
    """The operator's sentence behind the audio, the language's name, and the prompt."""

    def asked(**options: object) -> str:
        answer = fake.audio.transcriptions.create(model="fake", file=as_wav(RISING), **options)
        return answer.text.removeprefix("I heard 1.2 s. You said: ")

    assert asked() == TOLD
    assert asked(language="DE", prompt="Anna") == (
        f"{TOLD}\nThe speech is in German.\nThis may help with names and spelling: Anna"
    )
    translation = fake.audio.translations.create(model="fake", file=as_wav(RISING))
    assert "Translate the speech in this audio into English." in translation.text


def test_a_translation_has_openais_shape(fake_server: RunningServer) -> None:
    """Strictly; it is in English, whatever was spoken."""
    with fake_server.http() as http:
        form = {"model": "fake", "language": "de"}
        raw = http.post(TRANSLATIONS, data=form, files={"file": as_wav(RISING)})
        verbose = http.post(
            TRANSLATIONS, data={**form, "response_format": "verbose_json"}, files={"file": as_wav(RISING)}
        )
    Translation.model_validate_json(raw.text, strict=True)
    answer = TranscriptionVerbose.model_validate_json(verbose.text, strict=True)
    assert (verbose.json()["task"], answer.language) == ("translate", "english")


def test_a_cue_is_one_line_of_text(fake: OpenAI) -> None:
    """Whatever the model writes: a blank line would end it, and WebVTT reads markup."""
    options = {"model": "fake", "file": as_wav(RISING), "prompt": "<b>&\n\n00:00 --> x"}
    vtt = fake.audio.transcriptions.create(**options, response_format="vtt")
    assert vtt.endswith("spelling: &lt;b&gt;&amp; 00:00 --&gt; x\n\n")
    assert vtt.splitlines()[2:3] == ["00:00:00.000 --> 00:00:01.200"]
    assert len(vtt.splitlines()) == 5
    srt = fake.audio.transcriptions.create(**options, response_format="srt")
    assert srt.endswith("spelling: <b>& 00:00 --> x\n\n")


def test_a_transcription_is_greedy_and_whole() -> None:
    """Also where the model's own way is to sample, or to refuse long audio."""
    settings = Settings(_env_file=None)
    audio = AudioPart("file", "/a")
    job = build_job(parse_form({"model": ["m"]}), JobId(0, "x"), audio, 10, translate=False, settings=settings)
    assert (job.sampling.temperature, job.long_audio, job.spool_bytes) == (0.0, "chunk", 10)
    told = parse_form({"model": ["m"], "temperature": ["0.5"], "response_format": ["srt"], "long_audio": ["truncate"]})
    job = build_job(told, JobId(0, "x"), audio, 10, translate=True, settings=settings)
    assert (job.sampling.temperature, job.long_audio, job.task) == (0.5, "truncate", Transcribe(None, None, True, True))


async def test_pieces_of_long_audio_are_segments() -> None:
    """A model without timestamps: what it heard at once, from its true beginning to its true end; in pieces, where a
    chat would be refused, unless the operator or the client says otherwise."""
    audio = as_wav(np.full(int(1.8 * RATE), 0.1, np.float32), silence(0.2), np.full(RATE, 0.1, np.float32))
    async with serving("fake:2") as client:
        create = client.audio.transcriptions.create
        answer = await create(model="tiny", file=audio, response_format="verbose_json", language="fr")
        assert [(segment.start, segment.end) for segment in answer.segments] == [
            (0, pytest.approx(1.9, abs=0.1)),
            (pytest.approx(1.9, abs=0.1), 3.0),
        ]
        assert answer.segments[0].end == answer.segments[1].start
        heard = [float(seconds) for seconds in re.findall(r"I heard ([\d.]+) s", answer.text)]
        assert heard == [pytest.approx(each.end - each.start, abs=0.06) for each in answer.segments]
        assert (answer.language, answer.duration) == ("french", 3.0)
        with pytest.raises(openai.BadRequestError, match="at most 2 at once"):
            await create(model="tiny", file=audio, extra_body={"long_audio": "error"})
    async with serving("fake:2", long_audio="error") as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.audio.transcriptions.create(model="tiny", file=audio)
        assert (refused.value.param, refused.value.code) == ("file", "audio_too_long")


async def test_a_class_of_ones_own(tmp_path: Path) -> None:
    """It is asked in words, and knows nothing of tasks; window by window, its segments have their times."""
    source = """
        class Mine:
            sampling_rate = 16_000
            max_seconds = 1.0
            def generate(self, batch):
                return [f"{len(ask.audios[0]) / 16000:.2f} s: {ask.text}" for ask in batch]
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    async with serving(f"{tmp_path}/mine.py:Mine") as client:
        answer = await client.audio.transcriptions.create(
            model="tiny", file=as_wav(RISING), response_format="verbose_json", prompt="Anna"
        )
        first, second = answer.segments
        assert first.text == f"{first.end:.2f} s: {TOLD}\nThis may help with names and spelling: Anna"
        assert (first.start, first.end, second.end) == (0, second.start, pytest.approx(1.2))
        assert (answer.language, first.avg_logprob) == ("unknown", 0)
        with pytest.raises(openai.BadRequestError, match="logprobs"):
            await client.audio.transcriptions.create(model="tiny", file=as_wav(RISING), include=["logprobs"])


async def test_a_cascade_is_transcribed_by_its_ears() -> None:
    """The LLM is not asked; and a chat goes on as before beside it."""
    async with serving("cascade:fake:30,fake") as client:
        answer = await client.audio.transcriptions.create(
            model="tiny", file=as_wav(RISING), response_format="verbose_json"
        )
        assert answer.text == f"I heard 1.2 s. You said: {TOLD}"
        assert [(segment.start, segment.end) for segment in answer.segments] == [(0, pytest.approx(1.2))]
        with pytest.raises(openai.InternalServerError):
            await client.audio.transcriptions.create(model="tiny", file=as_wav(RISING), prompt="#fail=step")
        with pytest.raises(openai.APIStatusError) as late:
            await client.audio.transcriptions.create(
                model="tiny", file=as_wav(RISING), prompt="#delay=0.2", extra_headers={"x-request-timeout": "0.5"}
            )
        assert late.value.status_code == 504


def test_an_english_whisper_says_so(client: OpenAI) -> None:
    """English is fine; another language and a translation are not."""
    assert word_error_rate(JFK, transcribe(client, DATA / "jfk.ogg", language="en").text) == 0
    with pytest.raises(openai.BadRequestError, match="English only") as refused:
        transcribe(client, DATA / "jfk.ogg", language="de")
    assert refused.value.param == "language"
    with pytest.raises(openai.BadRequestError, match="English only"):
        client.audio.translations.create(model="my-model", file=DATA / "jfk.ogg")


@pytest.mark.parametrize("name", ["wav2vec2", "moonshine", "parakeet_tdt"])
async def test_recognisers_that_only_hear(name: str, root: Path) -> None:
    """What would steer them is a 400 that names the field; without, all formats are answered, with true times."""
    async with serving(str(saved(name, root))) as client:
        create = client.audio.transcriptions.create
        for field, value in (("language", "en"), ("prompt", "Anna")):
            with pytest.raises(openai.BadRequestError) as refused:
                await create(model="tiny", file=as_wav(RISING), **{field: value})
            assert refused.value.param == field
        with pytest.raises(openai.BadRequestError) as short:
            await create(model="tiny", file=as_wav(RISING[:100]))
        assert short.value.param == "file"
        with pytest.raises(openai.BadRequestError, match="does not translate"):
            await client.audio.translations.create(model="tiny", file=as_wav(RISING))
        plain = await create(model="tiny", file=as_wav(RISING))
        answer = await create(model="tiny", file=as_wav(RISING), response_format="verbose_json")
        assert answer.text == plain.text != ""
        assert [(each.start, each.end, each.text) for each in answer.segments] == [(0, pytest.approx(1.2), plain.text)]


@pytest.mark.parametrize(
    ("language", "task"), [(None, "transcribe"), ("de", "transcribe"), ("en", "transcribe"), ("de", "translate")]
)
async def test_a_multilingual_whisper_is_told_language_and_task(language: str | None, task: str, root: Path) -> None:
    """By its tokens, token for token; what it tells of the language itself, the client is told."""
    directory = saved("whisper", root)
    async with serving(str(directory)) as client:
        at = client.audio.translations if task == "translate" else client.audio.transcriptions
        extra = {"language": language} if language else {}
        answer = await at.create(model="tiny", file=as_wav(RISING), extra_body=extra)
        verbose = await at.create(model="tiny", file=as_wav(RISING), response_format="verbose_json", extra_body=extra)
        with pytest.raises(openai.BadRequestError, match="does not know `fr`") as refused:
            await at.create(model="tiny", file=as_wav(RISING), extra_body={"language": "fr"})
    spoken_language, expected = expected_of(directory, language, task)
    assert answer.text.startswith(expected)
    assert answer.finish_reason == "length"  # of random weights; OpenAI has no word for it
    told = {"en": "english", "de": "german"}[spoken_language] if task == "transcribe" else "english"
    assert verbose.language == told
    assert refused.value.param == "language"


def expected_of(directory: Path, language: str | None, task: str) -> tuple[str, str]:
    """The language of the clip, and the beginning of what transformers' greedy loop writes of it."""
    module = transformers.WhisperForConditionalGeneration.from_pretrained(directory).eval()
    processor = transformers.AutoProcessor.from_pretrained(directory)
    heard, _ = soundfile.read(io.BytesIO(as_wav(RISING)), dtype="float32")
    features = processor(heard, sampling_rate=RATE, return_tensors="pt").input_features
    config = module.generation_config
    token = f"<|{language}|>" if language else processor.tokenizer.decode(module.detect_language(features))
    start = [config.decoder_start_token_id, config.lang_to_id[token], config.task_to_id[task]]
    prompt = torch.tensor([[*start, config.no_timestamps_token_id]])
    times = range(config.no_timestamps_token_id + 1, module.config.vocab_size)
    ids = GenerationMixin.generate(
        module,
        features,
        decoder_input_ids=prompt,
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[*config.suppress_tokens, *times],
    )
    text = processor.tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)
    return token[2:-2], text.lstrip().rstrip("\ufffd")


@pytest.fixture
def _short_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying processors with ten minutes takes seconds."""
    monkeypatch.setattr("models.hf_chat.HORIZON_S", 45)


@pytest.mark.usefixtures("_short_horizon")
@pytest.mark.parametrize(("name", "options"), [("glmasr", {}), ("qwen3_asr", {}), ("qwen3_asr", {"language": "de"})])
async def test_a_chat_model_is_asked_as_its_processor_asks(name: str, options: dict[str, str], root: Path) -> None:
    """Its own request for a transcription, token for token; in words where that cannot say all."""
    directory = saved(name, root)
    processor = transformers.AutoProcessor.from_pretrained(directory)
    config = transformers.AutoConfig.from_pretrained(directory)
    module = getattr(transformers, config.architectures[0]).from_pretrained(directory).eval()
    heard, _ = soundfile.read(io.BytesIO(as_wav(RISING)), dtype="float32")
    inputs = processor.apply_transcription_request(heard, **options)
    ids = GenerationMixin.generate(
        module, **inputs, max_new_tokens=12, do_sample=False, suppress_tokens=[processor.audio_token_id]
    )[0, inputs["input_ids"].shape[1] :]
    expected = processor.tokenizer.decode(ids, skip_special_tokens=True)
    async with serving(str(directory), kv_tokens=400, max_rows=1) as client:
        answer = await client.audio.transcriptions.create(model="tiny", file=as_wav(RISING), **options)
        assert answer.usage.input_tokens == inputs["input_ids"].shape[1]
        assert answer.text.startswith(expected.rstrip("\ufffd"))
        words = await client.audio.transcriptions.create(model="tiny", file=as_wav(RISING), prompt="Anna", **options)
        assert words.usage.input_tokens > answer.usage.input_tokens


@pytest.mark.usefixtures("_short_horizon")
async def test_voxtral_is_told_the_language(root: Path) -> None:
    """Mistral's transcription request has tokens of its own."""
    async with serving(str(saved("voxtral", root)), kv_tokens=1000, max_rows=1) as client:
        create = client.audio.transcriptions.create
        plain, told = [
            (await create(model="tiny", file=as_wav(RISING), **options)).usage.input_tokens
            for options in ({}, {"language": "en"})
        ]
        in_words = (await create(model="tiny", file=as_wav(RISING), prompt="A")).usage.input_tokens
        assert plain < told < in_words
        with pytest.raises(openai.BadRequestError) as refused:
            await create(model="tiny", file=as_wav(RISING), language="yue")
        assert refused.value.param == "language"


# -------------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"language": "german"}, "language"),
        ({"language": "xx"}, "language"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "1.1"}, "temperature"),
        ({"temperature": "-0.1"}, "temperature"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"include[]": "logprobs", "response_format": "text"}, "include"),
        ({"include": "words"}, "include[0]"),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities"),
        (
            {"timestamp_granularities": ["segment", "word"], "response_format": "verbose_json"},
            "timestamp_granularities[1]",
        ),
        ({"chunking_strategy": "none"}, "chunking_strategy"),
        ({"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.5"}, "chunking_strategy"),
        ({"chunking_strategy": '{"type":'}, "chunking_strategy"),
        ({"language": ["de", "en"]}, "language"),
        ({"keywords[]": ["Anna", "Berta"]}, "keywords"),
        ({"keywords": "Anna"}, "keywords"),
        ({"languages[]": "de"}, "languages"),
    ],
    ids=str,
)
def test_what_is_wrong_is_a_400_that_names_the_field(fake_server: RunningServer, fields: dict, param: str) -> None:
    """And never repeats the input."""
    with fake_server.http() as http:
        answer = http.post(PATH, data={"model": "fake", **fields}, files={"file": as_wav(RISING)})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert "`" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"language": "", "prompt": "", "temperature": "", "response_format": ""},
        {"temperature": "0", "stream": "False", "user": "me", "known_speaker_names[]": "Anna"},
        {"keywords[]": "", "languages[]": ["", ""]},
        {"chunking_strategy": "auto"},
        {"chunking_strategy": '{"type": "server_vad"}'},
        {"chunking_strategy[type]": "server_vad"},
        {"timestamp_granularities": "segment", "response_format": "verbose_json"},
        {"timestamp_granularities[]": "segment", "response_format": "verbose_json"},
    ],
    ids=str,
)
def test_what_clients_send(fake_server: RunningServer, fields: dict) -> None:
    """Empty fields count as not given, lists come with and without brackets, unknown fields are ignored."""
    with fake_server.http() as http:
        answer = http.post(PATH, data={"model": "fake", **fields}, files={"file": as_wav(RISING)})
    assert answer.status_code == 200
    assert answer.json()["text"] == f"I heard 1.2 s. You said: {TOLD}"


def test_open_webuis_json(whisper_server: RunningServer) -> None:
    """Base64 instead of a file, to the same path; strict like a chat's JSON."""
    body = {"model": "my-model", "language": "en", "input_audio": {"data": as_base64("jfk.mp3"), "format": "mp3"}}
    assert len(body["input_audio"]["data"]) > INLINE_BYTES
    with whisper_server.http() as http:
        answer = http.post(PATH, json=body)
        assert word_error_rate(JFK, answer.json()["text"]) == 0
        wrong = [
            ({"model": "my-model"}, "input_audio"),
            ({**body, "temperature": "0"}, "temperature"),
            ({**body, "input_audio": {"data": "%%%"}}, "input_audio.data"),
        ]
        for request, param in wrong:
            refused = http.post(PATH, json=request)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_other_refusals(fake: OpenAI, fake_server: RunningServer) -> None:
    """The same table as for chats: 404 for another model, 415 for another type, 400 for what is no audio."""
    with pytest.raises(openai.NotFoundError) as unknown:
        fake.audio.transcriptions.create(model="whisper-1", file=as_wav(RISING))
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as noise:
        fake.audio.transcriptions.create(model="fake", file=b"no audio at all, but some words")
    assert (noise.value.param, noise.value.code) == ("file", "invalid_audio")
    with fake_server.http() as http:
        assert http.post(PATH, content=b"x", headers={"content-type": "audio/wav"}).status_code == 415
        assert http.get(PATH).status_code == 405


# --------------------------------------------------------------------------------------------------------------- forms


def part(name: str, data: bytes, headers: str = "") -> bytes:
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n{headers}\r\n'
    return head.encode() + data + b"\r\n"


MODEL, FILE, END = part("model", b"fake"), part("file", as_wav(RISING)), b"--b--\r\n"


@pytest.mark.parametrize(
    ("body", "status", "param", "told"),
    [
        (MODEL + END, 400, "file", "missing"),
        (FILE + END, 400, "model", "missing"),
        (MODEL + part("file", b"") + END, 400, "file", "empty"),
        (MODEL + FILE + FILE + END, 400, "file", "more than one"),
        (MODEL + part("file", b"x" * 100_001) + END, 400, "file", "100000 bytes"),
        (MODEL + FILE + part("user", b"x") * (MAX_PARTS - 1) + END, 400, None, f"{MAX_PARTS} parts"),
        (MODEL + FILE + part("user", b"x" * (MAX_FIELD_BYTES + 1)) + END, 400, "user", f"{MAX_FIELD_BYTES} bytes"),
        (MODEL + part("file", b"x", f"X-A: {'x' * 10_000}\r\n") + END, 400, None, "not a valid"),
        (MODEL + part("file", b"x", "X-A: x\r\n" * 100) + END, 400, None, "not a valid"),
        (MODEL + FILE + part("prompt", b"\xff") + END, 400, "prompt", "UTF-8"),
        (MODEL + FILE + b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n" + END, 400, None, "no name"),
        (MODEL + FILE[:-100], 400, None, "breaks off"),
        (MODEL + FILE, 400, None, "breaks off"),
        (b"", 400, None, "breaks off"),
        (b"no form", 400, None, "not a valid"),
        (MODEL + part("user", b"x" * 1000) + FILE + b"x" * 400_000, 413, None, "400000"),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, bytes) else "",
)
async def test_forms_that_are_refused(body: bytes, status: int, param: str | None, told: str) -> None:
    """In our envelope; and nothing is left of them, neither files nor bytes that count."""
    async with form_server() as (server, http):
        answer = await http.post(PATH, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (status, param)
        assert told in error["message"]
        assert_nothing_is_left(server)


@asynccontextmanager
async def form_server() -> AsyncIterator[tuple[InProcess, httpx.AsyncClient]]:
    """One with small bounds."""
    bounds = {"max_audio_bytes": 100_000, "max_body_bytes": 400_000}
    async with run_in_process(**bounds) as server, server.http() as http:
        yield server, http


def assert_nothing_is_left(server: InProcess) -> None:
    assert not list(server.spool.directory.glob("*.audio"))
    assert server.routes.reception._room.held == 0


@pytest.mark.parametrize("header", ["multipart/form-data", "multipart/form-data; boundary=" + "b" * 300])
async def test_a_form_without_a_boundary(header: str) -> None:
    """Is no form."""
    async with form_server() as (server, http):
        answer = await http.post(PATH, content=MODEL + FILE + END, headers={"content-type": header})
        assert answer.status_code == 400
        assert "boundary" in answer.json()["error"]["message"]
        assert_nothing_is_left(server)


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
async def test_a_form_may_come_in_any_pieces(size: int) -> None:
    """The file is what was sent, and gone when the answer is there; fields may stand behind it."""
    body = FILE + MODEL + part("prompt", "Ä".encode()) + END

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async with form_server() as (server, http):
        headers = {"content-type": 'Multipart/Form-Data; boundary="b"'}
        answer = await http.post(PATH, content=pieces(), headers=headers)
        assert answer.json()["text"].startswith("I heard 1.2 s.")
        assert answer.json()["text"].endswith("Ä")
        await server.settled()
        assert_nothing_is_left(server)


async def test_a_large_file_is_written_while_it_comes() -> None:
    """Before its end is here, most of it is in the spool, and nothing of it when the client leaves."""
    body = MODEL + part("file", b"x" * 3_000_000)
    async with run_in_process() as server:
        sizes: list[int] = []

        async def receive() -> dict:
            if not body[len(sizes) * 65_536 :]:
                return {"type": "http.disconnect"}
            start = len(sizes) * 65_536
            sizes.append(sum(path.stat().st_size for path in server.spool.directory.glob("*.audio")))
            return {"type": "http.request", "body": body[start : start + 65_536], "more_body": True}

        async def send(message: dict) -> None:
            raise AssertionError(f"nobody is there to be told {message}")

        headers = [(b"content-type", b"multipart/form-data; boundary=b")]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
        await server.app({**scope, "root_path": "", "scheme": "http", "http_version": "1.1"}, receive, send)
        assert max(sizes) > 2_500_000
        assert_nothing_is_left(server)


async def test_a_job_that_is_cancelled_leaves_no_file() -> None:
    """A client that goes while its audio is being answered."""
    async with run_in_process() as server, server.http() as http:
        form = {"data": {"model": "fake", "prompt": "#tokens=50 #delay=0.1"}, "files": {"file": as_wav(RISING)}}
        asking = asyncio.ensure_future(http.post(PATH, **form))
        await until(lambda: server.body._live)
        (file,) = server.spool.directory.glob("*.audio")
        assert server.routes.reception._room.held > file.stat().st_size == len(as_wav(RISING))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await server.settled()
        assert_nothing_is_left(server)
