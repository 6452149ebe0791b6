"""A job's events become what OpenAI's clients read."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from api.answers import Chunks, Completion, Reply
from wire import Delta, Finished, Heard, JobId, TokenLogprob, Usage

JOB_ID = JobId(0, "x")
REPLY = Reply("chatcmpl-x", 1_700_000_000, "m")
EURO = "€".encode()
IMPOSSIBLE = float("-inf")

Event = Delta | Finished


def delta(text: str, *tokens: TokenLogprob, choice: int = 0) -> Delta:
    return Delta(JOB_ID, choice, text, tokens)


def end(choice: int = 0, labels: tuple[tuple[str, float], ...] = (), **usage: object) -> Finished:
    return Finished(JOB_ID, choice, "stop", Usage(**{"prompt_tokens": 10, "completion_tokens": 2, **usage}), labels)


def completion(*events: Event, n: int = 1, logprobs: bool = False) -> tuple[dict, ChatCompletion]:
    """As sent, and as OpenAI's client reads it with all its types checked."""
    collected = Completion(REPLY, n, logprobs)
    for event in events:
        collected.add(event)
    text = json.dumps(collected.body(), allow_nan=False)
    return json.loads(text), ChatCompletion.model_validate_json(text, strict=True)


def stream(*events: Event, logprobs: bool = False) -> tuple[list[dict], list[ChatCompletionChunk]]:
    """The same of a stream."""
    chunks = Chunks(REPLY, include_usage=True, logprobs=logprobs)
    sent = [*(chunk for event in events for chunk in chunks.of(event)), *chunks.last()]
    texts = [json.dumps(chunk, allow_nan=False) for chunk in sent]
    return [json.loads(text) for text in texts], [
        ChatCompletionChunk.model_validate_json(text, strict=True) for text in texts
    ]


def test_a_token_is_told_with_its_bytes_and_alternatives() -> None:
    """In order; its text is what can be read of its bytes; JSON has no number for what is impossible."""
    half = TokenLogprob(EURO[:2], -0.5, ((EURO[:2], -0.5), (b"a", -1.5), (b"b", IMPOSSIBLE)))
    body, read = completion(delta("Hi", TokenLogprob(b"Hi", IMPOSSIBLE)), delta("", half), end(), logprobs=True)
    assert body["choices"][0]["logprobs"]["refusal"] is None
    assert read.choices[0].message.content == "Hi"
    first, second = read.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob, first.top_logprobs) == ("Hi", [72, 105], -9999.0, [])
    assert (second.token, second.bytes, second.logprob) == ("\ufffd", list(EURO[:2]), -0.5)
    assert [(top.token, top.bytes, top.logprob) for top in second.top_logprobs] == [
        ("\ufffd", list(EURO[:2]), -0.5),
        ("a", [97], -1.5),
        ("b", [98], -9999.0),
    ]


def test_logprobs_are_null_unless_asked_for() -> None:
    """Asked for and without a token they are an empty list."""
    assert completion(delta("Hi"), end())[0]["choices"][0]["logprobs"] is None
    assert completion(end(), logprobs=True)[0]["choices"][0]["logprobs"] == {"content": [], "refusal": None}
    assert {chunk.choices[0].logprobs for chunk in stream(delta("Hi"), end())[1][:-1]} == {None}


def test_each_choice_has_its_own_tokens() -> None:
    """Also where choices come in turns, and end in another order than they stand in."""
    events = [
        delta("b", TokenLogprob(b"b", -2), choice=1),
        delta("a", TokenLogprob(b"a", -1)),
        delta("B", TokenLogprob(b"B", -3), choice=1),
        end(1),
        end(0),
    ]
    _, read = completion(*events, n=2, logprobs=True)
    assert [choice.index for choice in read.choices] == [0, 1]
    assert [[each.token for each in choice.logprobs.content] for choice in read.choices] == [["a"], ["b", "B"]]


def test_a_chunk_carries_the_tokens_of_its_text() -> None:
    """The chunk with the role, text without tokens and the end carry null; tokens may come without text."""
    token = TokenLogprob(EURO, -0.5)
    events = [delta("€", token), delta("plain"), delta("", TokenLogprob(EURO[:1], -1)), end()]
    sent, read = stream(*events, logprobs=True)
    told = [
        (chunk.choices[0].delta.content, chunk.choices[0].logprobs and chunk.choices[0].logprobs.content[0].bytes)
        for chunk in read[:-1]
    ]
    assert told == [("", None), ("€", list(EURO)), ("plain", None), ("", [EURO[0]]), (None, None)]
    assert all("logprobs" in chunk["choices"][0] for chunk in sent[:-1])
    assert [chunk["choices"][0]["finish_reason"] for chunk in sent[:-1]] == [None] * 4 + ["stop"]
    assert sent[0]["choices"][0]["delta"]["role"] == "assistant"
    assert not any("role" in chunk["choices"][0]["delta"] for chunk in sent[1:-1])


def test_label_probabilities_stand_beside_the_end() -> None:
    """In a stream they come with the finish reason only; without labels there is no such field."""
    labels = (("happy", 0.93), ("sad", 0.07))
    body, read = completion(delta("happy"), end(labels=labels))
    assert body["choices"][0]["label_probabilities"] == {"happy": 0.93, "sad": 0.07}
    assert read.choices[0].label_probabilities["happy"] == 0.93
    sent, _ = stream(delta("happy"), end(labels=labels))
    assert ["label_probabilities" in chunk["choices"][0] for chunk in sent[:-1]] == [False, False, True]
    assert sent[2]["choices"][0]["label_probabilities"] == {"happy": 0.93, "sad": 0.07}
    assert "label_probabilities" not in completion(end())[0]["choices"][0]


def test_choices_share_one_prompt() -> None:
    """What it cost is told once, as the first choice tells it, whichever ended first; answers add up."""
    events = [end(1, cached_tokens=10, audio_tokens=3), end(0, cached_tokens=4, audio_tokens=3, completion_tokens=5)]
    for usage in (completion(*events, n=2)[1].usage, stream(*events)[1][-1].usage):
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 7, 17)
        assert (usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens_details.audio_tokens) == (4, 3)


@pytest.mark.parametrize(
    ("received", "used", "told"),
    [(11.0, 11.0, (11.0, 11.0, 0.0)), (40.10006, 30.0, (40.1, 30.0, 10.1)), (2.0006, 1.0004, (2.001, 1.0, 1.001))],
)
def test_audio_that_was_used_and_dropped_adds_up(received: float, used: float, told: tuple) -> None:
    """To what came, as it is told: in milliseconds."""
    ends = end(0, heard=Heard(2, received, used)), end(1, heard=Heard(2, received, used))
    for usage in (completion(*ends, n=2)[1].usage, stream(*ends)[1][-1].usage):
        fields = ("seconds_received", "seconds_used", "seconds_dropped", "parts")
        assert usage.audio == dict(zip(fields, (*told, 2), strict=True))
