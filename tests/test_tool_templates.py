"""What chat templates make of tools and calls, and what checkpoints do with them: with templates of the four styles."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import transformers

from dialects import TOOLS, tool_style_of
from errors import BadRequest
from models.base import Turn
from models.chat_template import ChatTemplate
from tests.support import directories
from tests.support.inprocess import openai_client, run_in_process
from tests.support.speech import user
from tests.support.tool_templates import HERMES, TEMPLATES
from tests.test_tool_calls import TIME
from tests.test_tool_calls import TOOLS as BOTH
from wire import Tool, ToolCall, Tools

CALL = ToolCall("call_0123456789", "f", '{"city": "São Paulo"}')
HISTORY = (
    Turn("user", ("Weather?",)),
    Turn("assistant", ("",), calls=(CALL,)),
    Turn("tool", ("rain",), call_id=CALL.id, name="f"),
)
FUNCTION = {"name": "f", "description": "The weather é", "parameters": {"type": "object", "properties": {"a": {}}}}


def tools(**fields: object) -> Tools:
    text = json.dumps({**FUNCTION, **fields}, ensure_ascii=False)
    return Tools((Tool("f", text, "{}", "tools[0].function.parameters"),))


def tokenizer_with(template: str, *special: str) -> transformers.PreTrainedTokenizerFast:
    tokenizer = directories._tokenizer(chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def rendered(template: str, conversation: tuple[Turn, ...], given: Tools | None = None) -> str:
    chat = ChatTemplate(tokenizer_with(template), None)
    return str(chat.tokenizer.decode(chat.inputs(conversation, tools=given)["input_ids"][0]))


@pytest.mark.parametrize("style", TEMPLATES)
def test_the_style_is_seen_in_the_template(style: str) -> None:
    """Also that there is none, or one that is not read here."""
    assert tool_style_of(TEMPLATES[style]) == style
    assert tool_style_of(TEMPLATES[style].replace("tools", "things")) is None
    assert tool_style_of(HERMES + "<arg_key>") is None
    assert tool_style_of("{{ tools }}") is None


@pytest.mark.parametrize("style", TEMPLATES)
def test_tools_and_calls_are_written_by_the_template(style: str) -> None:
    """Names, descriptions, schemas, arguments and results; as JSON that can be read, in the model's own style."""
    text = rendered(TEMPLATES[style], HISTORY, tools())
    assert "The weather é" in text and '"properties"' in text
    key = TOOLS[style].arguments
    assert re.search(rf'"name": "f", "{key}": {{"city": "São Paulo"}}', text), text
    assert "rain" in text
    assert "The weather" not in rendered(TEMPLATES[style], HISTORY)


def test_mistrals_ids_are_short() -> None:
    """Nine letters and digits, the same for a call and its result; one that is so already stays."""
    text = rendered(TEMPLATES["mistral"], HISTORY)
    (called,), (answered,) = re.findall(r'"id": "(\w+)"', text), re.findall(r'"call_id": "(\w+)"', text)
    assert called == answered and re.fullmatch("[a-zA-Z0-9]{9}", called)
    own = ToolCall("abcDEF123", "f", "{}")
    assert '"id": "abcDEF123"' in rendered(TEMPLATES["mistral"], (HISTORY[0], Turn("assistant", (), calls=(own,))))


def test_earlier_thoughts_reach_the_template() -> None:
    """Where it wants them."""
    thoughtful = Turn("assistant", ("Yes.",), reasoning="hm")
    assert "<think>\nhm\n</think>\nYes." in rendered(HERMES, (HISTORY[0], thoughtful))


def test_what_a_template_refuses() -> None:
    """Is the client's to know: Llama's calls one tool at a time."""
    two = Turn("assistant", (), calls=(CALL, CALL))
    with pytest.raises(BadRequest, match="single tool-calls"):
        rendered(TEMPLATES["llama"], (HISTORY[0], two))


@pytest.mark.parametrize("style", TEMPLATES)
def test_control_tokens_stay_out_of_tools_and_calls(style: str) -> None:
    """Whether they are keys or values, and however JSON writes them."""
    control = "<|evil|>"
    chat = ChatTemplate(tokenizer_with(TEMPLATES[style], control), None)
    escaped = "".join(f"\\u{ord(character):04x}" for character in control)
    assert chat.inputs(HISTORY, tools=tools())
    for given in (tools(description=control), tools(parameters={control: 1}), tools(parameters={"a": [control]})):
        with pytest.raises(BadRequest) as refusal:
            chat.inputs(HISTORY, tools=given)
        assert refusal.value.param == "tools"
    for call in (ToolCall(control, "f", "{}"), ToolCall("x", control, "{}"), ToolCall("x", "f", f'{{"{escaped}": 1}}')):
        with pytest.raises(BadRequest) as refusal:
            chat.inputs((HISTORY[0], Turn("assistant", (), calls=(call,))))
        assert refusal.value.param == "messages"


# ------------------------------------------------------------------------------------------------- tiny checkpoints


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("tools")


def with_template(root: Path, style: str) -> Path:
    """A text model of random weights whose markers are special tokens, where its style's are."""
    directory = directories.save("qwen2_text", root / style)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATES[style]
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("style", TEMPLATES)
async def test_a_checkpoint_calls_tools(style: str, root: Path) -> None:
    """Random weights write a call where one is required, and the prompt grows by the tools."""
    directory = with_template(root, style)
    async with (
        run_in_process(model=str(directory), served_model_name="tiny") as server,
        openai_client(server) as client,
    ):
        card = (await client.models.list()).data[0].model_dump()
        assert (card["tool_call_parser"], card["reasoning_parser"]) == (style, None)
        asked: dict[str, Any] = {"model": "tiny", "messages": user("hi"), "max_tokens": 60}
        alone = await client.chat.completions.create(**asked)
        forced = {"type": "function", "function": {"name": "get_time"}}
        called = await client.chat.completions.create(**asked, tools=BOTH, tool_choice=forced)
        (call,) = called.choices[0].message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {})
        assert called.usage.prompt_tokens > alone.usage.prompt_tokens + 20


async def test_a_checkpoint_whose_template_knows_no_tools(root: Path) -> None:
    """Refuses them, and a style that is set for it does not start."""
    directory = directories.save("qwen2_text", root / "plain")
    options = {"model": str(directory), "served_model_name": "tiny"}
    async with run_in_process(**options) as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError, match="knows no tools"):
            await client.chat.completions.create(model="tiny", messages=user("hi"), tools=[TIME])
    with pytest.raises(SystemExit):
        async with run_in_process(**options, tool_call_parser="hermes"):
            pass


async def test_a_template_that_opens_thoughts(root: Path) -> None:
    """What the model writes from there on is thought."""
    directory = directories.save("qwen2_text", root / "thinker")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = HERMES.replace("assistant\\n", "assistant\\n<think>\\n")
    tokenizer.save_pretrained(directory)
    options = {"model": str(directory), "served_model_name": "tiny"}
    asked = {"model": "tiny", "messages": user("hi"), "max_tokens": 8}
    async with run_in_process(**options) as server, openai_client(server) as client:
        text = (await client.chat.completions.create(**asked)).choices[0].message.content
    async with run_in_process(**options, reasoning_parser="think") as server, openai_client(server) as client:
        message = (await client.chat.completions.create(**asked)).choices[0].message
    assert (message.content, message.reasoning_content) == ("", text.lstrip()) and text.strip()


async def test_mistrals_own_tokenizer_takes_tools(root: Path) -> None:
    """Its templates are code; its ids are short, too."""
    directory = directories.save("voxtral", root)
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    turns = [
        *user("Time?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "noon"},
    ]
    async with (
        run_in_process(model=str(directory), served_model_name="tiny") as server,
        openai_client(server) as client,
    ):
        asked: dict[str, Any] = {"model": "tiny", "messages": turns, "max_tokens": 60}
        forced = {"type": "function", "function": {"name": "get_time"}}
        called = await client.chat.completions.create(**asked, tools=[TIME], tool_choice=forced)
        assert called.choices[0].message.tool_calls[0].function.name == "get_time"
