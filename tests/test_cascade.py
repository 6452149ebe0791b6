"""A cascade of two models: what one hears, the other answers."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from openai import AsyncOpenAI

from config import Settings
from engine.batching import BatchEngine
from engine.engine import Engine
from engine.rows import EngineOptions
from errors import BadRequest
from models.base import Clip, Conversation, Prompt, Question, TextModel, Turn
from models.fake import FakeModel
from tests.support.inprocess import run_in_process
from tests.support.speech import CLIPS, JFK, LONG, RATE, input_audio, user, wav, word_error_rate
from tests.support.waiting import LIMIT_S
from wire import (
    AudioPart,
    Capabilities,
    Delta,
    Failed,
    Finished,
    Heard,
    Job,
    JobId,
    Message,
    Sampling,
    Structure,
    TextPart,
)
from worker.cascade import (
    CUT_OFF,
    INSTRUCTION,
    NO_SPEECH,
    WAIT_S,
    CascadeEngine,
    ClipId,
    split_settings,
    with_transcripts,
)
from worker.serving import load

HEARD = Heard(2, 5.0, 4.0)
ENDLESS = "#tokens=100000"


def clip(*words: str) -> Clip:
    """A clip in which these words are said, one window each: the models of this file read its samples as letters."""
    return Clip(tuple(np.frombuffer(each.encode(), np.uint8).astype(np.float32) for each in words))


def words_of(window: np.ndarray) -> str:
    return window.astype(np.uint8).tobytes().decode()


class Ears(FakeModel):
    """Does what it hears: "#say=no" is a clip in which somebody says no."""

    max_new_tokens: int | None = None

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        ((heard, _),) = (turn.parts for turn in conversation)
        scripts = [super(Ears, self).prepare((Turn("user", (words_of(each),)),)) for each in heard.windows]
        window = {} if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens}
        return [replace(script, lead=" ", **window) for (script,) in scripts]


class BatchEars(TextModel):
    """Says what it hears, for two clips at once; and then breaks down where that is "crash"."""

    capabilities = Capabilities(16_000, None, "error", "dynamic", max_clips=1)
    max_batch_size = 2

    def setup(self, device: str, dtype: str) -> None:
        self.asked: list[Conversation] = []

    def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
        self.asked += [question.conversation for question in questions]
        said = [words_of(question.conversation[0].parts[0].windows[0]) for question in questions]
        yield said
        assert "crash" not in said


class Llm(FakeModel):
    """Remembers what it was asked; while `free` is cleared, its prompts are not ready."""

    def setup(self, device: str, dtype: str) -> None:
        super().setup(device, dtype)
        self.asked: list[Conversation] = []
        self.free = threading.Event()
        self.free.set()

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        self.asked.append(conversation)
        assert self.free.wait(LIMIT_S)
        return super().prepare(conversation)


class Run:
    """A cascade, stepped by hand, and what it tells."""

    def __init__(self, ears: FakeModel | TextModel | None = None, max_rows: int = 4) -> None:
        ears = ears or Ears()
        self.llm = Llm()
        for model in (ears, self.llm):
            model.setup("cpu", "auto")
        options = EngineOptions(max_rows=max_rows)
        self.ears = BatchEngine(ears) if isinstance(ears, TextModel) else Engine(ears, options)
        self.answering = Engine(self.llm, options)
        self.engine = CascadeEngine(self.ears, self.answering)
        self.texts: dict[tuple[str, int], str] = defaultdict(str)
        self.ends: dict[tuple[str, int], Finished] = {}
        self.failed: dict[str, Failed] = {}

    def ask(
        self,
        key: str,
        *turns: Sequence[str | Clip],
        structure: Structure | None = None,
        deadline: float | None = None,
        priority: int = 0,
        **sampling: object,
    ) -> JobId:
        """User turns, of texts and clips."""
        job = Job(
            JobId(0, key),
            tuple(Message("user", tuple(_part(part, i, j) for j, part in enumerate(t))) for i, t in enumerate(turns)),
            Sampling(**sampling),
            structure=structure,
            deadline=deadline,
            priority=priority,
        )
        conversation = tuple(Turn("user", tuple(turn)) for turn in turns)
        requests = self.engine.requests
        self.engine.submit(requests.prepare(job, conversation, HEARD, requests.compile(job)))
        return job.id

    def step(self, now: float = 0.0) -> None:
        for event in (*self.engine.expire(now), *self.engine.admit(), *self.engine.decode()):
            assert type(event.job_id) is JobId, "ids of clips stay inside"
            key = event.job_id.key
            if isinstance(event, Delta):
                self.texts[key, event.choice] += event.text
            elif isinstance(event, Finished):
                assert (key, event.choice) not in self.ends, "a choice ends once"
                self.ends[key, event.choice] = event
            else:
                assert key not in self.failed, "a request fails once"
                self.failed[key] = event

    def steps_until(self, condition: object) -> None:
        limit = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < limit, "it does not come to that"
            self.step()

    def finish(self) -> None:
        self.steps_until(lambda: self.engine.idle)

    def is_hearing(self) -> bool:
        return not self.ears.idle

    def is_preparing(self) -> bool:
        return self.ears.idle and not self.llm.free.is_set() and bool(self.llm.asked)

    def is_answering(self) -> bool:
        return any(self.texts.values())


def _part(part: str | Clip, message: int, index: int) -> TextPart | AudioPart:
    return (
        TextPart(part) if isinstance(part, str) else AudioPart(f"messages[{message}].content[{index}]", path="spooled")
    )


def in_phase(run: Run, phase: str, **options: object) -> JobId:
    """A job that has come so far and would go no further by itself, and one behind it."""
    if phase == "preparing":
        run.llm.free.clear()
    says = (ENDLESS, ENDLESS) if phase == "hearing" else ("#say=one", "#say=two")
    id_ = run.ask("job", [clip(says[0]), clip(says[1]), ENDLESS], **options)
    run.steps_until(getattr(run, f"is_{phase}"))
    return id_


PHASES = ("hearing", "preparing", "answering")


def assert_goes_on(run: Run) -> None:
    """Nothing is left of what was, and the next job is answered."""
    assert run.engine.idle
    assert run.ears.idle
    assert run.answering.idle
    run.llm.free.set()
    run.ask("next", [clip("#say=still_here")])
    run.finish()
    assert run.texts["next", 0] == "I heard nothing. You said: still here"


# ---------------------------------------------------------------------------------------------------------- transcripts


def test_transcripts_stand_in_the_places_of_their_clips() -> None:
    """Two turns and three clips, one of them much slower than those behind it; the other texts stay as they are."""
    run = Run()
    run.ask(
        "job",
        ["First: ", clip("#tokens=30"), "What was that?"],
        ["And", " now?"],
        [clip("#say=yes"), clip("#say=and_no")],
    )
    run.finish()
    (conversation,) = run.llm.asked
    assert [turn.parts for turn in conversation] == [
        ("First: abcdefghijklmnopqrstuvwxyzabcd\nWhat was that?",),
        ("And", " now?"),
        ("yes\nand no",),
    ]
    assert run.texts["job", 0] == "I heard nothing. You said: yes\nand no"


def test_the_usage_is_the_llms_and_the_audio_is_the_jobs() -> None:
    """What was heard is told in seconds; no token of the LLM's stands for audio."""
    run = Run()
    run.ask("job", [clip("#say=hello")])
    run.finish()
    usage = run.ends["job", 0].usage
    assert usage.heard == HEARD
    assert (usage.prompt_tokens, usage.audio_tokens) == (len("hello"), 0)
    assert usage.completion_tokens == len(run.texts["job", 0])


def test_a_long_clip_is_one_transcript() -> None:
    """The windows that it comes in are joined."""
    run = Run()
    run.ask("job", [clip("#say=one_two", "#say=three", "#say=four"), "?"])
    run.finish()
    assert run.texts["job", 0].endswith("You said: one two three four\n?")


def test_silence_is_told_as_such() -> None:
    """An empty message would be a riddle."""
    run = Run()
    run.ask("job", [clip("#tokens=0"), clip("#say=_"), "What did I say?"])
    run.finish()
    assert run.texts["job", 0].endswith(f"You said: {NO_SPEECH}\n{NO_SPEECH}\nWhat did I say?")


def test_a_transcript_that_was_cut_off_is_told_as_such(caplog: pytest.LogCaptureFixture) -> None:
    """The LLM is not to take half a sentence for all that was said, and the operator is to know."""
    ears = Ears()
    ears.max_new_tokens = 4
    run = Run(ears)
    run.ask("job", [clip("#say=hello"), clip("#say=yes", "#say=no"), "?"])
    run.finish()
    assert run.llm.asked[0][0].parts == (f"hell{CUT_OFF}\nyes no\n?",)
    assert ["clip 0" in line for line in caplog.messages if "cut off" in line] == [True]


def test_ears_that_could_chat_are_told_to_transcribe() -> None:
    """They would answer what they hear otherwise. The words behind the clip are the same for every model."""
    ears = BatchEars()
    run = Run(ears)
    run.ask("job", ["Be brief.", clip("hello"), "What was that?"])
    run.finish()
    (conversation,) = ears.asked
    ((role, (heard, text)),) = [(turn.role, turn.parts) for turn in conversation]
    assert (role, words_of(heard.windows[0]), text) == ("user", "hello", INSTRUCTION)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("a", "b", Clip(())), "ab\nT0"),
        ((Clip(()), "", "b"), "T0\nb"),
        (("a ", Clip(()), "\nb"), "a T0\nb"),
        ((Clip(()), "a", "b", Clip(()), Clip(())), "T0\nab\nT1\nT2"),
    ],
)
def test_lines_end_around_transcripts_only(parts: tuple[str | Clip, ...], text: str) -> None:
    """Where no blank stands yet; the client's own parts are joined as ever."""
    (turn,) = with_transcripts((Turn("user", parts),), [f" T{i} " for i in range(3)])
    assert turn.parts == (text,)


def test_a_job_without_audio_is_the_llms() -> None:
    """The ears never learn of it."""
    run = Run()
    run.ask("job", ["hello"])
    assert run.ears.idle
    run.finish()
    assert run.texts["job", 0] == "I heard nothing. You said: hello"


def test_a_model_that_gives_text_can_be_the_ears() -> None:
    """In batches; the cascade batches no better than the worse of the two, and more clips than it hears in one
    conversation are none too many."""
    run = Run(BatchEars())
    assert run.engine.batching[0] == "dynamic"
    assert "up to 2 requests" in run.engine.batching[1]
    assert "row by row" in run.engine.batching[1]
    for i in range(5):
        run.ask(f"job{i}", [clip(f"this is {i}"), clip("and that")])
    run.finish()
    assert all(run.texts[f"job{i}", 0].endswith(f"this is {i}\nand that") for i in range(5))


# ------------------------------------------------------------------------------------------------- what the LLM brings


def test_choices_share_one_hearing() -> None:
    """Each answers the same transcript, as often as asked."""
    run = Run()
    run.ask("job", [clip("#say=hello"), "#random #tokens=20"], n=2, seed=1, temperature=1.0)
    run.finish()
    assert len(run.llm.asked) == 1
    assert len(run.ends) == 2
    assert run.texts["job", 0] != run.texts["job", 1]


def test_a_structure_binds_the_llm_and_not_the_ears() -> None:
    """The ears hear what is said; the answer is one of those allowed, however much more the LLM would say."""
    run = Run()
    structure = Structure("choice", "structured_outputs.choice", choices=("yes", "no"))
    run.ask("job", [clip("#say=maybe")], structure=structure)
    run.finish()
    assert run.llm.asked[0][0].parts == ("maybe",)
    assert run.texts["job", 0] in ("yes", "no")


def test_a_stop_string_and_a_limit_are_for_the_answer() -> None:
    """The transcript may hold the one and exceed the other."""
    run = Run()
    run.ask("job", [clip("#say=we_said_stop_here")], stop=("said:",))
    run.ask("short", [clip("#say=we_said_stop_here")], max_tokens=3)
    run.finish()
    assert "we said stop here" in run.llm.asked[0][0].parts[0]
    assert (run.texts["job", 0], run.ends["job", 0].reason) == ("I heard nothing. You ", "stop")
    assert (run.texts["short", 0], run.ends["short", 0].reason) == ("I h", "length")


def test_many_jobs_at_once_each_get_their_own_transcripts() -> None:
    """With fewer rows than clips, in both models."""
    run = Run(max_rows=3)
    for i in range(20):
        run.ask(f"job{i}", [clip(f"#say=this_is_{i}"), clip("#tokens=" + str(i)), "?"])
    run.finish()
    for i in range(20):
        letters = "abcdefghijklmnopqrstuvwxyz"[:i] or NO_SPEECH
        assert run.texts[f"job{i}", 0] == f"I heard nothing. You said: this is {i}\n{letters}\n?"


def test_the_urgent_are_heard_first() -> None:
    """A clip has its job's priority."""
    run = Run(max_rows=1)
    for key, priority in (("first", 0), ("later", 1), ("sooner", -1)):
        run.ask(key, [clip(f"#say={key}")], priority=priority)
    run.finish()
    assert [conversation[0].parts[0] for conversation in run.llm.asked] == ["sooner", "first", "later"]


def test_audio_does_not_wait_for_the_llm() -> None:
    """An hour of it is 200 MB; what is kept until the prompt is made are the places of the clips."""
    conversation = (Turn("user", (clip("#say=hello"), "and?")),)
    request = Run().engine.requests.prepare(Job(JobId(0, "job"), (), Sampling()), conversation, HEARD, None)
    assert [part.windows for turn in request.conversation for part in turn.parts if isinstance(part, Clip)] == [()]


# ------------------------------------------------------------------------------------------------ cancelled and overdue


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_job_leaves_nothing(phase: str) -> None:
    """Whatever it was at: rows and waiting clips are free, nothing more is told, and others go on."""
    run = Run(max_rows=1)
    id_ = in_phase(run, phase)
    told = dict(run.texts)
    run.engine.cancel(JobId(0, "somebody else's"))
    assert not run.engine.idle
    run.engine.cancel(id_)
    assert_goes_on(run)
    assert {key: text for key, text in run.texts.items() if key[0] == "job"} == told
    assert not run.failed
    assert not [key for key in run.ends if key[0] == "job"]


@pytest.mark.parametrize("phase", PHASES)
def test_an_overdue_job_fails_once(phase: str) -> None:
    """Whatever it was at, with one failure for all of its clips."""
    run = Run(max_rows=1)
    in_phase(run, phase, deadline=10.0)
    run.step(now=9.0)
    assert not run.failed
    run.step(now=10.0)
    assert run.failed["job"].kind == "DeadlineExceeded"
    assert_goes_on(run)


@pytest.mark.parametrize("phase", PHASES)
def test_a_reset_forgets_all(phase: str) -> None:
    """As after a step that failed."""
    run = Run()
    in_phase(run, phase)
    run.engine.reset()
    assert_goes_on(run)


def test_a_prompt_that_nobody_wants_any_more_is_not_made() -> None:
    """Where its thread has not begun with it."""
    run = Run()
    run.llm.free.clear()
    ids = [run.ask(f"job{i}", [clip(f"#say={i}")]) for i in range(6)]
    run.steps_until(run.is_preparing)
    for id_ in ids:
        run.engine.cancel(id_)
    assert_goes_on(run)
    assert len(run.llm.asked) < 6


def test_waiting_for_a_prompt_is_not_spinning() -> None:
    """There is nothing else to do, and cores are for the thread that makes it; running answers are not held up."""
    run = Run()
    in_phase(run, "preparing")
    began = time.monotonic()
    run.engine.decode()
    assert time.monotonic() - began > 0.9 * WAIT_S
    run.llm.free.set()
    run.steps_until(run.is_answering)
    assert run.texts["job", 0]


def test_others_are_answered_while_one_is_prepared() -> None:
    """Its text may be long."""
    run = Run()
    in_phase(run, "preparing")
    run.ask("other", [clip(ENDLESS)])
    run.steps_until(run.is_hearing)
    assert not run.engine.idle
    run.engine.cancel(JobId(0, "other"))
    run.engine.cancel(JobId(0, "job"))
    assert_goes_on(run)


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("fault", ["prefill", "nan"])
def test_a_clip_that_fails_fails_its_job_alone(fault: str) -> None:
    """Under the job's own id, with the clips beside it dropped."""
    run = Run()
    run.ask("job", [clip(f"#tokens=9 #fail={fault}"), clip(ENDLESS)])
    run.steps_until(lambda: run.failed)
    assert run.failed["job"].kind == "InternalError"
    assert not run.llm.asked
    assert_goes_on(run)


def test_two_clips_that_fail_in_one_step_fail_their_job_once() -> None:
    """The worker counts its jobs' ends."""
    run = Run(BatchEars())
    run.ask("job", [clip("crash"), clip("crash")])
    run.steps_until(lambda: run.failed)
    assert run.engine.idle
    assert not run.llm.asked


def test_a_step_of_the_ears_that_raises_is_the_workers_to_handle() -> None:
    """As any engine's: it resets the cascade, which goes on."""
    run = Run()
    run.ask("job", [clip("#tokens=9 #fail=step")])
    with pytest.raises(RuntimeError, match="decode step"):
        run.finish()
    run.engine.reset()
    assert_goes_on(run)


@pytest.mark.parametrize(("order", "kind"), [("#bad", "BadRequest"), ("#fail=prepare", "InternalError")])
def test_a_prompt_that_cannot_be_made_fails_its_job_alone(order: str, kind: str) -> None:
    """What the LLM refuses, the client did wrong; what it raises else is the server's, and says nothing of it."""
    run = Run()
    run.ask("job", [clip("#say=hello"), order])
    run.ask("other", [clip("#say=hello")])
    run.finish()
    assert run.failed["job"].kind == kind
    assert "fake" not in run.failed["job"].message or kind == "BadRequest"
    assert "other" not in run.failed
    assert_goes_on(run)


def test_a_clip_that_the_ears_refuse_is_named() -> None:
    """By the place where the client wrote it, and before anything is heard."""
    run = Run()
    with pytest.raises(BadRequest, match=r"`messages\[1\]\.content\[2\]`: The fake model was told") as caught:
        run.ask("job", [clip("#say=hello")], ["and", clip("#say=hello"), clip("#bad")])
    assert caught.value.param == "messages[1].content[2]"
    assert_goes_on(run)


def test_no_client_can_name_a_clip() -> None:
    """An id that looks like a clip's is a job's."""
    assert ClipId(0, "a", 1) != JobId(0, "a")
    assert ClipId(0, "a", 1) != ClipId(0, "a", 2)
    assert ClipId(0, "a", 1) != JobId.parse(str(ClipId(0, "a", 1)))


# ------------------------------------------------------------------------------------------------------------- loading


def settings(**options: object) -> Settings:
    return Settings(_env_file=None, **options)


@pytest.mark.parametrize("name", ["a", "a,", ",b", "a,b,c", "", "a,cascade:b"])
def test_a_name_that_is_no_cascade_says_how_one_is_written(name: str) -> None:
    """Rather than to be looked for on the hub."""
    with pytest.raises(ValueError, match="cascade:ASR,LLM"):
        load(settings(model=f"cascade:{name}"), "cpu")


def test_ears_that_are_deaf_are_refused(tmp_path: Path) -> None:
    """The LLM would answer something that nobody said. They are, before the LLM takes its time to load."""
    path = tmp_path / "mine.py"
    path.write_text("class Reads:\n  sampling_rate, max_clips = 16_000, 0\n  def generate(self, batch): return ['']\n")
    with pytest.raises(ValueError, match=r"mine\.py:Reads reads text only, and cannot be the ears of a cascade"):
        load(settings(model=f"cascade:{path}:Reads,/no/such/llm"), "cpu")


def test_both_share_the_device_and_the_llm_has_the_rest() -> None:
    """Memory is halved; what is said of a checkpoint is not said of the ears."""
    ears, llm = split_settings(
        settings(
            model="cascade:whisper-tiny.en, some/llm",
            dtype="float16",
            device_map="auto",
            quantization="int8",
            adapter="lora",
            revision="main",
            trust_remote_code=True,
            kv_tokens=1000,
        )
    )
    assert (ears.model, llm.model) == ("whisper-tiny.en", "some/llm")
    assert [(each.dtype, each.device_map, each.workers_per_device) for each in (ears, llm)] == [
        ("float16", "auto", 2)
    ] * 2
    assert (llm.quantization, llm.adapter, llm.revision, llm.kv_tokens) == ("int8", "lora", "main", 1000)
    assert (ears.quantization, ears.adapter, ears.revision, ears.kv_tokens) == (None,) * 4
    assert llm.trust_remote_code
    assert not ears.trust_remote_code
    assert (ears.encoder_cache_mb, llm.prefix_cache_mb) == (256, 256)
    assert (ears.prefix_cache_mb, llm.encoder_cache_mb) == (0, 0)


def test_it_takes_the_audio_that_the_ears_take() -> None:
    """However many clips, each being asked alone."""
    takes = load(settings(model="cascade:whisper-tiny.en,fake"), "cpu").capabilities
    assert (takes.sampling_rate, takes.max_seconds_per_window, takes.long_audio) == (16_000, 30, "chunk")
    assert (takes.max_clips, takes.batching) == (None, "continuous")
    assert "wav" in takes.formats


# ------------------------------------------------------------------------------------------------ speech, over the wire

NAME = "cascade:whisper-tiny.en,fake"
ANSWER = "I heard nothing. You said: "


async def test_the_words_of_real_speech_reach_the_llm() -> None:
    """Whole and streamed, short and long, several at once; the answer repeats the transcript."""
    spoken = [next(each for each in CLIPS if each.name == name) for name in ("jfk.ogg", "austen-0870.wav")]
    async with run_in_process(model=NAME) as server, server.http() as http:
        client = AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)
        for each in (*spoken, LONG):
            answer = await client.chat.completions.create(model=NAME, messages=user(input_audio(each.name)))
            said = answer.choices[0].message.content.removeprefix(ANSWER)
            assert word_error_rate(each.text, said) <= each.wer + 3
            assert answer.usage.audio["seconds_used"] == pytest.approx(each.seconds, abs=0.1)
            assert answer.usage.prompt_tokens_details.audio_tokens == 0
        parts = user("Listen:", input_audio("jfk.webm"), "Who is being addressed?")
        stream = await client.chat.completions.create(model=NAME, messages=parts, stream=True)
        deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert len(deltas) > 10
        before, transcript, after = "".join(deltas).removeprefix(ANSWER).split("\n")
        assert (before, after) == ("Listen:", "Who is being addressed?")
        assert word_error_rate(JFK, transcript) == 0


async def test_real_silence_and_text_alone() -> None:
    """The LLM is told of the one, and has no need of audio for the other."""
    async with run_in_process(model=NAME) as server, server.http() as http:
        client = AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http)
        for parts, text in (([wav(np.zeros(5 * RATE, np.float32))], NO_SPEECH), (["hello"], "hello")):
            answer = await client.chat.completions.create(model=NAME, messages=user(*parts))
            assert answer.choices[0].message.content == ANSWER + text
