"""A request is read strictly by type, and what is wrong is named as the client wrote it."""

from __future__ import annotations

import json

import pytest

from api.chat import build_job, check_limits
from api.schema import parse
from config import Settings
from errors import BadRequest, EardrumError
from wire import AudioPart, JobId, TextPart

HELLO = [{"role": "user", "content": "hello"}]
SETTINGS = Settings(_env_file=None)
JOB_ID = JobId(0, "x")


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO, **fields}).encode()


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
        (body(stop=5), "stop"),
        (body(stop=["a", 5]), "stop[1]"),
        (body(stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
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


def test_errors_never_echo_the_input() -> None:
    """Neither a secret nor a megabyte comes back."""
    for raw in (content({"type": "secret" * 1000}), body(n="secret" * 1000), b"secret" * 1000):
        with pytest.raises(BadRequest) as caught:
            parse(raw)
        assert "secret" not in caught.value.message
        assert len(caught.value.message) < 200


def test_unknown_fields_and_explicit_nulls_are_accepted() -> None:
    """As clients send them."""
    optional = ("stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "seed")
    chat = parse(
        body(
            user="me",
            store=True,
            metadata={"a": [1]},
            logit_bias=None,
            stop=None,
            modalities=["text"],
            messages=[{"role": "assistant", "content": None, "name": "x", "tool_calls": [{"id": "1"}]}, *HELLO],
            **dict.fromkeys(optional),
        )
    )
    assert chat.messages[1].content == "hello"


def test_a_job_holds_paths_instead_of_audio() -> None:
    """Order is kept, across blocks and turns; `developer` is `system`; text stays text."""
    stored: list[bytes] = []

    def store(data: bytes) -> str:
        stored.append(data)
        return f"path{len(stored)}"

    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "nonsense"}},
                {"type": "text", "text": "and"},
                {"type": "audio_url", "audio_url": "data:audio/ogg;base64,ZGVm"},
                {"type": "audio_url", "audio_url": {"url": "http://example.com/a.ogg"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "content": None},
    ]
    job = build_job(parse(body(messages=messages, stop="x", max_tokens=5, n=2)), JOB_ID, store, 100)
    assert stored == [b"abc", b"def"]
    assert job.spool_bytes == 6
    assert [message.role for message in job.messages] == ["system", "user", "assistant", "assistant"]
    assert job.messages[2].parts == (TextPart("no"),)
    assert job.messages[1].parts == (
        AudioPart("messages[1].content[0].input_audio.data", path="path1"),
        TextPart("and"),
        AudioPart("messages[1].content[2].audio_url", path="path2"),
        AudioPart("messages[1].content[3].audio_url.url", url="http://example.com/a.ogg"),
    )
    assert (job.sampling.stop, job.sampling.max_tokens, job.sampling.n) == (("x",), 5, 2)


@pytest.mark.parametrize(
    ("block", "place"),
    [
        ({"type": "input_audio", "input_audio": {"data": "!!"}}, "messages[1].content[0].input_audio.data"),
        ({"type": "input_audio", "input_audio": {"data": "A" * 1000}}, "messages[1].content[0].input_audio.data"),
        ({"type": "audio_url", "audio_url": {"url": "data:;base64,!!"}}, "messages[1].content[0].audio_url.url"),
        ({"type": "audio_url", "audio_url": "data:x"}, "messages[1].content[0].audio_url"),
    ],
)
def test_bad_base64_names_its_part(block: dict, place: str) -> None:
    """Wherever it stands, and whatever is wrong with it."""
    with pytest.raises(EardrumError) as caught:
        build_job(parse(content(block)), JOB_ID, lambda data: "", 100)
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
    ],
)
def test_what_is_over_a_limit_or_cannot_be_given_is_refused(raw: bytes, param: str) -> None:
    """16 clips, 8 choices, 4 stop strings, a million characters; usage without a stream; speech for an answer."""
    with pytest.raises(BadRequest) as caught:
        check_limits(parse(raw), SETTINGS)
    assert caught.value.param == param
