"""A request is read strictly by type, and what is wrong is named as the client wrote it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from api.chat import build_job, check_limits
from api.intake import Source
from api.schema import ChatRequest, NotSupported, parse
from config import Settings
from errors import BadRequest, EardrumError
from wire import AudioPart, Job, JobId, Sampling, Structure, TextPart

HELLO = [{"role": "user", "content": "hello"}]
SETTINGS = Settings(_env_file=None)
JOB_ID = JobId(0, "x")


class FakeIntake:
    """Files that are only names."""

    def __init__(self, **kept: Source) -> None:
        self.stored: list[bytes] = []
        self.kept = kept

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.stored))

    def store(self, data: bytes) -> str:
        self.stored.append(data)
        return f"path{len(self.stored)}"

    def keep(self, uuid: str, source: Source) -> None:
        self.kept[uuid] = source

    def again(self, uuid: str) -> Source:
        if uuid not in self.kept:
            raise BadRequest("not kept.")
        return self.kept[uuid]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO, **fields}).encode()


def job_of(**fields: object) -> Job:
    """What a request becomes, past all checks."""
    chat = parse(body(**fields))
    check_limits(chat, SETTINGS)
    return build_job(chat, JOB_ID, FakeIntake(), 100)


def content(*blocks: object) -> bytes:
    return body(messages=[*HELLO, {"role": "user", "content": list(blocks)}])


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b"", None),
        (b"nope", None),
        (b"[1]", None),
        (b"\xff\xfe", None),
        (b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}", None),
        (json.dumps({"messages": HELLO}).encode(), "model"),
        (json.dumps({"model": "m"}).encode(), "messages"),
        (body(model=None), "model"),
        (body(messages=[]), "messages"),
        (body(messages="hello"), "messages"),
        (body(messages=[{"content": "x"}]), "messages[0].role"),
        (body(messages=[{"role": "zzz", "content": "x"}]), "messages[0].role"),
        (body(messages=[{"role": "user", "content": 5}]), "messages[0].content"),
        (body(messages=[{"role": "user", "content": [{"type": ["text"]}]}]), "messages[0].content[0]"),
        (body(stream="yes"), "stream"),
        (body(n=0), "n"),
        (body(n="2"), "n"),
        (body(n=True), "n"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_completion_tokens=1.5), "max_completion_tokens"),
        (body(temperature=99), "temperature"),
        (body(temperature=-1), "temperature"),
        (body(temperature="hot"), "temperature"),
        (body(top_p=1.1), "top_p"),
        (body(seed=2**63), "seed"),
        (body(top_k=-2), "top_k"),
        (body(top_k=1.5), "top_k"),
        (body(top_k=2**31), "top_k"),
        (body(min_p=1.1), "min_p"),
        (body(min_p="0"), "min_p"),
        (body(presence_penalty=2.1), "presence_penalty"),
        (body(frequency_penalty=-2.1), "frequency_penalty"),
        (body(frequency_penalty=True), "frequency_penalty"),
        (body(repetition_penalty=0), "repetition_penalty"),
        (body(repetition_penalty=11), "repetition_penalty"),
        (body(logit_bias=[1]), "logit_bias"),
        (body(logit_bias={"word": 1}), "logit_bias"),
        (body(logit_bias={"-1": 1}), "logit_bias"),
        (body(logit_bias={"1.0": 1}), "logit_bias"),
        (body(logit_bias={"": 1}), "logit_bias"),
        (body(logit_bias={"٣": 1}), "logit_bias"),
        (body(logit_bias={"9" * 30: 1}), "logit_bias"),
        (body(logit_bias={"1": 101}), "logit_bias"),
        (body(logit_bias={"1": "1"}), "logit_bias"),
        (body(logit_bias={"1": float("nan")}), "logit_bias"),
        (body(min_tokens=-1), "min_tokens"),
        (body(ignore_eos=1), "ignore_eos"),
        (body(logprobs=5), "logprobs"),
        (body(logprobs=True, top_logprobs=-1), "top_logprobs"),
        (body(logprobs=True, top_logprobs=True), "top_logprobs"),
        (body(priority=2**31 + 1), "priority"),
        (body(priority="high"), "priority"),
        (body(long_audio="split"), "long_audio"),
        (body(long_audio=["chunk"]), "long_audio"),
        (body(stop=5), "stop"),
        (body(stop=["a", 5]), "stop[1]"),
        (body(stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
        (body(stream_options={"continuous_usage_stats": 1}), "stream_options.continuous_usage_stats"),
        (body(audio={"voice": "alloy", "format": "wav"}), "audio"),
        (body(web_search_options={"search_context_size": "low"}), "web_search_options"),
        (body(stop_token_ids=[7]), "stop_token_ids"),
        (body(include_stop_str_in_output=True), "include_stop_str_in_output"),
        (body(bad_words=["x"]), "bad_words"),
        (body(allowed_token_ids=[7]), "allowed_token_ids"),
        (body(prompt_logprobs=0), "prompt_logprobs"),
        (body(echo=True), "echo"),
        (body(truncate_prompt_tokens=100), "truncate_prompt_tokens"),
        (body(use_beam_search=True), "use_beam_search"),
        (body(logits_processors=["x"]), "logits_processors"),
        (body(documents=[{}]), "documents"),
        (body(chat_template="{{ messages }}"), "chat_template"),
        (body(skip_special_tokens=False), "skip_special_tokens"),
        (content("text"), "messages[1].content[0]"),
        (content({"type": "image_url"}), "messages[1].content[0]"),
        (content({"type": "text"}), "messages[1].content[0].text"),
        (content({"type": "audio_url"}), "messages[1].content[0].audio_url"),
        (content({"type": "audio_url", "audio_url": 5}), "messages[1].content[0].audio_url"),
        (content({"type": "audio_url", "audio_url": {}}), "messages[1].content[0].audio_url.url"),
        (content({"type": "audio_url", "audio_url": {"url": None}}), "messages[1].content[0].audio_url.url"),
        (content({"type": "input_audio", "input_audio": {"format": "wav"}}), "messages[1].content[0].input_audio.data"),
        (
            content({"type": "text", "text": ""}, {"type": "input_audio", "input_audio": {"data": "YQ", "format": 5}}),
            "messages[1].content[1].input_audio.format",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(raw: bytes, param: str | None) -> None:
    """In the client's words, and in one sentence."""
    with pytest.raises(BadRequest) as caught:
        parse(raw)
    assert caught.value.param == param
    assert param is None or f"`{param}`" in caught.value.message


def schema_format(**named: object) -> dict:
    return {"type": "json_schema", "json_schema": named}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": ["json_schema"]}}, "response_format.type"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": None}}, "response_format.json_schema"),
        ({"response_format": schema_format(name="x")}, "response_format.json_schema.schema"),
        ({"response_format": schema_format(schema=None)}, "response_format.json_schema.schema"),
        ({"response_format": schema_format(schema="{}")}, "response_format.json_schema.schema"),
        ({"response_format": schema_format(schema={"const": float("nan")})}, "response_format.json_schema.schema"),
        ({"response_format": schema_format(schema={}, strict="yes")}, "response_format.json_schema.strict"),
        ({"response_format": schema_format(schema={}, name=5)}, "response_format.json_schema.name"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": None}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": True, "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "not json"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"const": Infinity}'}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[" * 10_000}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": True}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": "happy"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice[1]"),
        ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice[1]"),
        ({"structured_outputs": {"choice": ["a", "b", "a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        (
            {"structured_outputs": {"json": {}, "disable_additional_properties": True}},
            "structured_outputs.disable_additional_properties",
        ),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": ["a"]}, "guided_regex"),
        ({"guided_choice": [5]}, "guided_choice[0]"),
        ({"guided_grammar": {}}, "guided_grammar"),
        ({"guided_json": {}, "guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ],
)  # fmt: skip
def test_a_wrong_structure_is_named(fields: dict, param: str) -> None:
    """Also what is right by itself and would be left out of the answer."""
    with pytest.raises(BadRequest) as caught:
        parse(body(**fields))
    assert caught.value.param == param
    assert f"`{param}`" in caught.value.message


def test_errors_never_echo_the_input() -> None:
    """Neither a secret nor a megabyte comes back."""
    secret = "secret" * 1000
    for raw in (
        content({"type": secret}),
        body(n=secret),
        b"secret" * 1000,
        body(logit_bias={secret: 1}),
        body(response_format={"type": secret}),
        body(long_audio=secret),
        body(structured_outputs={"json": secret}),
        body(structured_outputs={"choice": [secret] * 2}),
        body(structured_outputs={secret: "x"}),
    ):
        with pytest.raises(BadRequest) as caught:
            parse(raw)
        assert "secret" not in caught.value.message
        assert len(caught.value.message) < 200


def test_unknown_fields_and_explicit_nulls_are_accepted() -> None:
    """As clients send them."""
    optional = set(ChatRequest.model_fields) - {"model", "messages"}
    assert job_of(**dict.fromkeys(optional)).sampling == Sampling()
    nothing = {"stop_token_ids": [], "bad_words": [], "echo": False, "web_search_options": {}}
    chat = parse(
        body(
            **nothing,
            stream_options={"continuous_usage_stats": False},
            add_generation_prompt=True,
            skip_special_tokens=True,
            parallel_tool_calls=True,
            service_tier="auto",
            user="me",
            store=True,
            metadata={"a": [1]},
            messages=[
                {
                    "role": "assistant",
                    "content": None,
                    "name": "x",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                },
                *HELLO,
            ],
            modalities=["text"],
        )
    )
    assert chat.messages[1].content == "hello"


def test_what_is_refused_is_refused_whatever_it_says() -> None:
    """Every field of the list, in one sentence that names it."""
    for name in NotSupported.model_fields:
        for value in ("x", 1, [1], {"a": 1}):
            with pytest.raises(BadRequest, match=f"`{name}`: This is not supported here") as caught:
                parse(body(**{name: value}))
            assert caught.value.param == name


def test_a_job_holds_paths_instead_of_audio() -> None:
    """Order is kept, across blocks and turns; `developer` is `system`; text stays text."""
    intake = FakeIntake()
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "nonsense"}},
                {"type": "text", "text": "and"},
                {"type": "audio_url", "audio_url": "data:audio/ogg;base64,ZGVm"},
                {"type": "audio_url", "audio_url": {"url": "http://example.com/a.ogg"}},
                {"type": "input_audio", "input_audio": "Z2hp"},
            ],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None},
    ]
    job = build_job(parse(body(messages=messages, stop="x", max_tokens=5, n=2)), JOB_ID, intake, 100)
    assert intake.stored == [b"abc", b"def", b"ghi"]
    assert job.spool_bytes == 9
    assert [message.role for message in job.messages] == ["system", "user", "assistant", "assistant"]
    assert job.messages[2].parts == (TextPart("no"),)
    assert job.messages[1].parts == (
        AudioPart("messages[1].content[0].input_audio.data", path="path1"),
        TextPart("and"),
        AudioPart("messages[1].content[2].audio_url", path="path2"),
        AudioPart("messages[1].content[3].audio_url.url", url="http://example.com/a.ogg"),
        AudioPart("messages[1].content[4].input_audio", path="path3"),
    )
    assert (job.sampling.stop, job.sampling.max_tokens, job.sampling.n) == (("x",), 5, 2)


@pytest.mark.parametrize(
    ("block", "place"),
    [
        ({"type": "input_audio", "input_audio": {"data": "!!"}}, "messages[1].content[0].input_audio.data"),
        ({"type": "input_audio", "input_audio": {"data": "A" * 1000}}, "messages[1].content[0].input_audio.data"),
        ({"type": "input_audio", "input_audio": "!!"}, "messages[1].content[0].input_audio"),
        ({"type": "audio_url", "audio_url": {"url": "data:;base64,!!"}}, "messages[1].content[0].audio_url.url"),
        ({"type": "audio_url", "audio_url": "data:x"}, "messages[1].content[0].audio_url"),
    ],
)
def test_bad_base64_names_its_part(block: dict, place: str) -> None:
    """Wherever it stands, and whatever is wrong with it."""
    with pytest.raises(EardrumError) as caught:
        build_job(parse(content(block)), JOB_ID, FakeIntake(), 100)
    assert (caught.value.status, caught.value.param) == (400, place)


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (content(*[{"type": "audio_url", "audio_url": "http://x/"}] * 17), "messages"),
        (body(n=9), "n"),
        (body(stop=["a"] * 5), "stop"),
        (body(messages=[{"role": "user", "content": "x" * 600_000}] * 2), "messages"),
        (content({"type": "audio_url", "audio_url": "http://x/" + "a" * 1_000_000}), "messages"),
        (body(stream_options={"include_usage": True}), "stream_options"),
        (body(modalities=["text", "audio"]), "modalities"),
        (body(logit_bias=dict.fromkeys(map(str, range(301)), 1)), "logit_bias"),
        (body(min_tokens=6, max_tokens=5), "min_tokens"),
        (body(min_tokens=6, max_tokens=9, max_completion_tokens=5), "min_tokens"),
        (body(logprobs=True, top_logprobs=21), "top_logprobs"),
        (body(top_logprobs=2), "top_logprobs"),
        (body(logprobs=False, top_logprobs=2), "top_logprobs"),
        (body(structured_outputs={"choice": [str(i) for i in range(65)]}), "structured_outputs.choice"),
        (body(guided_choice=["x" * 99_999, "yy"]), "guided_choice"),
        (body(guided_regex="x" * 100_001), "guided_regex"),
        (body(guided_json=json.dumps({"const": "x" * 100_000})), "guided_json"),
        (body(response_format=schema_format(schema={"const": "x" * 100_000})), "response_format.json_schema.schema"),
        (body(response_format={"type": "json_object"}, structured_outputs={"regex": "a"}), "structured_outputs.regex"),
        (body(structured_outputs={"json_object": True}, guided_regex="a"), "guided_regex"),
        (body(guided_json={}, guided_grammar="a"), "guided_grammar"),
    ],
)
def test_what_is_over_a_limit_or_cannot_be_given_is_refused(raw: bytes, param: str) -> None:
    """More than the settings allow, what contradicts itself, and what this server cannot answer with."""
    with pytest.raises(BadRequest) as caught:
        check_limits(parse(raw), SETTINGS)
    assert caught.value.param == param
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({}, Sampling()),
        ({"max_tokens": 9, "max_completion_tokens": 5, "min_tokens": 5}, Sampling(max_tokens=5, min_tokens=5)),
        ({"temperature": 0, "top_p": 0}, Sampling(temperature=0.0, top_p=0.0)),
        ({"top_k": -1}, Sampling(top_k=0)),
        ({"top_k": 0}, Sampling(top_k=0)),
        ({"top_k": 40, "min_p": 0.1}, Sampling(top_k=40, min_p=0.1)),
        (
            {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.2},
            Sampling(presence_penalty=-2.0, frequency_penalty=2.0, repetition_penalty=1.2),
        ),
        ({"logit_bias": {}}, Sampling()),
        ({"logit_bias": {"50256": -100, "7": 0.5}}, Sampling(logit_bias=((50256, -100.0), (7, 0.5)))),
        ({"logit_bias": {"7": 1, "07": 2}}, Sampling(logit_bias=((7, 2.0),))),
        ({"ignore_eos": True, "min_tokens": 5}, Sampling(ignore_eos=True, min_tokens=5)),
        ({"logprobs": True}, Sampling(top_logprobs=0)),
        ({"logprobs": True, "top_logprobs": 20}, Sampling(top_logprobs=20)),
        ({"logprobs": False}, Sampling()),
        ({"n": 3, "stop": ["a", "b"], "seed": -1}, Sampling(n=3, stop=("a", "b"), seed=-1)),
    ],
)
def test_sampling_fields_reach_the_job(fields: dict, sampling: Sampling) -> None:
    """In the words of OpenAI and vLLM."""
    assert job_of(**fields).sampling == sampling


@pytest.mark.parametrize("priority", [-(2**31), 0, 5])
def test_a_priority_reaches_the_job(priority: int) -> None:
    """Without one it is 0."""
    assert job_of(priority=priority).priority == priority
    assert job_of().priority == 0


@pytest.mark.parametrize("long_audio", ["error", "truncate", "chunk", None])
def test_what_becomes_of_long_audio_reaches_the_job(long_audio: str | None) -> None:
    """Without a word of the client's it is left to the server."""
    assert job_of(long_audio=long_audio).long_audio == long_audio
    assert job_of().long_audio is None


SCHEMA = {"type": "object", "properties": {"z": {"const": "é"}, "a": {}}}
SCHEMA_TEXT = json.dumps(SCHEMA, ensure_ascii=False)


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Structure("json_object", "response_format")),
        (
            {"response_format": schema_format(name="x", description="y", strict=False, schema=SCHEMA)},
            Structure("json", "response_format.json_schema.schema", SCHEMA_TEXT),
        ),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"json": SCHEMA, "json_object": False}},
            Structure("json", "structured_outputs.json", SCHEMA_TEXT),
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None, "disable_any_whitespace": True}},
            Structure("json", "structured_outputs.json", SCHEMA_TEXT),
        ),
        (
            {"structured_outputs": {"regex": "[ab]+", "disable_fallback": True, "whitespace_pattern": None}},
            Structure("regex", "structured_outputs.regex", "[ab]+"),
        ),
        (
            {"structured_outputs": {"choice": ["happy", "sad"], "disable_additional_properties": False}},
            Structure("choice", "structured_outputs.choice", choices=("happy", "sad")),
        ),
        ({"structured_outputs": {"grammar": "g"}}, Structure("grammar", "structured_outputs.grammar", "g")),
        ({"structured_outputs": {"json_object": True}}, Structure("json_object", "structured_outputs.json_object")),
        ({"guided_json": SCHEMA}, Structure("json", "guided_json", SCHEMA_TEXT)),
        ({"guided_json": SCHEMA_TEXT}, Structure("json", "guided_json", SCHEMA_TEXT)),
        ({"guided_regex": "a"}, Structure("regex", "guided_regex", "a")),
        ({"guided_choice": ["a"]}, Structure("choice", "guided_choice", choices=("a",))),
        ({"guided_grammar": "g", "guided_decoding_backend": "x"}, Structure("grammar", "guided_grammar", "g")),
    ],
)
def test_a_structure_reaches_the_job(fields: dict, structure: Structure | None) -> None:
    """However it was asked for; a schema as JSON text, its properties in the client's order."""
    assert job_of(**fields).structure == structure


def test_a_uuid_names_audio_that_was_sent_before() -> None:
    """In a block of either kind, beside the audio to keep it, and alone to hear it again."""
    intake = FakeIntake(old=Source("old-path"), far=Source(url="http://example.com/far.ogg"))
    blocks = [
        {"type": "input_audio", "input_audio": {"data": "YWJj"}, "uuid": "new"},
        {"type": "audio_url", "audio_url": "http://example.com/a.ogg", "uuid": "address"},
        {"type": "input_audio", "uuid": "old"},
        {"type": "audio_url", "audio_url": None, "uuid": "far"},
    ]
    job = build_job(parse(content(*blocks)), JOB_ID, intake, 100)
    assert job.audio_parts == [
        AudioPart("messages[1].content[0].input_audio.data", path="path1"),
        AudioPart("messages[1].content[1].audio_url", url="http://example.com/a.ogg"),
        AudioPart("messages[1].content[2].uuid", path="old-path"),
        AudioPart("messages[1].content[3].uuid", url="http://example.com/far.ogg"),
    ]
    assert (intake.kept["new"], intake.kept["address"]) == (Source("path1"), Source(url="http://example.com/a.ogg"))
    with pytest.raises(BadRequest) as unknown:
        build_job(parse(content({"type": "input_audio", "uuid": "nobody's"})), JOB_ID, intake, 100)
    assert unknown.value.param == "messages[1].content[0].uuid"


@pytest.mark.parametrize(
    ("block", "place"),
    [
        ({"type": "input_audio"}, "input_audio"),
        ({"type": "audio_url", "audio_url": None}, "audio_url"),
        ({"type": "input_audio", "input_audio": {"data": "YWJj"}, "uuid": ""}, "uuid"),
        ({"type": "input_audio", "input_audio": {"data": "YWJj"}, "uuid": 7}, "uuid"),
        ({"type": "audio_url", "audio_url": "http://example.com", "uuid": "x" * 257}, "uuid"),
    ],
)
def test_an_audio_block_has_audio_or_a_uuid(block: dict, place: str) -> None:
    """Or it is a 400 at its place."""
    with pytest.raises(BadRequest) as caught:
        parse(content(block))
    assert caught.value.param == f"messages[1].content[0].{place}"


def test_the_page_of_the_api_names_what_is_refused() -> None:
    """All of it."""
    readme = (Path(__file__).resolve().parents[1] / "docs" / "api.md").read_text()
    sentence = readme[readme.index("is not done here: ") : readme.index("Other fields are accepted")]
    assert set(re.findall(r"`(\w+)`", sentence)) == {*NotSupported.model_fields, "modalities"}
