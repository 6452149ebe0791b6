"""Calls and thoughts in the text of an answer: what is read, what is left alone, and that pieces make no difference."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.pieces import Arguments, CallBegun, Content, Thought
from api.reader import Reader

NAMES = frozenset({"f", "get_weather"})
STYLES = ("hermes", "mistral", "llama", "granite")


@dataclass
class Read:
    content: str = ""
    thoughts: str = ""
    calls: list[list[str]] = field(default_factory=list)  # names and arguments
    ids: list[str] = field(default_factory=list)


def read(pieces: list[str], *args: object, names: frozenset[str] = NAMES, **options: object) -> Read:
    """What a reader makes of a text that comes in pieces; its own pieces are in order."""
    said, reader = Read(), Reader(*args, names=names, **options)
    for piece in [each for text in pieces for each in reader.push(text)] + reader.end():
        match piece:
            case Content(text):
                said.content += text
            case Thought(text):
                said.thoughts += text
            case CallBegun(index, id_, name):
                assert index == len(said.calls)
                said.ids.append(id_)
                said.calls.append([name, ""])
            case Arguments(index, text):
                assert text and index == len(said.calls) - 1, "a call is told before its arguments, one after another"
                said.calls[index][1] += text
    return said


def calls_in(text: str, style: str, **options: object) -> tuple[str, list[list[str]]]:
    said = read([text], None, style, **options)
    return said.content, said.calls


F = ["f", '{"a": 1}']
W = ["get_weather", '{"city": "São }{\\" Paulo"}']

WRITTEN = {
    "hermes": [
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [F]),
        ('<tool_call>{"name":"f","arguments":{"a": 1}}</tool_call>', "", [F]),
        ('One moment.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n', "One moment.", [F]),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
            '{"name": "get_weather", "arguments": {"city": "São }{\\" Paulo"}}\n</tool_call>',
            "",
            [F, W],
        ),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [F]),  # the other way round
        ('<tool_call>{"name": "f", "id": "x", "arguments": {"a": 1}}</tool_call>', "", [F]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}, "id": "x"}</tool_call>', "", [F]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [F]),  # JSON in JSON
        ('<tool_call>{"name": "f"}</tool_call>', "", [["f", "{}"]]),
        ('<tool_call>[{"name": "f", "arguments": {"a": 1}}]</tool_call>', "", [F]),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}', "", [F]),  # its end was forgotten
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> So.', "So.", [F]),
    ],
    "mistral": [
        ('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', "", [F]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}, '
         '{"name": "get_weather", "arguments": {"city": "São }{\\" Paulo"}}]', "", [F, W]),
        ('[TOOL_CALLS]f[ARGS]{"a": 1}', "", [F]),
        ('[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}', "", [F]),
        ('Well. [TOOL_CALLS]f{"a": 1}[TOOL_CALLS]get_weather[ARGS]{"city": "São }{\\" Paulo"}', "Well.", [F, W]),
    ],
    "llama": [
        ('{"name": "f", "parameters": {"a": 1}}', "", [F]),
        ('\n\n{"name": "f", "parameters": {"a": 1}}', "", [F]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', "", [F]),
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', "", [F]),
        ('{"type": "json", "name": "f", "parameters": {"a": 1}}', None, []),
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "get_weather", "parameters": {"city": "São }{\\" Paulo"}}',
         "", [F, W]),
        ('{"name": "f", "arguments": {"a": 1}}', "", [F]),
        ('{"name": "f", "parameters": {"a": 1}}; and so on', "; and so on", [F]),
        ('The call is {"name": "f", "parameters": {"a": 1}}', None, []),
        ('<|python_tag|>brave_search.call(query="x")', None, []),
        ('{"answer": 42}', None, []),
    ],
    "granite": [
        ('<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]', "", [F]),
        ('<|tool_call|> [{"arguments": {"a": 1}, "name": "f"}, {"name": "f", "arguments": {"a": 1}}]', "", [F, F]),
        ('<tool_call>[{"name": "f", "arguments": {"a": 1}}]</tool_call>', "", [F]),
    ],
}  # fmt: skip
CASES = [(style, *case) for style, cases in WRITTEN.items() for case in cases]


@pytest.mark.parametrize(("style", "text", "content", "calls"), CASES)
def test_a_call_is_read(style: str, text: str, content: str | None, calls: list[list[str]]) -> None:
    """In each style; `None` stands for all of the text."""
    assert calls_in(text, style) == (text if content is None else content, calls)


NO_CALLS = [
    "",
    " \n ",
    "Hello <world>, { } [ ]\n",
    "<tool_call>",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    "<tool_call>\n{'name': 'f', 'arguments': {'a': 1}}\n</tool_call>",
    '<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "f", "arguments": {',
    '<tool_call>{"name": "f", "argu',
    "Say <tool_call> or </tool_call>.\n",
    "[TOOL_CALLS]",
    "[TOOL_CALLS]unknown[ARGS]{}",
    "[TOOL_CALLS] [ARGS] {}",
    "[TOOL_CALLS]f[CALL_ID]-[ARGS]{}",
    "[TOOL_CALLS][{}]",
    '{"name": "unknown", "parameters": {"a": 1}}',
    '{"name": "f", "parameters": 5}',
    "<|tool_call|>[]",
    "<|tool_call|>[{]}",
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_content(text: str, style: str) -> None:
    """All of it, down to the blanks."""
    assert calls_in(text, style) == (text, [])


ALL_TEXTS = [text for _, text, _, _ in CASES] + NO_CALLS


@given(st.data(), st.sampled_from(STYLES), st.lists(st.sampled_from(ALL_TEXTS), min_size=1, max_size=3))
def test_pieces_make_no_difference(data: st.DataObject, style: str, texts: list[str]) -> None:
    """However a text is cut, and also where it breaks off, the same comes out of it."""
    text = data.draw(st.sampled_from(["", "x", "<think>hm {", "<think>\nhm\n</think>\n\n"])) + "".join(texts)
    text = text[: data.draw(st.integers(0, len(text)) | st.just(len(text)))]
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=12))})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(cuts)]
    whole, cut, single = (read(each, "think", style) for each in ([text], pieces, list(text)))
    assert (whole.content, whole.thoughts, whole.calls) == (cut.content, cut.thoughts, cut.calls)
    assert (whole.content, whole.thoughts, whole.calls) == (single.content, single.thoughts, single.calls)


@given(st.text(alphabet='<>/tool_callTOOL_CALLS[]{}":,; fn|\\1am'))
def test_text_without_calls_is_never_lost(text: str) -> None:
    """Whatever it looks like."""
    for style in STYLES:
        assert read([text], None, style, names=frozenset({"never"})).content == text


JSON_OBJECTS = st.dictionaries(
    st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4), max_size=3
)


@given(JSON_OBJECTS, st.sampled_from([None, 2]), st.booleans())
def test_any_arguments_come_through(arguments: dict, indent: int | None, ascii_only: bool) -> None:
    """Braces, quotes and markers in strings end nothing."""
    text = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    call = {"hermes": '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>', "mistral": "[TOOL_CALLS]f[ARGS]%s"}
    for style, wrapper in call.items():
        assert calls_in(wrapper % text, style) == ("", [["f", text]])


def test_arguments_come_as_they_are_written() -> None:
    """A call is told as soon as its arguments begin, and text as soon as it can be no marker."""
    reader = Reader(None, "hermes", NAMES)
    assert reader.push("Well, <") == [Content("Well,")]
    assert reader.push("b> <tool") == [Content(" <b>")]
    assert reader.push('_call>\n{"name": "f", "arguments": {') == []
    (begun, first) = reader.push('"a"')
    assert isinstance(begun, CallBegun) and (begun.index, begun.name) == (0, "f")
    assert first == Arguments(0, '{"a"')
    assert reader.push(": 1") == [Arguments(0, ": 1")]
    assert reader.push("}") == [Arguments(0, "}")]
    assert reader.push("}\n</tool_call>") == []


def test_arguments_that_break_off_stay_a_call() -> None:
    """As OpenAI's do: what was told cannot be taken back. What follows is content."""
    assert calls_in('<tool_call>{"name": "f", "arguments": {"a": 1, x</tool_call>', "hermes") == (
        "x</tool_call>",
        [["f", '{"a": 1, ']],
    )
    assert calls_in('<tool_call>{"name": "f", "arguments": {"a": "b', "hermes") == ("", [["f", '{"a": "b']])


def test_a_list_with_an_unknown_tool() -> None:
    """What was read of it before stays a call; the rest of the list is content, down to its comma."""
    text = '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "unknown", "arguments": {}}]'
    assert calls_in(text, "mistral") == (', {"name": "unknown", "arguments": {}}]', [F])


def test_ids_are_openais_and_differ() -> None:
    """`call_` and something that nobody guesses."""
    text = WRITTEN["mistral"][1][0]
    ids = [id_ for _ in range(50) for id_ in read([text], None, "mistral").ids]
    assert len(set(ids)) == 100 and all(id_.startswith("call_") and len(id_) == 29 for id_ in ids)


def test_only_the_first_call_where_they_are_not_parallel() -> None:
    """The others are dropped; text is not."""
    text = WRITTEN["hermes"][3][0]
    assert calls_in(text + " So.", "hermes", parallel=False) == ("So.", [F])


THOUGHTS = [
    ("<think>\nhm <b>\n</think>\n\nYes.", "hm <b>", "Yes."),
    ("\n<think>hm</think>Yes.", "hm", "Yes."),
    ("<think></think>\n Yes.\n", "", "Yes.\n"),
    ("<think>hm", "hm", ""),
    ("<thin", "", "<thin"),
    (" Yes. <think>hm</think>", "", " Yes. <think>hm</think>"),
    ("Yes.", "", "Yes."),
    ("", "", ""),
]


@pytest.mark.parametrize(("text", "thoughts", "content"), THOUGHTS)
def test_thoughts_stand_at_the_beginning(text: str, thoughts: str, content: str) -> None:
    """Within their tags, and nowhere else; blanks around them are dropped."""
    assert read([text], "think") == Read(content, thoughts)


def test_mistrals_thoughts() -> None:
    """In tags of their own."""
    assert read(["[THINK]hm[/THINK]Yes."], "mistral") == Read("Yes.", "hm")
    assert read(["<think>hm</think>Yes."], "mistral") == Read("<think>hm</think>Yes.")


def test_calls_follow_thoughts() -> None:
    """A call within thoughts is a thought."""
    call = WRITTEN["hermes"][0][0]
    said = read([f"<think>{call}</think>\n{call}"], "think", "hermes")
    assert (said.thoughts, said.content, said.calls) == (call, "", [F])
