"""A user's own class behind `--model path/to/file.py:Class`: its four shapes, what is wrong with others, and the
template."""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import openai
import pytest
import torch

from errors import BadRequest
from models import registry
from models.base import Clip, Conversation, Question, TextModel, Turn
from models.custom import load_class
from tests.support.inprocess import run_in_process
from tests.support.servers import ROOT, RunningServer, run_server
from tests.support.speech import DATA, JFK, LONG, input_audio, user, wav, word_error_rate
from tests.support.tiny_models import AUDIO, END, build, greedy
from tests.support.waiting import until
from wire import Sampling

CHAT = "/v1/chat/completions"
SECOND = np.ones(16_000, np.float32)


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file's import adds is gone after each test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def written(directory: Path, source: str, name: str = "mine.py") -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(source))
    return path


def loaded(directory: Path, source: str) -> object:
    """The model of a file's class `Mine`, set up."""
    model = load_class(f"{written(directory, source)}:Mine")
    model.setup("cpu", "float32")
    return model


def said(*parts: str | Clip) -> Conversation:
    return (Turn("user", parts),)


def pieces(model: TextModel, *conversations: Conversation, **sampling: object) -> list[Sequence[str | None]]:
    return list(model.generate([Question(each, Sampling(**sampling)) for each in conversations]))


# -------------------------------------------------------------------------------------------------- files and classes


def test_a_file_may_import_its_neighbours_and_ours(tmp_path: Path) -> None:
    """And two files of one name are two modules."""
    written(tmp_path, "RATE = 8_000", "neighbour_of_mine.py")
    source = """
        from errors import BadRequest
        from neighbour_of_mine import RATE

        class Mine:
            sampling_rate = RATE
            def generate(self, batch): return [type(self).__module__]
    """
    (tmp_path / "other").mkdir()
    first, second = loaded(tmp_path, source), loaded(tmp_path / "other", source)
    assert first.capabilities.sampling_rate == 8_000
    assert pieces(first, said("x")) != pieces(second, said("x"))


def test_the_registry_knows_files(tmp_path: Path) -> None:
    """By their ending."""
    source = """
        class Mine:
            sampling_rate = 16_000
            def generate(self, batch): return "x"
    """
    model = registry.create(f"{written(tmp_path, source)}:Mine")
    assert isinstance(model, TextModel)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With its whole path."""
    with pytest.raises(FileNotFoundError, match=f"no file {tmp_path}/none.py"):
        load_class(f"{tmp_path}/none.py:Mine")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_package", r"ModuleNotFoundError: No module named 'no_such_package' \(line 1\).*PYTHONPATH"),
        ("class Mine:\n  x = ", r"SyntaxError: .*line 2"),
        ("def f():\n  raise OSError('gone')\n\nf()", r"cannot be imported: OSError: gone \(line 2\)"),
        ("from wire import Job\nclass One: pass\nclass Two: pass", r"no class `Mine`: it defines One, Two\."),
        ("Mine = 3", "no class `Mine`: it defines no class"),
        ("class Mine:\n  def __init__(self, path): pass", r"`Mine\(\)` failed: TypeError.*without arguments"),
        ("class Mine:\n  def __init__(self): 1 / 0", r"`Mine\(\)` failed: ZeroDivisionError.*\(line 2\)"),
        ("class Mine: pass", r"neither `generate\(self, batch\)`.*template\.py"),
        ("class Mine:\n  def generate(self): pass", r"`Mine.generate\(\)` cannot be called"),
        ("class Mine:\n  def generate(self, messages, voice): pass", "missing a required argument: 'voice'"),
        ("class Mine:\n  def prepare(self): pass", r"`Mine.prepare\(\)` cannot be called"),
        ("from models.base import TextModel\nclass Mine(TextModel): pass", r"`Mine\(\)` failed: TypeError.*abstract"),
    ],
)
def test_what_cannot_be_served_is_told(tmp_path: Path, source: str, message: str) -> None:
    """In a sentence, with the cause and the place."""
    with pytest.raises(ValueError, match=message):
        load_class(f"{written(tmp_path, source)}:Mine")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "`Mine.sampling_rate` is missing. It should be hertz"),
        ("sampling_rate = 16e3", "`Mine.sampling_rate` is 16000.0"),
        ("sampling_rate = 16_000; max_seconds = 0", "`Mine.max_seconds` is 0"),
        ("sampling_rate = 16_000; max_clips = -1", "`Mine.max_clips` is -1"),
        ("sampling_rate = 16_000; long_audio = 'cut'", "`Mine.long_audio` is 'cut'. It should be one of error, "),
        ("sampling_rate = 16_000; max_batch_size = 0", "`Mine.max_batch_size` is 0"),
        ("setup = lambda self: None", "cannot be called"),
    ],
)
def test_what_a_class_says_of_itself_is_checked(tmp_path: Path, body: str, message: str) -> None:
    """When it is set up, as `setup` may set it."""
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, f"class Mine:\n  {body}\n  def generate(self, batch): return []")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "`Mine.module` is missing"),
        ("self.module = torch.nn.Linear(1, 1)", "`Mine.tokenizer` should be set"),
    ],
)
def test_what_a_fast_class_must_set_is_checked(tmp_path: Path, body: str, message: str) -> None:
    """When it is set up."""
    source = f"""
        import torch

        class Mine:
            def setup(self, device): {body}
            def prepare(self, messages): return {{}}
    """
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path, source)


# ---------------------------------------------------------------------------------------------------------- the shapes


def test_a_subclass_of_the_contract_is_used_as_it_is(tmp_path: Path) -> None:
    """Nothing is wrapped around it."""
    source = """
        from models.base import TextModel
        from wire import Capabilities

        class Mine(TextModel):
            capabilities = Capabilities(16_000, None, "error", "serial")
            def setup(self, device, dtype): self.where = device, dtype
            def generate(self, questions): yield ["x"] * len(questions)
    """
    model = loaded(tmp_path, source)
    assert type(model).__name__ == "Mine"
    assert model.where == ("cpu", "float32")


def test_a_simple_class_is_asked_in_batches(tmp_path: Path) -> None:
    """Each ask holds the turns, the audio and what the client set; what the class says of itself is taken over."""
    source = """
        class Mine:
            sampling_rate, max_batch_size, max_seconds, max_clips, long_audio = 8_000, 3, 5, 2, "chunk"
            def setup(self, device, dtype): self.where = device, dtype
            def generate(self, batch):
                self.batch = batch
                return [ask.text for ask in batch]
            def count_tokens(self, text): return len(text)
            def group(self, ask): return ask.temperature
    """
    model = loaded(tmp_path, source)
    conversation = (Turn("system", ("be brief",)), Turn("user", ("one", Clip((SECOND,)), "two")), Turn("assistant", ()))
    asked = pieces(model, conversation, said("three"), temperature=0.5, seed=3, stop=("x",), max_tokens=9)
    assert asked == [["one\ntwo", "three"]]
    first, second = model._own.batch
    assert [message["role"] for message in first.messages] == ["system", "user", "assistant"]
    assert [block["type"] for block in first.messages[1]["content"]] == ["text", "audio", "text"]
    assert first.audios == [SECOND]
    assert second.audios == []
    settings = (first.temperature, first.seed, first.stop, first.max_tokens, first.top_p, first.presence_penalty)
    assert settings == (0.5, 3, ("x",), 9, None, 0.0)
    told = model.capabilities
    assert (told.sampling_rate, told.max_seconds_per_window, told.max_clips) == (8_000, 5, 2)
    assert (told.long_audio, told.batching, model.max_batch_size) == ("chunk", "dynamic", 3)
    assert model._own.where == ("cpu", "float32")
    assert model.count_tokens("abc") == 3
    assert model.group(Question(said("x"), Sampling(temperature=0.5))) == 0.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 'whole'", [["whole"]]),
        ("return ['whole']", [["whole"]]),
        ("yield 'a'; yield 'b'", [["a"], ["b"]]),
        ("yield ['a']; yield [None]", [["a"], [None]]),
        ("return iter(['a', 'b'])", [["a"], ["b"]]),
    ],
)
def test_a_single_ask_may_be_answered_with_plain_strings(tmp_path: Path, body: str, expected: list) -> None:
    """Whole, or piece by piece."""
    source = f"class Mine:\n  sampling_rate = 16_000\n  def generate(self, batch): {body}"
    model = loaded(tmp_path, source)
    assert pieces(model, said("x")) == expected
    assert (model.max_batch_size, model.capabilities.batching) == (1, "serial")
    assert model.count_tokens("a b") == 1


def test_an_answer_that_is_none_is_told(tmp_path: Path) -> None:
    """A forgotten `return`, mostly."""
    model = loaded(tmp_path, "class Mine:\n  sampling_rate = 16_000\n  def generate(self, batch): pass")
    with pytest.raises(TypeError, match="gave a NoneType"):
        pieces(model, said("x"))


def test_a_class_of_au_harness(tmp_path: Path) -> None:
    """Its messages are objects and dictionaries in one, text alone is a string, and settings go by name."""
    source = """
        class Mine:
            async def generate(self, messages, audio_inputs, temperature=0.7, top_p=0.9):
                blocks = "+".join(block.type for block in messages[1].content)
                assert messages[0]["content"] == messages[0].content
                assert not hasattr(messages[0], "audio_url")
                return f"{messages[0].content}, {blocks}, {len(audio_inputs)}, {temperature}, {top_p}"
    """
    model = loaded(tmp_path, source)
    conversation = (Turn("system", ("be brief",)), *said("what?", Clip((SECOND,))))
    answer = "".join(piece for (piece,) in pieces(model, conversation, temperature=0.2))
    assert answer == "be brief, text+audio, 1, 0.2, 0.9"
    told = model.capabilities
    assert (told.sampling_rate, told.batching, model.max_batch_size) == (16_000, "serial", 1)
    assert "one request at a time" in told.why


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        ("def generate(self, messages): return 'ab'", ["ab"]),
        ("def generate(self, messages): yield 'a'; yield 'b'", ["a", "b"]),
        ("async def generate(self, messages): yield 'a'; yield 'b'", ["a", "b"]),
        ("async def generate(self, messages): return 'ab'", ["ab"]),
    ],
)
def test_a_class_of_au_harness_may_wait_or_stream(tmp_path: Path, definition: str, expected: list) -> None:
    """All four ways of Python."""
    model = loaded(tmp_path, f"class Mine:\n  {definition}")
    assert [piece for (piece,) in pieces(model, said("x")) if piece] == expected


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("stream", ["", "yield 'a'"])
def test_a_refusal_of_the_classs_own_comes_through(tmp_path: Path, kind: str, stream: str) -> None:
    """From wherever it is raised."""
    source = f"""
        from errors import BadRequest

        class Mine:
            {kind} generate(self, messages):
                {stream or "pass"}
                raise BadRequest("Speak up.", "messages")
    """
    with pytest.raises(BadRequest, match=r"Speak up\."):
        pieces(loaded(tmp_path, source), said("x"))


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_answer_that_is_dropped_is_tidied_up(tmp_path: Path, kind: str) -> None:
    """A generator is closed, a coroutine is cancelled, at what it waits for."""
    wait = "await asyncio.Event().wait()" if kind == "async def" else "pass"
    source = f"""
        import asyncio

        class Mine:
            ended = False
            {kind} generate(self, messages):
                try:
                    yield "a"
                    {wait}
                    yield "b"
                finally:
                    self.ended = True
    """
    model = loaded(tmp_path, source)
    answer = model.generate([Question(said("x"), Sampling())])
    assert next(answer) == ["a"]
    if kind == "async def":
        assert next(answer) == [""], "no news, so that the engine can look who still waits"
    answer.close()
    await until(lambda: model._own.ended)


FAST = """
    from tests.support.causal import numbers_tokenizer
    from tests.support.tiny_models import build

    class Mine:
        sampling_rate, max_seconds, long_audio = 16_000, 30, "chunk"

        def setup(self, device):
            self._tiny = build("qwen2_audio")
            self.module = self._tiny.module.train()
            self.tokenizer = numbers_tokenizer()

        def prepare(self, messages):
            blocks = [block for message in messages for block in message["content"]]
            audios = [block["audio"] for block in blocks if block["type"] == "audio"]
            return self._tiny.make_inputs(audios, "".join(b["text"] for b in blocks if b["type"] == "text"))
"""


def test_a_fast_class_makes_prompts(tmp_path: Path) -> None:
    """What it does not say is looked up in its module's configuration."""
    model = loaded(tmp_path, FAST)
    assert not model.module.training
    assert (model.end_ids, model.placeholder_ids) == ({END}, (AUDIO,))
    assert set(model.banned_ids) == set(build("qwen2_audio").audio_token_ids)
    assert (model.defaults.temperature, model.capabilities.batching) == (0.0, "continuous")
    (prompt,) = model.prepare(said(Clip((SECOND,)), "hi"))
    ids = prompt.inputs["input_ids"]
    assert prompt.num_tokens == ids.shape[1]
    assert prompt.num_audio_tokens == int((ids == AUDIO).sum()) == 25
    assert prompt.max_new_tokens == model.module.config.text_config.max_position_embeddings - prompt.num_tokens
    assert prompt.lead is None


def test_a_long_clip_makes_a_fast_class_several_prompts(tmp_path: Path) -> None:
    """One for each window, whose answers are joined by a blank."""
    model = loaded(tmp_path, FAST)
    prompts = model.prepare(said(Clip((SECOND, SECOND[:8_000])), "hi"))
    assert [prompt.num_audio_tokens for prompt in prompts] == [25, 12]
    assert [prompt.lead for prompt in prompts] == [" ", " "]


def test_what_a_fast_class_says_goes_before_its_configuration(tmp_path: Path) -> None:
    """All optional attributes."""
    said_so = "\n        end_ids, placeholder_ids, temperature, max_clips = [5], [6, 7], 0.7, 1"
    model = loaded(tmp_path, FAST + said_so)
    assert (model.end_ids, model.placeholder_ids) == ({5}, (6, 7))
    assert (model.defaults.temperature, model.capabilities.max_clips) == (0.7, 1)


def test_an_encoder_decoder_needs_no_decoder_prompt(tmp_path: Path) -> None:
    """It begins with the configuration's start token, as `generate()` does."""
    model = loaded(tmp_path, FAST.replace("qwen2_audio", "whisper"))
    model._own.prepare = lambda messages: {"input_features": torch.zeros(1, 80, 3000)}
    (prompt,) = model.prepare(said(Clip((SECOND,))))
    start = build("whisper").module.generation_config.decoder_start_token_id
    assert (prompt.token_ids, prompt.num_audio_tokens) == ([start], 0)
    assert prompt.max_new_tokens == 448 - 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[1, 2]]}, "`input_ids` as list"),
        ({"input_ids": torch.ones(2, 3)}, r"no `input_ids` of shape \(1, tokens\)"),
        ({"input_features": torch.ones(1, 3)}, r"no `input_ids` of shape \(1, tokens\)"),
    ],
)
def test_inputs_that_the_module_could_not_take_are_told(tmp_path: Path, inputs: dict, message: str) -> None:
    """In the log: they are the class's fault, not the client's."""
    model = loaded(tmp_path, FAST)
    model._own.prepare = lambda messages: inputs
    with pytest.raises(TypeError, match=message):
        model.prepare(said("x"))


# ---------------------------------------------------------------------------------------------------------- the server


SIMPLE = """
    import time

    from errors import BadRequest

    class Mine:
        sampling_rate, max_batch_size, max_seconds, long_audio = 16_000, 4, 8.0, "chunk"

        def setup(self, device):
            self._device = device

        def generate(self, batch):
            if any("bad" in ask.text for ask in batch):
                raise BadRequest("Say something nice.", "messages")
            time.sleep(0.1)  # a model takes its time, in which others come
            seconds = [sum(map(len, ask.audios)) / 16_000 for ask in batch]
            yield [f"{ask.text} in {len(batch)}:" for ask in batch]
            yield [f" {value:.1f} s" for value in seconds]

        def count_tokens(self, text):
            return len(text.split())
"""


@pytest.fixture(scope="module")
def simple_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = written(tmp_path_factory.mktemp("simple"), SIMPLE)
    with run_server("--model", f"{path}:Mine") as server:
        yield server


def test_a_simple_class_answers(simple_server: RunningServer) -> None:
    """In one piece and streamed; audio that is too long for it comes in windows."""
    with simple_server.client() as client:
        answer = client.chat.completions.create(
            model=simple_server.model, messages=user("hello", input_audio("cv-en-no.mp3"))
        )
        assert answer.choices[0].message.content == "hello in 1: 4.1 s"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (1, 5)
        stream = client.chat.completions.create(
            model=simple_server.model, messages=user("hello", input_audio("cv-en-no.mp3")), stream=True
        )
        texts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content]
        assert texts == ["hello in 1:", " 4.1 s"]
        long = client.chat.completions.create(model=simple_server.model, messages=user("long", input_audio("jfk.ogg")))
        windows = re.fullmatch(r"long in 1: (\S+) s long in 1: (\S+) s", long.choices[0].message.content)
        assert sum(map(float, windows.groups())) == pytest.approx(11.0, abs=0.11)
        card = client.models.retrieve(simple_server.model)
        assert card.audio["batching"] == "dynamic"


async def test_requests_to_a_simple_class_share_batches(simple_server: RunningServer) -> None:
    """Those that come while one is answered; one that is refused among them is refused alone."""
    async with simple_server.async_client() as client:

        async def ask(name: str) -> str:
            messages = user(name, input_audio("cv-en-no.mp3"))
            answer = await client.chat.completions.create(model=simple_server.model, messages=messages)
            return answer.choices[0].message.content

        names = [f"n{i}" for i in range(12)]
        refused, *answers = await asyncio.gather(ask("bad"), *map(ask, names), return_exceptions=True)
    assert isinstance(refused, openai.BadRequestError)
    assert refused.param == "messages"
    assert "Say something nice." in refused.message
    assert [answer.split(" ")[0] for answer in answers] == names
    assert max(int(answer.split(" ")[2].rstrip(":")) for answer in answers) > 1


def test_what_a_loop_of_its_own_cannot_do_is_refused(simple_server: RunningServer) -> None:
    """With the field's name."""
    with simple_server.client() as client:
        for options, param in (
            ({"logprobs": True}, "logprobs"),
            ({"logit_bias": {"5": 1}}, "logit_bias"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(model=simple_server.model, messages=user("x"), **options)
            assert caught.value.param == param


def test_a_fast_class_answers_as_its_module_does_alone(tmp_path: Path) -> None:
    """Token for token, and in company; all that takes the model's probabilities works."""
    with wave.open(str(DATA / "austen-0880.wav")) as clip:
        samples = np.frombuffer(clip.readframes(clip.getnframes()), "<i2").astype(np.float32) / 32768
    tiny, texts = build("qwen2_audio"), ["what?", "who?", "where was it?"]
    expected = [greedy(tiny, tiny.make_inputs([samples], text), 12) for text in texts]
    with run_server("--model", f"{written(tmp_path, FAST)}:Mine") as server:

        async def ask(text: str) -> openai.types.chat.ChatCompletion:
            return await client.chat.completions.create(
                model=server.model,
                messages=user(input_audio("austen-0880.wav"), text),
                max_completion_tokens=12,
                logprobs=True,
            )

        async def ask_all() -> list[openai.types.chat.ChatCompletion]:
            async with client:
                return await asyncio.gather(*map(ask, texts))

        client = server.async_client()
        answers = asyncio.run(ask_all())
        with server.client() as plain:
            assert plain.models.retrieve(server.model).audio["batching"] == "continuous"
    written_ids = [[int(word) for word in answer.choices[0].message.content.split()] for answer in answers]
    assert written_ids == [[id_ for id_ in ids if id_ != END] for ids in expected]
    assert all(answer.choices[0].logprobs.content for answer in answers)
    assert answers[0].usage.prompt_tokens_details.audio_tokens == 75


def test_an_async_class_of_au_harness_streams(tmp_path: Path) -> None:
    """Piece by piece, one request at a time, and it is cancelled when its client leaves."""
    source = f"""
        import asyncio
        from pathlib import Path

        HERE = Path({str(tmp_path)!r})

        class DummyModel:
            def __init__(self):
                self.device = "cuda"

            async def generate(self, messages, audio_inputs):
                text = " ".join(b.text for m in messages if not isinstance(m.content, str)
                                for b in m.content if b.type == "text" and b.text)
                yield f"Processed {{len(audio_inputs)}} audio: "
                try:
                    while not (HERE / text).exists():
                        await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    (HERE / "cancelled").touch()
                    raise
                yield text
    """
    messages = [user(name, input_audio("cv-en-no.mp3")) for name in ("leaves", "stays")]
    with run_server("--model", f"{written(tmp_path, source)}:DummyModel") as server, server.client() as client:
        left = client.chat.completions.create(model=server.model, messages=messages[0], stream=True)
        assert [next(left).choices[0].delta.content for _ in range(2)] == ["", "Processed 1 audio: "]
        left.close()
        asyncio.run(until((tmp_path / "cancelled").exists))
        stream = client.chat.completions.create(model=server.model, messages=messages[1], stream=True)
        assert [next(stream).choices[0].delta.content for _ in range(2)] == ["", "Processed 1 audio: "]
        (tmp_path / "stays").touch()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "stays"
        answer = client.chat.completions.create(model=server.model, messages=messages[1])
        assert answer.choices[0].message.content == "Processed 1 audio: stays"
        assert client.models.retrieve(server.model).audio["batching"] == "serial"


# -------------------------------------------------------------------------------------------------------- the template

TEMPLATE = ROOT / "models" / "template.py"


async def test_the_template_runs_as_it_is() -> None:
    """Several clips, streamed word by word; without audio it says what to send."""
    name = f"{TEMPLATE}:MyModel"
    async with run_in_process(model=name) as server, server.http() as http:
        clips = user(input_audio("cv-en-no.mp3"), wav(0.1 * SECOND))
        answer = (await http.post(CHAT, json={"model": name, "messages": clips})).json()
        text = answer["choices"][0]["message"]["content"]
        assert text.startswith("4.1 seconds at -")
        assert text.endswith("1.0 seconds at -20 dB.")
        assert answer["usage"]["completion_tokens"] == 10
        streamed = await http.post(CHAT, json={"model": name, "messages": clips, "stream": True})
        assert streamed.text.count('"content":') == 11
        refused = await http.post(CHAT, json={"model": name, "messages": user("hello")})
        assert refused.status_code == 400
        assert "input_audio" in refused.json()["error"]["message"]


async def test_the_fast_template_transcribes() -> None:
    """As well as the embedded model does, also what is longer than it hears at once."""
    name = f"{TEMPLATE}:MyFastModel"
    async with run_in_process(model=name) as server, server.http() as http:
        for clip, text, limit in (("jfk.ogg", JFK, 0.0), (LONG.name, LONG.text, 20.0)):
            answer = (await http.post(CHAT, json={"model": name, "messages": user(input_audio(clip))})).json()
            assert word_error_rate(text, answer["choices"][0]["message"]["content"]) <= limit
