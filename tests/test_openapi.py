"""`/openapi.json` tells of every route what is so."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from api.form import Form, parse_as
from api.openapi.document import describe
from api.openapi.failures import SAYS
from api.openapi.operations import OPERATIONS, request_models
from api.transcription_request import parse_json
from config import Settings
from errors import BadRequest, EardrumError, StreamNotRead, family
from tests.support.inprocess import openai_client, run_in_process
from tests.support.speech import input_audio, user

DOCUMENT = describe(Settings(_env_file=None, model="fake", allow_template_kwargs="a"))
GUARDED = describe(Settings(_env_file=None, model="fake", api_keys="key"))


def validator(schema: dict) -> Draft202012Validator:
    """Of a schema in the document."""
    return Draft202012Validator({"components": DOCUMENT["components"], **schema})


def named(name: str) -> Draft202012Validator:
    return validator({"$ref": f"#/components/schemas/{name}"})


def contents() -> Iterator[tuple[str, str, dict]]:
    """Every body: where it stands, its media type, and what is said of it."""
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for body in bodies:
                for media_type, content in body.get("content", {}).items():
                    yield f"{method} {path}", media_type, content
    for name, answer in DOCUMENT["components"]["responses"].items():
        yield name, "application/json", answer["content"]["application/json"]


@pytest.mark.parametrize("document", [DOCUMENT, GUARDED])
def test_it_is_openapi(document: dict) -> None:
    """3.1, by the validator of its makers."""
    validate(document)
    assert document["openapi"].startswith("3.1")


@pytest.mark.filterwarnings("ignore:Duplicate Operation ID")  # of GET and HEAD; FastAPI's list is not what is served
async def test_every_route_is_described() -> None:
    """And none that is not there. What answers a GET answers a HEAD, which the document says once."""
    async with run_in_process() as server:
        routes = server.app.openapi()["paths"]  # FastAPI's own list of them
    assert {(method, path) for path, methods in routes.items() for method in methods if method != "head"} == set(
        OPERATIONS
    )


async def test_it_is_served_as_it_is_built() -> None:
    """Whole, without a key, to a HEAD too."""
    async with run_in_process(api_keys="key") as server, server.http() as http:
        answer = await http.get("/openapi.json")
        head = await http.head("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == GUARDED
    assert head.status_code == 200


def test_it_is_quick() -> None:
    """It is built once, in a thread; the limit is generous, for slow machines."""
    started = time.process_time()
    describe(Settings(_env_file=None, model="fake"))
    assert time.process_time() - started < 1


# ------------------------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize(("where", "media_type", "content"), list(contents()))
def test_every_body_has_examples_that_fit(where: str, media_type: str, content: dict) -> None:
    """Of a stream, each of its events fits the schema of events."""
    assert content["examples"]
    for example in content["examples"].values():
        validator(content["schema"]).validate(example["value"])
        if media_type == "text/event-stream":
            lines = [line for line in example["value"].splitlines() if line.startswith("data: {")]
            for line in lines:
                validator(content["x-event-schema"]).validate(json.loads(line.removeprefix("data: ")))
            assert lines


async def test_the_examples_of_requests_are_answered() -> None:
    """But for what their addresses and their audio would be. The model's name is the served one."""
    async with run_in_process(served_model_name="mine") as server, server.http() as http:
        document = (await http.get("/openapi.json")).json()
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/completions"):
            content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            (example,) = content["examples"].values()
            text = json.dumps(example["value"]).replace("https://example.com/speech.ogg", _as_data())
            assert (await http.post(path, content=text)).status_code == 200
            assert example["value"]["model"] == "mine"


def _as_data() -> str:
    return "data:audio/ogg;base64," + input_audio("jfk.ogg")["input_audio"]["data"]


# -------------------------------------------------------------------------------------------------------------- errors


def test_every_error_stands_in_an_answer() -> None:
    """With its code, its envelope and its headers; but for those that no operation of these can give."""
    of_no_operation = {
        "NotFound": "no such route",
        "MethodNotAllowed": "405 is no operation's",
        "StreamNotRead": "event",
    }
    ours = [cls for cls in family(EardrumError) if cls.__module__ == "errors" and cls is not EardrumError]
    for cls in ours:
        answer = DOCUMENT["components"]["responses"].get(f"Error{cls.status}", {})
        examples = [
            example["value"]["error"]
            for example in answer.get("content", {}).get("application/json", {}).get("examples", {}).values()
        ]
        if cls.__name__ in of_no_operation:
            continue
        assert [cls.code, cls.type] in [[error["code"], error["type"]] for error in examples], cls
        assert set(cls("").headers) - {"connection"} <= set(answer["headers"]), cls
        assert cls.code is None or f"`{cls.code}`" in answer["description"]
    assert set(ours) == {*SAYS, StreamNotRead}


def test_what_asks_the_model_can_fail_in_all_ways() -> None:
    """All statuses of the table but 405; 401 only where there are keys."""
    statuses = {str(cls.status) for cls in SAYS} - {"405"}
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/audio/transcriptions"):
        assert set(DOCUMENT["paths"][path]["post"]["responses"]) == {"200", *statuses} - {"401"}
        assert set(GUARDED["paths"][path]["post"]["responses"]) == {"200", *statuses}


def test_keys_are_asked_for_where_there_are_some() -> None:
    """Of everything but probes; and then the document does not tell the model's name."""
    assert "security" not in DOCUMENT and "securitySchemes" not in DOCUMENT["components"]
    assert GUARDED["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert GUARDED["security"] == [{"key": []}]
    open_paths = {
        path for path, methods in GUARDED["paths"].items() for each in methods.values() if each.get("security") == []
    }
    assert open_paths == {"/live", "/ready", "/health"}
    assert '"fake"' in json.dumps(DOCUMENT)
    assert '"fake"' not in json.dumps(GUARDED)


# ------------------------------------------------------------------------------------------------------------ requests

AGAIN = {"type": "audio_url", "uuid": "a"}
TWO_PARTS = [{"type": "input_text", "text": "x"}, {"type": "refusal", "refusal": "x"}]
GOOD: dict[str, list[dict]] = {
    "ChatRequest": [
        {"model": "fake", "messages": user("hello")},
        {
            "model": "fake",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "audio_url", "audio_url": "data:,x", "uuid": "a"}]},
                {"role": "assistant", "content": None},
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}, AGAIN]},
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
            "stop": ["a", "b"],
            "logit_bias": {"5": 1, "6": -100},
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.5,
            "seed": -5,
            "tools": [],
            "add_generation_prompt": True,
        },
        {"model": "fake", "messages": user("x"), "guided_json": "{}", "n": 2, "stop": "a", "modalities": ["text"]},
        {"model": "fake", "messages": user("x"), "structured_outputs": {"json": {"type": "object"}}, "top_k": -1},
        {"model": "fake", "messages": user("x"), "guided_choice": ["a"], "response_format": {"type": "text"}},
    ],
    "CompletionRequest": [
        {"model": "fake", "prompt": ["hello"], "logprobs": 2, "best_of": 1, "max_tokens": 5},
        {"model": "fake", "prompt": "hello", "guided_choice": ["a"], "stream": None},
    ],
    "ResponsesRequest": [
        {"model": "fake", "input": "hello", "metadata": {"a": "b"}, "text": {"format": {"type": "text"}}},
        {
            "model": "fake",
            "input": [{"role": "user", "content": TWO_PARTS}],
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {}, "strict": True}},
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 3,
        },
    ],
    "TranscriptionRequest": [
        {"model": "fake", "input_audio": {"data": "x", "format": "wav"}, "include": ["logprobs"], "language": "en"},
        {
            "model": "fake",
            "input_audio": {"data": "x"},
            "response_format": "verbose_json",
            "timestamp_granularities": ["segment"],
            "chunking_strategy": {"type": "server_vad"},
            "temperature": 1,
        },
    ],
}  # fmt: skip
FORMS: dict[str, type[Form]] = {form.__name__: form for form in request_models()}
PARSERS = {"TranscriptionRequest": parse_json}  # where there is more to it
OTHERS: tuple[Any, ...] = (None, True, False, 0, 1, -1, 7, 0.5, 1.5, "", "a", "text", [], ["a"], [1], {}, {"a": 1})


def refusal(name: str, body: object) -> str | None:
    """The field that the parser refuses, if it does."""
    try:
        PARSERS.get(name, partial(parse_as, FORMS[name]))(json.dumps(body).encode())
    except BadRequest as error:
        return str(error.param).partition(".")[0]
    return None


def changed(body: object, draw: random.Random) -> Any:
    """The same with something else, or nothing, in one place."""
    body = deepcopy(body)
    inner: Any = body
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = draw.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and draw.random() < 0.7:
            inner = inner[key]
            continue
        if draw.random() < 0.2:
            del inner[key]
        else:
            inner[key] = draw.choice(OTHERS)
        return body


def widened(name: str, body: dict, draw: random.Random) -> dict:
    """The same with one more field that the form has."""
    fields = [field.alias or key for key, field in FORMS[name].model_fields.items()]
    return {**body, draw.choice(fields): draw.choice(OTHERS)}


@pytest.mark.parametrize("name", GOOD)
def test_requests_are_described_as_they_are_read(name: str) -> None:
    """Whatever the parser takes, the description allows."""
    draw, described = random.Random(name), named(name)
    accepted = refused = 0
    for _ in range(1500):
        body = draw.choice(GOOD[name])
        body = changed(body, draw) if draw.random() < 0.6 else widened(name, body, draw)
        if refusal(name, body) is None:
            accepted += body.get("model") == "fake"
            errors = [error.message for error in described.iter_errors({**body, "model": "fake"})]
            assert not errors, (body, errors)
        else:
            refused += 1
    assert accepted > 100 < refused


# Where a body is refused that the description allows: rules between fields, and texts of which not every one is good.
LOOSER = {
    "structured_outputs",
    "guided_json",
    "guided_choice",
    "language",
    "timestamp_granularities",
    "include",
    "stream",
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_described_is_read(name: str) -> None:
    """But for such rules: what the description allows, the parser takes."""
    draw, described = random.Random(name), named(name)
    for body in GOOD[name]:
        assert refusal(name, body) is None and described.is_valid(body)
    allowed = 0
    for _ in range(1500):
        body = widened(name, draw.choice(GOOD[name]), draw)
        if described.is_valid(body):
            allowed += 1
            assert refusal(name, body) in {None, *LOOSER}, body
    assert allowed > 150


@pytest.mark.parametrize(
    ("name", "field", "limit"),
    [("ChatRequest", "n", 8), ("ChatRequest", "top_logprobs", 20), ("CompletionRequest", "logprobs", 20)],
)
def test_this_servers_limits_are_told(name: str, field: str, limit: int) -> None:
    """As numbers in the schema."""
    body = GOOD[name][0]
    assert named(name).is_valid({**body, field: limit})
    assert not named(name).is_valid({**body, field: limit + 1})


def test_stops_and_biases_have_their_limits() -> None:
    """How many, and how long."""
    body = GOOD["ChatRequest"][0]
    for field, good, bad in (
        ("stop", ["x"] * 4, ["x"] * 5),
        ("stop", "x" * 500, "x" * 501),
        ("stop", ["x" * 500], ["x" * 501]),
        ("logit_bias", {str(i): 0 for i in range(300)}, {str(i): 0 for i in range(301)}),
        ("logit_bias", {"5": 0}, {"x": 0}),
    ):
        assert named("ChatRequest").is_valid({**body, field: good})
        assert not named("ChatRequest").is_valid({**body, field: bad})


def test_refused_fields_stand_last_and_say_so() -> None:
    """A reader sees first what is needed."""
    fields = list(DOCUMENT["components"]["schemas"]["ChatRequest"]["properties"].items())
    assert [name for name, _ in fields[:2]] == ["model", "messages"]
    refused = [name for name, schema in fields if schema.get("description", "").startswith("Not done here")]
    assert refused == [name for name, _ in fields[-len(refused) :]]
    assert {"documents", "audio", "skip_special_tokens"} <= set(refused)


def test_every_field_of_a_request_is_explained() -> None:
    """By a sentence, or by its schema's."""
    for name in ("ChatRequest", "CompletionRequest", "ResponsesRequest", "TranscriptionRequest", "TranscriptionForm"):
        for field, schema in DOCUMENT["components"]["schemas"][name]["properties"].items():
            assert schema.get("description") or "$ref" in json.dumps(schema), f"{name}.{field}"


async def test_what_is_answered_fits() -> None:
    """A look at one answer of each kind through the client; all tests' answers are held against it, too."""
    async with run_in_process() as server, openai_client(server) as client:
        answer = await client.chat.completions.create(model="fake", messages=user("hello"))
    named("ChatCompletion").validate(answer.to_dict(exclude_unset=True))
