"""OpenAI's older completions, through the official client, and held against its types."""

from __future__ import annotations

import json

import openai
import pytest
from openai.types import Completion

from api.answers import Reply
from api.form import parse_as
from api.text_completions import CompletionRequest, TextChunks, build_job, check_limits
from config import Settings
from errors import BadRequest
from tests.support.inprocess import openai_client, run_in_process
from tests.support.servers import RunningServer
from tests.test_schema import FakeIntake
from wire import Delta, Finished, Job, JobId, Message, Sampling, Structure, TextPart, TokenLogprob, Usage

COMPLETIONS = "/v1/completions"
SETTINGS = Settings(_env_file=None)
JOB_ID = JobId(0, "x")


def test_a_text_is_continued(fake_server: RunningServer) -> None:
    """By the sync client, whole and as a stream, as a string and as a list of one."""
    with fake_server.client() as client:
        for prompt in ("#tokens=30", ["#tokens=30"]):
            answer = client.completions.create(model="fake", prompt=prompt, max_tokens=20)
            assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abcdefghijklmnopqrst", "length")
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (10, 20)
            stream = list(client.completions.create(model="fake", prompt=prompt, max_tokens=20, stream=True))
            assert "".join(chunk.choices[0].text for chunk in stream) == "abcdefghijklmnopqrst"
            assert [chunk.choices[0].finish_reason for chunk in stream] == [None] * (len(stream) - 1) + ["length"]
            assert {(chunk.object, chunk.id) for chunk in stream} == {("text_completion", stream[0].id)}
        assert len(client.completions.create(model="fake", prompt="#tokens=99").choices[0].text) == 16


async def test_the_shape_of_an_answer() -> None:
    """Strictly OpenAI's, with several choices and the tokens of each; usage at a stream's end where asked for."""
    body = {"model": "fake", "prompt": "#tokens=9 #random", "n": 2, "seed": 1, "temperature": 1, "logprobs": 2}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with run_in_process() as server, server.http() as http:
        whole = Completion.model_validate_json((await http.post(COMPLETIONS, json=body)).content, strict=True)
        *chunks, done, rest = (await http.post(COMPLETIONS, json={**body, **options})).text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    *pieces, last = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
    assert whole.choices[0].text != whole.choices[1].text
    for i, choice in enumerate(whole.choices):
        told = choice.logprobs
        assert (choice.index, "".join(told.tokens)) == (i, choice.text)
        assert told.text_offset == list(range(9))
        for top, logprob in zip(told.top_logprobs, told.token_logprobs, strict=True):
            assert len(top) == 2
            assert logprob <= max(top.values())
        mine = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == i]
        assert "".join(piece["text"] for piece in mine) == choice.text
        assert [at for piece in mine for at in (piece["logprobs"] or {}).get("text_offset", [])] == told.text_offset
    assert (last["choices"], last["usage"]) == ([], whole.usage.model_dump(exclude_unset=True))
    assert all(piece["usage"] is None for piece in pieces)
    for text in map(json.dumps, (pieces[-1], last)):
        Completion.model_validate_json(text, strict=True)


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions"])
async def test_the_usage_so_far(path: str) -> None:
    """In every chunk where asked for, of all choices together; it grows to what the last one tells."""
    said = {"prompt": "#tokens=9"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "#tokens=9"}]}
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "fake", **said, "n": 2, "stream": True, "stream_options": options}
    async with run_in_process() as server, server.http() as http:
        *chunks, done, _ = (await http.post(path, json=body)).text.split("\n\n")
        alone = await http.post(path, json={**body, "stream_options": {"continuous_usage_stats": True}})
    assert done == "data: [DONE]"
    usages = [json.loads(chunk.removeprefix("data: "))["usage"] for chunk in chunks]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert len(set(counts)) > 9
    assert usages[-1] == usages[-2]
    assert counts[-1] == 2 * 9
    assert {usage["prompt_tokens"] for usage in usages} == {usages[-1]["prompt_tokens"]}
    assert alone.status_code == 400
    assert alone.json()["error"]["param"] == "stream_options.continuous_usage_stats"


def test_half_a_character_is_told_as_such() -> None:
    """And what is impossible is a number; text is counted as it was sent."""
    chunks = TextChunks(Reply("cmpl-x", 1, "m"), include_usage=False, logprobs=True)
    half = TokenLogprob("€".encode()[:1], float("-inf"), ((b"a", -1.0), (b"b", float("-inf"))))
    events = [Delta(JOB_ID, 0, "€€"), Delta(JOB_ID, 0, "", (half,)), Finished(JOB_ID, 0, "stop", Usage(1, 1))]
    first, second, end = [chunk["choices"][0] for event in events for chunk in chunks.of(event)]
    assert (first["text"], first["logprobs"], end["text"], end["finish_reason"]) == ("€€", None, "", "stop")
    assert second["logprobs"] == {
        "tokens": ["\ufffd"],
        "token_logprobs": [-9999.0],
        "text_offset": [2],
        "top_logprobs": [{"b": -9999.0, "a": -1.0}],
    }


async def test_a_model_that_continues_no_text_says_so() -> None:
    """The embedded Whisper hears; the error names the field and the endpoint that it has."""
    async with run_in_process(model="whisper-tiny.en") as server, openai_client(server) as client:
        with pytest.raises(openai.BadRequestError, match="/v1/chat/completions") as caught:
            await client.completions.create(model="whisper-tiny.en", prompt="hello")
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("model", "refused"), [("cascade:whisper-tiny.en,fake", False), ("models/template.py:MyModel", True)]
)
async def test_what_else_can_continue_a_text(model: str, refused: bool) -> None:
    """The LLM of a cascade does; a class with `generate` knows conversations only."""
    async with run_in_process(model=model, served_model_name="m") as server, openai_client(server) as client:
        try:
            answer = await client.completions.create(model="m", prompt="#say=yes")
        except openai.BadRequestError as error:
            assert refused
            assert error.param == "prompt"
        else:
            assert not refused
            assert answer.choices[0].text == "yes"


async def test_errors_raise_as_everywhere() -> None:
    """In the middle of a stream, too."""
    async with run_in_process() as server, openai_client(server) as client:
        with pytest.raises(openai.NotFoundError):
            await client.completions.create(model="gpt-9", prompt="hello")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model="fake", prompt=["a", "b"])
        assert caught.value.param == "prompt"
        with pytest.raises(openai.APIError, match="failed while it answered"):
            stream = await client.completions.create(model="fake", prompt="#tokens=9 #fail=step", stream=True)
            async for _ in stream:
                pass
        await server.settled()


def job_of(**fields: object) -> Job:
    """What a request becomes, past all checks."""
    asked = parse_as(CompletionRequest, json.dumps({"model": "m", "prompt": "hello", **fields}).encode())
    check_limits(asked, SETTINGS)
    return build_job(asked, JOB_ID, FakeIntake(), 100)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt[0]"),
        ({"prompt": "x" * 1_000_001}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 9}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex"),
    ],
)
def test_what_is_wrong_is_named(fields: dict, param: str) -> None:
    """And what is not done here is refused."""
    with pytest.raises(BadRequest) as caught:
        job_of(**fields)
    assert caught.value.param == param


def test_fields_reach_the_job() -> None:
    """As those of the chat API; nulls and unknown fields ask for nothing."""
    usual = Job(JOB_ID, (Message("user", (TextPart("hello"),)),), Sampling(max_tokens=16), plain=True)
    optional = set(CompletionRequest.model_fields) - {"model", "prompt"}
    assert job_of() == job_of(**dict.fromkeys(optional)) == job_of(user="me", echo=False, best_of=1) == usual
    job = job_of(max_tokens=5, top_k=3, n=2, logprobs=0, priority=1, guided_regex="a")
    assert job.sampling == Sampling(max_tokens=5, top_k=3, n=2, top_logprobs=0)
    assert (job.priority, job.structure) == (1, Structure("regex", "guided_regex", "a"))
