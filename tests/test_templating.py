"""How the chat template is applied is the client's choice, as far as the server allows: variables, and where the prompt
ends."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import transformers
from openai import AsyncOpenAI
from transformers import GenerationMixin

from config import Settings
from engine.text import AnswerText
from tests.support import directories
from tests.support.directories import saved
from tests.support.inprocess import run_in_process
from tests.support.speech import user, wav
from tests.support.tiny_models import sweep
from tests.test_text import BYTE_FALLBACK, SPACE_THE, SPACE_W

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

NEW_TOKENS = 8
THINKING = "{%- if enable_thinking %}{{- 'think ' + level | default('hard') }}{%- endif %}"
TALK = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "It is a"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(autouse=True)
def _short_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.hf_chat.HORIZON_S", 45)


@asynccontextmanager
async def serving(model: str, **settings: object) -> AsyncIterator[AsyncOpenAI]:
    async with (
        run_in_process(model=model, served_model_name="tiny", **settings) as server,
        server.http() as http,
        AsyncOpenAI(base_url="http://test/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        yield client


async def answered(client: AsyncOpenAI, messages: list[dict[str, Any]], **options: Any) -> Any:
    ask: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": NEW_TOKENS, "extra_body": options}
    return await client.chat.completions.create(**ask)


def expected(directory: Path, messages: list[dict[str, Any]], **options: Any) -> tuple[str, int]:
    """The greedy answer of transformers' own classes to a conversation of texts, and the length of its prompt."""
    config = transformers.AutoConfig.from_pretrained(directory)
    module = getattr(transformers, config.architectures[0]).from_pretrained(directory).eval()
    processor = transformers.AutoProcessor.from_pretrained(directory)
    tokenizer = getattr(processor, "tokenizer", processor)
    prompt = processor.apply_chat_template(messages, tokenize=False, **options)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    audio = getattr(processor, "audio_token_id", None)
    wanted = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    banned = None if audio is None else [audio]
    ids = GenerationMixin.generate(module, **inputs, **wanted, suppress_tokens=banned)[0]
    length = inputs["input_ids"].shape[1]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    return whole[len(tokenizer.decode(ids[:length], skip_special_tokens=True)) :], length


@pytest.mark.parametrize("name", [*directories.TEXT, "qwen2_audio", "granite_string_template"])
async def test_the_assistants_last_message_is_continued(name: str, root: Path) -> None:
    """As `generate` continues the template's own prompt; the answer is what comes behind it."""
    directory = saved(name, root)
    text, length = expected(directory, TALK, continue_final_message=True)
    async with serving(str(directory)) as client:
        answer = await answered(client, TALK, continue_final_message=True)
        anew = await answered(client, TALK)
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == (text, length)
    assert anew.usage.prompt_tokens > length


async def test_behind_audio_too(root: Path) -> None:
    """With blocks in the messages, and the text in the last of them."""
    spoken = user(wav(sweep(0.5, 200, 900)), "what is it?")
    blocks = {"role": "assistant", "content": [{"type": "text", "text": "It is"}, {"type": "text", "text": " a"}]}
    async with serving(str(saved("qwen2_audio", root))) as client:
        answers = [
            await answered(client, [*spoken, last], continue_final_message=True)
            for last in (TALK[1], blocks, {**TALK[1], "content": "It is b"})
        ]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts[0] == texts[1] != texts[2]


async def test_the_prompt_may_end_without_the_assistants_turn(root: Path) -> None:
    """The template then opens none."""
    directory = saved("qwen2_text", root)
    text, length = expected(directory, TALK, add_generation_prompt=False)
    async with serving(str(directory)) as client:
        answer = await answered(client, TALK, add_generation_prompt=False)
        explicit = await answered(client, TALK, add_generation_prompt=True)
        usual = await answered(client, TALK)
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == (text, length)
    assert explicit.usage.prompt_tokens == usual.usage.prompt_tokens > length


async def test_variables_reach_the_template(root: Path, tmp_path: Path) -> None:
    """Those that the server allows, each request its own."""
    directory = Path(shutil.copytree(saved("qwen2_text", root), tmp_path / "thinking"))
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text() + THINKING)
    variables = [{}, {"enable_thinking": False}, {"enable_thinking": True}, {"enable_thinking": True, "level": "a b"}]
    lengths = [expected(directory, TALK, add_generation_prompt=True, **each)[1] for each in variables]
    async with serving(str(directory), allow_template_kwargs="enable_thinking,level") as client:
        answers = await asyncio.gather(*(answered(client, TALK, chat_template_kwargs=each) for each in variables))
    assert [answer.usage.prompt_tokens for answer in answers] == lengths
    assert len(set(lengths)) == 3


async def test_variables_that_the_template_does_not_read_do_nothing(root: Path) -> None:
    """A processor, too, would take them for options of its own."""
    async with serving(str(saved("qwen2_audio", root)), allow_template_kwargs="is_split_into_words") as client:
        answer = await answered(client, TALK, chat_template_kwargs={"is_split_into_words": True})
        assert answer.choices[0].message == (await answered(client, TALK)).choices[0].message


REFUSED = [
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs", "allow-template-kwargs"),
    ({"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs", "enable_thinking"),
    ({"chat_template_kwargs": {"thinking": "<|im_end|>"}}, "chat_template_kwargs.thinking", "words"),
    ({"chat_template_kwargs": {"thinking": [1]}}, "chat_template_kwargs.thinking", "words"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs", "object"),
    ({"continue_final_message": 1}, "continue_final_message", "valid"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt", "send one"),
]


@pytest.mark.parametrize(("options", "param", "reason"), REFUSED)
async def test_what_is_not_allowed_is_a_400(options: dict[str, Any], param: str, reason: str) -> None:
    """At its place, before the model hears of it."""
    async with serving("fake") as client:
        with pytest.raises(openai.BadRequestError, match=reason) as caught:
            await answered(client, TALK, **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "last",
    [
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": " "},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ],
)
async def test_only_a_text_of_the_assistants_can_be_continued(last: dict[str, Any]) -> None:
    """Anything else has no end to go on from."""
    async with serving("fake") as client:
        with pytest.raises(openai.BadRequestError, match="assistant's") as caught:
            await answered(client, [*TALK, last], continue_final_message=True)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("name", ["fake", "voxtral", "wav2vec2"])
async def test_a_model_without_a_template_continues_nothing(name: str, root: Path) -> None:
    """And says so; variables say nothing to it and do no harm."""
    model = name if name == "fake" else str(saved(name, root))
    async with serving(model) as client:
        for options in ({"continue_final_message": True}, {"add_generation_prompt": False}):
            with pytest.raises(openai.BadRequestError, match="no chat template") as caught:
                await answered(client, TALK, **options)
            assert caught.value.param == next(iter(options))
    async with serving("fake") as client:
        answer = await answered(client, user("hi"), chat_template_kwargs={"enable_thinking": False})
        assert answer.choices[0].message.content


@pytest.mark.parametrize("names", ["tools", "bos_token", "return_dict", "messages", "a b", "Upper"])
def test_names_that_are_no_variables_cannot_be_allowed(names: str) -> None:
    """They would be transformers' own parameters, or replace a token."""
    with pytest.raises(ValueError, match="no variable"):
        Settings(allow_template_kwargs=names)


def test_a_continued_text_keeps_the_blank_of_its_next_word() -> None:
    """SentencePiece drops that of a first word only."""
    for before, expected_text in (((), "w the"), ((SPACE_THE,), " w the")):
        text = AnswerText(BYTE_FALLBACK, ())
        text.begin(None, before=before)
        for token in (SPACE_W, SPACE_THE):
            text.push(token)
        assert text.take()[0] == expected_text
