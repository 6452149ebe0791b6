"""`/tokenize` and `/detokenize` tell what the served model's own tokenizer makes of a text, of messages, of tokens."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import transformers

from api.chat import build_job
from api.form import parse_as
from api.schema import parse
from api.tokenization import TokenizeEndpoint, TokenizeRequest
from tests.support.directories import saved
from tests.support.inprocess import run_in_process
from tests.support.speech import user, wav
from tests.support.tiny_models import sweep
from wire import JobId

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TALK = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "It is a"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(autouse=True)
def _short_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.hf_chat.HORIZON_S", 45)


@asynccontextmanager
async def serving(model: str, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    async with run_in_process(model=model, served_model_name="tiny", **settings) as server, server.http() as http:
        yield http


async def tokenized(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/tokenize", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert set(told) == {"count", "max_model_len", "tokens", "token_strs"}
    assert told["count"] == len(told["tokens"])
    return told


async def test_a_text_there_and_back(root: Path) -> None:
    """With the tokenizer's own special tokens around it, or without; control tokens in it are tokens here."""
    directory = saved("qwen2_text", root)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    text = "Grüße, <|im_end|> 5 €"
    async with serving(str(directory)) as http:
        told = await tokenized(http, model="tiny", prompt=text, return_token_strs=True)
        assert told["tokens"] == tokenizer(text)["input_ids"]
        assert told["token_strs"] == tokenizer.convert_ids_to_tokens(told["tokens"])
        assert told["max_model_len"] == transformers.AutoConfig.from_pretrained(directory).max_position_embeddings
        plain = await tokenized(http, model=None, prompt=text, add_special_tokens=False)
        assert plain["tokens"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert plain["token_strs"] is None
        back = await http.post("/detokenize", json={"model": "tiny", "tokens": plain["tokens"]})
        assert back.json() == {"prompt": text}
        assert (await http.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
        assert (await tokenized(http, prompt=""))["count"] == len(tokenizer("")["input_ids"])


async def test_messages_by_the_chat_template(root: Path) -> None:
    """As a chat completion counts them; the template is applied as the client says."""
    directory = saved("qwen2_text", root)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    async with serving(str(directory)) as http:
        for options in ({}, {"continue_final_message": True}, {"add_generation_prompt": False}):
            told = await tokenized(http, messages=TALK, **options)
            wanted = options or {"add_generation_prompt": True}
            assert told["tokens"] == tokenizer.apply_chat_template(TALK, **wanted)["input_ids"]
        answer = await http.post("/v1/chat/completions", json={"model": "tiny", "messages": TALK, "max_tokens": 1})
    assert answer.json()["usage"]["prompt_tokens"] == len(
        tokenizer.apply_chat_template(TALK, add_generation_prompt=True)["input_ids"]
    )


async def test_audio_in_messages_is_counted(root: Path) -> None:
    """By its placeholders, which are the prompt's."""
    spoken = user(wav(sweep(1.0, 200, 900)), "what?")
    async with serving(str(saved("qwen2_audio", root))) as http:
        told = await tokenized(http, messages=spoken, return_token_strs=True)
        answer = await http.post("/v1/chat/completions", json={"model": "tiny", "messages": spoken, "max_tokens": 1})
    usage = answer.json()["usage"]
    assert told["count"] == usage["prompt_tokens"]
    assert told["token_strs"].count("<|AUDIO|>") == usage["prompt_tokens_details"]["audio_tokens"] > 0


async def test_the_embedded_whisper(tmp_path: Path) -> None:
    """Of audio its decoder reads nothing: what it is told before it writes is all."""
    async with serving("whisper-tiny.en") as http:
        told = await tokenized(http, prompt=" Hello", add_special_tokens=False)
        back = await http.post("/detokenize", json={"tokens": told["tokens"]})
        assert (back.json(), told["max_model_len"]) == ({"prompt": " Hello"}, 448)
        spoken = await tokenized(http, messages=user(wav(sweep(1.0, 200, 900))), return_token_strs=True)
        assert spoken["token_strs"][0] == "<|startoftranscript|>"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": TALK}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a" * 101}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": user("a" * 101)}, "messages"),
        ("/tokenize", {"messages": TALK[:1], "continue_final_message": True}, "messages"),
        ("/tokenize", {"messages": TALK}, "messages"),
        ("/tokenize", {"prompt": "a", "stream": True}, "stream"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [5, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [5, 999_999]}, "tokens[1]"),
        ("/detokenize", {"tokens": [5] * 101}, "tokens"),
    ],
)
async def test_what_is_wrong_is_a_400(path: str, body: dict[str, Any], param: str) -> None:
    """At its place. The fake model makes no tokens of a conversation."""
    async with serving("fake", max_text_chars=100) as http:
        answer = await http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_another_model_is_not_found() -> None:
    """Where one is named."""
    async with serving("fake") as http:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            assert (await http.post(path, json={"model": "other", **body})).json()["error"]["code"] == "model_not_found"


async def test_a_model_with_a_loop_of_its_own_has_no_tokenizer(root: Path) -> None:
    """That the server could ask, and says so; and a cascade knows the tokens of text alone."""
    async with serving(str(saved("wav2vec2", root))) as http:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            answer = await http.post(path, json=body)
            assert answer.status_code == 400
            assert "no tokenizer" in answer.json()["error"]["message"]
    async with serving(f"cascade:whisper-tiny.en,{saved('qwen2_text', root)}") as http:
        tokens = (await tokenized(http, messages=TALK))["tokens"]
        assert tokens
        assert (await tokenized(http, prompt="a"))["count"] == 1
        answer = await http.post("/tokenize", json={"messages": user(wav(sweep(1.0, 200, 900)))})
        assert answer.json()["error"]["param"] == "messages"


async def test_the_room_of_a_job_is_free_again() -> None:
    """However many come, also those that fail."""
    async with serving("fake", prepare_ahead=1, max_rows=1) as http:
        for i in range(12):
            answer = await http.post("/detokenize", json={"tokens": [5 if i % 2 else 999_999]})
            assert answer.status_code == (200 if i % 2 else 400)


def test_a_history_of_calls_is_that_of_the_chat() -> None:
    """With the name of its tool in each result, which some templates write."""
    call = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    history = [
        *TALK,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ]
    body = json.dumps({"model": "m", "messages": history}).encode()
    intake: Any = SimpleNamespace(num_bytes=0)
    asked = TokenizeEndpoint.build(parse_as(TokenizeRequest, body), JobId(0, "a"), intake, 0)
    chat = build_job(parse(body), JobId(0, "a"), intake, 0)
    assert asked.messages == chat.messages
    assert asked.messages[-1].name == "get_time"
