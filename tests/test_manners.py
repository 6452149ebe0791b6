"""How the server behaves on HTTP: names, headers, methods, paths, browsers, keys in a file, limits of keys."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from pydantic import ValidationError

from api.limits import KeyLimit
from config import VERSION, Settings
from errors import RateLimited
from tests.support.inprocess import openai_client, request, run_in_process
from tests.support.servers import RunningServer
from tests.support.speech import user, wav
from tests.support.tiny_models import sweep

CHAT = "/v1/chat/completions"
ROOT = Path(__file__).resolve().parents[1]
PAGE = "https://demo.example"


def settings(**options: object) -> Settings:
    return Settings(_env_file=None, **options)


# --------------------------------------------------------------------------------------------------------------- names


async def test_a_model_with_several_names() -> None:
    """Each may be asked for and is listed; answers tell the first, as vLLM's do."""
    async with run_in_process(served_model_name="org/one, two") as server, openai_client(server) as client:
        assert [model.id async for model in client.models.list()] == ["org/one", "two"]
        for name in ("org/one", "two"):
            assert (await client.models.retrieve(name)).id == name
            answer = await client.chat.completions.create(model=name, messages=user("hello"))
            assert answer.model == "org/one"
            stream = await client.chat.completions.create(model=name, messages=user("hello"), stream=True)
            assert {chunk.model async for chunk in stream} == {"org/one"}
        for name in ("fake", "org/one, two", "one"):
            with pytest.raises(openai.NotFoundError, match="`org/one`, `two`") as caught:
                await client.chat.completions.create(model=name, messages=user("hello"))
            assert caught.value.code == "model_not_found"


def test_a_model_without_a_name_has_its_own() -> None:
    """Also where that has commas."""
    assert settings(model="cascade:a,b").public_names == ("cascade:a,b",)


# ------------------------------------------------------------------------------------------------- headers and methods


async def test_every_answer_tells_how_long_it_took() -> None:
    """In whole milliseconds, errors too; a stream tells the time to its first token."""
    async with run_in_process() as server, server.http() as http:
        slow = request("#tokens=5 #prefill=0.2")
        for answer in (await http.post(CHAT, json=slow), await http.post(CHAT, json={**slow, "stream": True})):
            assert 200 <= int(answer.headers["openai-processing-ms"]) < 10_000
        for answer in (await http.get("/nope"), await http.get(CHAT), await http.post(CHAT, json={})):
            assert answer.is_error
            assert 0 <= int(answer.headers["openai-processing-ms"]) < 200


def test_head_is_get_without_a_body(fake_server: RunningServer) -> None:
    """On every route that can be read, for an unknown one, too; what is posted to has no HEAD."""
    with fake_server.http() as http:
        for path, status in {"/live": 200, "/ready": 200, "/v1/models": 200, "/v1/models/x": 404, "/x": 404}.items():
            head, get = http.head(path), http.get(path)
            assert (head.status_code, head.content, get.status_code) == (status, b"", status)
            assert head.headers["content-length"] == get.headers["content-length"]
        refused = http.head(CHAT)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_the_version(fake_server: RunningServer) -> None:
    """What the changelog begins with: of an unreleased one, a development version."""
    with fake_server.http() as http:
        assert http.get("/version").json() == {"version": VERSION}
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading[1] == ("Unreleased" if ".dev" in VERSION else VERSION)


async def test_a_slash_at_the_end_means_nothing() -> None:
    """No redirect, which would lose the body of a POST; and no way round the keys."""
    async with run_in_process(api_keys="key") as server, server.http() as http:
        http.headers["authorization"] = "Bearer key"
        answer = await http.post(f"{CHAT}/", json=request("hello"))
        assert answer.json()["choices"][0]["message"]["content"] == "I heard nothing. You said: hello"
        for path in ("/v1/models/", "/v1/models/fake/", "/live//"):
            assert (await http.get(path)).status_code == 200
        assert (await http.get("/")).status_code == 200  # the playground
        del http.headers["authorization"]
        assert (await http.get("/live/")).status_code == 200
        assert (await http.get("/v1/models/")).status_code == 401


# ------------------------------------------------------------------------------------------------------------ browsers


def preflight(origin: str) -> dict[str, str]:
    """As a browser asks before the official client's request."""
    wanted = "authorization,content-type,idempotency-key,openai-organization,openai-project,x-stainless-arch,x-later"
    return {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": wanted}


@pytest.mark.parametrize(("origins", "told"), [(f"{PAGE}, http://localhost:3000", PAGE), ("*", "*")])
async def test_a_page_that_may_ask(origins: str, told: str) -> None:
    """Its preflight needs no key, and it may read the headers that clients heed, of errors too."""
    async with run_in_process(api_keys="key", cors_origins=origins) as server, server.http() as http:
        before = await http.options(CHAT, headers=preflight(PAGE))
        assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, told)
        assert before.headers["access-control-allow-headers"] == preflight(PAGE)["access-control-request-headers"]
        assert "POST" in before.headers["access-control-allow-methods"]
        for key, status in (("key", 200), ("wrong", 401)):
            headers = {"origin": PAGE, "authorization": f"Bearer {key}"}
            answer = await http.post(CHAT, json=request("hello"), headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, told)
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert {"x-request-id", "retry-after", "x-ratelimit-reset-requests"} <= set(exposed)


@pytest.mark.parametrize("origins", ["", "https://other.example"])
async def test_no_other_page_may_ask(origins: str) -> None:
    """By default none."""
    async with run_in_process(cors_origins=origins) as server, server.http() as http:
        before = await http.options(CHAT, headers=preflight(PAGE))
        answer = await http.get("/v1/models", headers={"origin": PAGE})
    assert before.is_error
    assert not any("access-control-allow-origin" in each.headers for each in (before, answer))


@pytest.mark.parametrize("origin", ["demo.example", f"{PAGE}/", f"{PAGE}/path"])
def test_an_origin_that_no_browser_writes_is_refused_at_the_start(origin: str) -> None:
    """It would never match."""
    with pytest.raises(ValidationError, match="cors_origins"):
        settings(cors_origins=origin)


# ---------------------------------------------------------------------------------------------------- keys in a file


async def test_keys_in_a_file(tmp_path: Path) -> None:
    """Beside those of the setting; one a line, blanks around them left out."""
    file = tmp_path / "keys"
    file.write_text("\n first \nsécond\r\n\n")
    async with run_in_process(api_keys="third", api_key_file=file) as server, server.http() as http:
        for key, status in {"first": 200, "sécond": 200, "third": 200, "": 401, "fourth": 401}.items():
            headers = {"authorization": f"Bearer {key}".encode()}
            assert (await http.get("/v1/models", headers=headers)).status_code == status


def test_a_file_without_keys_does_not_open_the_server(tmp_path: Path) -> None:
    """Nor one that is not there, or no text. What was read is read once, and is never shown."""
    for name, content in {"empty": b"", "blank": b"\n \n", "binary": b"\xff\xfe"}.items():
        (tmp_path / name).write_bytes(content)
    for name in ("empty", "blank", "binary", "missing", "."):
        with pytest.raises(ValidationError, match="--api-key-file"):
            settings(api_key_file=tmp_path / name)
    (tmp_path / "good").write_text("secret")
    read = settings(api_key_file=tmp_path / "good")
    (tmp_path / "good").unlink()
    assert [key.get_secret_value() for key in read.keys] == ["secret"]
    assert "secret" not in repr(read)


@pytest.mark.parametrize("flags", [["--api-key-file", "/nope"], ["--queue-bytes", "5"], ["--port", "x"]])
def test_a_start_that_fails_shows_no_key(flags: list[str]) -> None:
    """Whatever is wrong with the settings: the reason goes into logs."""
    started = subprocess.run(
        [sys.executable, "server.py", *flags],
        cwd=ROOT,
        env={**os.environ, "EARDRUM_API_KEYS": "topsecret"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 2
    assert flags[0].removeprefix("--") in started.stderr.replace("_", "-")
    assert "topsecret" not in started.stderr + started.stdout


# ------------------------------------------------------------------------------------------------------ limits of keys


async def test_a_key_over_its_limit() -> None:
    """429 with the seconds to wait, through the client that heeds them; other keys, and reading, go on."""
    async with run_in_process(api_keys="first,second", requests_per_minute=2) as server:
        async with openai_client(server, api_key="first") as client:
            for left in ("1", "0"):
                raw = await client.chat.completions.with_raw_response.create(model="fake", messages=user("hello"))
                assert raw.headers["x-ratelimit-limit-requests"] == "2"
                assert raw.headers["x-ratelimit-remaining-requests"] == left
            with pytest.raises(openai.RateLimitError, match="2 requests") as caught:
                await client.chat.completions.create(model="fake", messages=user("hello"))
            assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
            headers = caught.value.response.headers
            assert 50 < int(headers["retry-after"]) <= 60
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert 50 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
            assert (await client.models.list()).data
        async with openai_client(server, api_key="second") as client:
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="fake", messages=user("#bad"))
            assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "1"


async def test_a_key_that_has_heard_its_limit() -> None:
    """Audio counts when it was heard, once for all choices; text goes on only when there is room again."""
    async with run_in_process(api_keys="first,second", audio_seconds_per_minute=2) as server:
        async with openai_client(server, api_key="first") as client:
            for left in ("2", "0.5"):
                raw = await client.chat.completions.with_raw_response.create(
                    model="fake", messages=user(wav(sweep(1.5, 200, 900))), n=2
                )
                assert raw.headers["x-ratelimit-limit-audio-seconds"] == "2"
                assert raw.headers["x-ratelimit-remaining-audio-seconds"] == left
            with pytest.raises(openai.RateLimitError, match="2 audio seconds") as caught:
                await client.chat.completions.create(model="fake", messages=user("hello"))
            assert caught.value.code == "rate_limit_exceeded"
            headers = caught.value.response.headers
            assert 50 < int(headers["retry-after"]) <= 60
            assert headers["x-ratelimit-remaining-audio-seconds"] == "0"
            assert 50 < float(headers["x-ratelimit-reset-audio-seconds"].removesuffix("s")) <= 60
        async with openai_client(server, api_key="second") as client:
            for _ in range(3):
                raw = await client.chat.completions.with_raw_response.create(model="fake", messages=user("hello"))
                assert raw.headers["x-ratelimit-remaining-audio-seconds"] == "2"
                assert raw.headers["x-ratelimit-reset-audio-seconds"] == "0.000s"


async def test_without_a_limit_none_is_told() -> None:
    """No header speaks of what is not there."""
    async with run_in_process() as server, server.http() as http:
        answers = [await http.post(CHAT, json=request("hello")) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in json.dumps(dict(answers[-1].headers))


def test_a_minute_moves_on() -> None:
    """In no minute more than the limit, wherever it begins; what was refused does not count."""
    now = [0.0]
    limit = KeyLimit(2, "requests", clock=lambda: now[0])

    def asked(at: float) -> tuple[int | None, dict[str, str]]:
        """The seconds to wait, if any, and the headers."""
        now[0], headers = at, {}
        try:
            limit.take("owner", headers)
        except RateLimited as error:
            return error.retry_after_s, headers
        return None, headers

    assert [asked(at)[0] for at in (0, 30, 31, 59.5, 60, 61, 90, 90)] == [None, None, 29, 1, None, 29, None, 30]
    assert asked(151)[1]["x-ratelimit-reset-requests"] == "60.000s"


def test_there_is_room_when_enough_is_forgotten() -> None:
    """Not before, and not only when all is."""
    now = [0.0]
    limit = KeyLimit(10, "audio-seconds", clock=lambda: now[0])
    for at, amount in ((0, 4), (10, 5), (20, 6)):
        now[0] = at
        limit.check("owner", {})
        limit.count("owner", amount)
    now[0] = 30
    with pytest.raises(RateLimited) as caught:
        limit.check("owner", {})
    assert caught.value.retry_after_s == 40  # 11 of them are still too many at 60
    limit.check("other", {})
    headers: dict[str, str] = {}
    now[0] = 70
    limit.check("owner", headers)
    assert headers["x-ratelimit-remaining-audio-seconds"] == "4"
    assert headers["x-ratelimit-reset-audio-seconds"] == "10.000s"
