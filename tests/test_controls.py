"""Sampling controls, structured output and label probabilities, through the official client and the whole stack."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel

from tests.support.servers import RunningServer, run_server
from tests.support.speech import input_audio, user

RANDOM = "#tokens=300 #random"  # letters, each as likely, for as long as they are let


@pytest.fixture
def client(fake_server: RunningServer) -> Iterator[openai.OpenAI]:
    with fake_server.client() as client:
        yield client


def ask(client: openai.OpenAI, text: str, **options: object):
    return client.chat.completions.create(model="fake", messages=user(text), **options)


def content(client: openai.OpenAI, text: str, **options: object) -> str:
    return ask(client, text, **options).choices[0].message.content


# --------------------------------------------------------------------------------------------------- logprobs, controls


def test_logprobs_in_openais_shape(client: openai.OpenAI) -> None:
    """A token, its bytes and its alternatives, for each token of the text."""
    answer = ask(client, "#say=né", logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert [entry.bytes for entry in entries] == [[byte] for byte in "né".encode()]
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == answer.choices[0].message.content
    assert all(entry.logprob == pytest.approx(0, abs=1e-6) for entry in entries)
    assert [entry.top_logprobs[0].token for entry in entries] == [entry.token for entry in entries]
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    assert ask(client, "#say=n").choices[0].logprobs is None


def test_streamed_logprobs_are_those_of_the_answer(client: openai.OpenAI) -> None:
    """Each with the text it belongs to; none of a stop string."""
    options = {"logprobs": True, "top_logprobs": 1, "stop": ["wo t"]}
    whole = ask(client, "#say=one_two_three", **options).choices[0].logprobs.content
    chunks = list(ask(client, "#say=one_two_three", stream=True, **options))
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert streamed == whole
    assert "".join(entry.token for entry in whole) == "one t"
    text = ""
    for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs:
            assert text.endswith(chunk.choices[0].logprobs.content[-1].token)


def test_controls_steer_their_own_request_only(client: openai.OpenAI) -> None:
    """Bias forces a letter, penalties keep letters from coming again, top_k and min_p leave what they say."""
    options = {"max_tokens": 26, "temperature": 1.0, "seed": 1}
    assert content(client, RANDOM, **options, logit_bias={str(ord_of(client, "q")): 50}) == "q" * 26
    assert len(set(content(client, RANDOM, **options, frequency_penalty=2, presence_penalty=2))) > 20
    assert len(set(content(client, RANDOM, **options))) < 22
    assert len(set(content(client, RANDOM, temperature=0.0, max_tokens=9))) == 1
    assert content(client, "#say=ab", extra_body={"min_tokens": 5}).startswith("ab")
    held = ask(client, "#say=ab", max_tokens=7, extra_body={"ignore_eos": True})
    assert (held.usage.completion_tokens, held.choices[0].finish_reason) == (7, "length")
    for control in ({"top_k": 1}, {"min_p": 1.0}, {"repetition_penalty": 1.3}):
        assert content(client, "#tokens=9", temperature=1.0, extra_body=control) == "abcdefghi"


def ord_of(client: openai.OpenAI, letter: str) -> int:
    """A letter's token id in the fake model's vocabulary of bytes."""
    from models.fake import _byte_tokenizer

    return _byte_tokenizer().token_to_id(letter)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"extra_body": {"min_tokens": 9}, "max_tokens": 3}, "min_tokens"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"extra_body": {"structured_outputs": {"regex": "a("}}}, "structured_outputs.regex"),
        ({"extra_body": {"structured_outputs": {"choice": []}}}, "structured_outputs.choice"),
    ],
)
def test_what_cannot_be_is_a_400_at_its_place(client: openai.OpenAI, options: dict, param: str) -> None:
    """Also where only the worker can tell."""
    with pytest.raises(openai.BadRequestError) as error:
        ask(client, "hello", **options)
    assert error.value.param == param
    assert param.partition(".")[0] in error.value.message


# --------------------------------------------------------------------------------------------------- structured output


class Answer(BaseModel):
    mood: str
    loud: bool
    tags: list[str]


SCHEMA = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["happy", "sad"]},
        "loud": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["mood", "loud", "tags"],
    "additionalProperties": False,
}


def json_schema(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    """Streamed and not, with temperature, as `response_format` and as an extra."""
    options = {"temperature": 1.0, "response_format": json_schema(SCHEMA)}
    for seed in range(5):
        text = content(client, RANDOM, seed=seed, **options)
        assert Answer.model_validate_json(text).mood in ("happy", "sad")
        stream = ask(client, RANDOM, seed=seed, stream=True, **options)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    extra = content(client, RANDOM, extra_body={"structured_outputs": {"json": SCHEMA}})
    assert Answer.model_validate_json(extra)


def test_json_object(client: openai.OpenAI) -> None:
    """An object, whatever is in it. The end comes when it is closed, so the answer may take all its tokens."""
    bias = {str(ord_of(client, "}")): 100}
    text = content(client, RANDOM, max_tokens=200, response_format={"type": "json_object"}, logit_bias=bias)
    assert isinstance(json.loads(text), dict)


def test_regex_choice_and_grammar(client: openai.OpenAI) -> None:
    """vLLM's extras."""

    def structured(**kind: object) -> str:
        return content(client, RANDOM, temperature=1.0, extra_body={"structured_outputs": kind})

    assert re.fullmatch(r"[0-9]{3}-[a-c]+z", structured(regex=r"[0-9]{3}-[a-c]{1,5}z"))
    assert structured(choice=["yes", "no"]) in ("yes", "no")
    assert structured(grammar='start: "one" | "two" " and " "three"') in ("one", "two and three")


async def test_different_structures_side_by_side(fake_server: RunningServer) -> None:
    """Sixteen requests at once, each with a schema of its own, among plain ones."""
    async with fake_server.async_client() as client:

        async def one(i: int) -> str:
            schema = {"type": "object", "properties": {f"k{i}": {"const": i}}, "required": [f"k{i}"]}
            schema["additionalProperties"] = False
            answer = await client.chat.completions.create(
                model="fake", messages=user(RANDOM), response_format=json_schema(schema), temperature=1.0
            )
            return answer.choices[0].message.content

        async def plain(i: int) -> str:
            answer = await client.chat.completions.create(model="fake", messages=user(f"#say=plain_{i}"))
            return answer.choices[0].message.content

        answers = await asyncio.gather(*map(one, range(16)), *map(plain, range(16)))
    assert [json.loads(text) for text in answers[:16]] == [{f"k{i}": i} for i in range(16)]
    assert answers[16:] == [f"plain {i}" for i in range(16)]


def test_an_unsupported_keyword_is_named(client: openai.OpenAI) -> None:
    """So that the client knows what to leave out."""
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as error:
        ask(client, "hello", response_format=json_schema({"type": "object", "properties": {"a": schema}}))
    assert error.value.param == "response_format.json_schema.schema"


def test_label_probabilities(client: openai.OpenAI) -> None:
    """Each label of a choice, when logprobs are asked for; streamed in the last chunk of the choice."""
    options = {"logprobs": True, "extra_body": {"structured_outputs": {"choice": ["happy", "angry", "a"]}}}
    choice = ask(client, RANDOM, **options).choices[0]
    letter = 1 / 26
    total = 2 * letter**5 + letter
    expected = {"happy": letter**5 / total, "angry": letter**5 / total, "a": letter / total}
    assert choice.label_probabilities == pytest.approx(expected, rel=1e-3)
    assert math.isclose(sum(choice.label_probabilities.values()), 1.0, rel_tol=1e-6)
    last = [chunk for chunk in ask(client, RANDOM, stream=True, **options) if chunk.choices][-1]
    assert last.choices[0].label_probabilities == choice.label_probabilities
    unasked = ask(client, RANDOM, extra_body=options["extra_body"]).choices[0]
    assert not hasattr(unasked, "label_probabilities")


# ------------------------------------------------------------------------------------------------------ real weights


def test_real_words_have_real_logprobs(whisper_server: RunningServer) -> None:
    """The tokens' bytes make the text, greedy tokens are the likeliest, and most are near certain."""
    with whisper_server.client() as client:
        choice = client.chat.completions.create(
            model="my-model", messages=user(input_audio("jfk.ogg")), logprobs=True, top_logprobs=3
        ).choices[0]
    entries = choice.logprobs.content
    assert bytes(byte for entry in entries for byte in entry.bytes).decode().strip() == choice.message.content
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)
    assert all(entry.logprob == pytest.approx(entry.top_logprobs[0].logprob) for entry in entries)
    assert sum(entry.logprob > math.log(0.5) for entry in entries) > 0.7 * len(entries)


async def test_seeded_answers_are_the_same_alone_in_company_and_after_a_restart(whisper_server: RunningServer) -> None:
    """Of real speech at a temperature that garbles it."""
    clips = ["jfk.ogg", "cv-en-no.mp3"]

    async def answer(client: openai.AsyncOpenAI, i: int) -> str:
        result = await client.chat.completions.create(
            model="my-model", messages=user(input_audio(clips[i % 2])), temperature=1.2, seed=i, max_tokens=40
        )
        return result.choices[0].message.content

    async with whisper_server.async_client() as client:
        alone = [await answer(client, i) for i in range(4)]
        together = await asyncio.gather(*(answer(client, i) for i in range(8)))
    with run_server("--served-model-name", "my-model") as restarted:
        async with restarted.async_client() as client:
            again = await asyncio.gather(*(answer(client, i) for i in reversed(range(8))))
    assert together[:4] == alone
    assert again[::-1] == together
    assert len(set(together)) >= 6
