"""The playground as it is served. What it does in a browser is in tests/browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.inprocess import run_in_process

WEB = Path(__file__).resolve().parents[1] / "web"


async def test_the_page_loads_from_the_server_alone_and_runs_no_script_but_its_files() -> None:
    """Without a key, as it holds no secrets; what it loads is there, and of the type that browsers insist on."""
    async with run_in_process(api_keys="key") as server, server.http() as http:
        page = await http.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy.pop("media-src") == "blob:"
        assert {name for name, value in policy.items() if value == "'self'"} == {
            *("script-src", "style-src", "img-src", "connect-src")
        }
        assert {name for name, value in policy.items() if value == "'none'"} == {
            *("default-src", "base-uri", "form-action", "frame-ancestors")
        }
        assert len(policy) == 8
        types = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
        loaded = re.findall(r'(?:src|href)="([^#"]+)"', page.text)
        assert "web/main.js" in loaded
        for path in {*loaded, *(f"web/{path.name}" for path in WEB.glob("*.js"))}:
            answer = await http.get(f"/{path}")  # relative, so that it works below a proxy's path, too
            assert (answer.status_code, answer.headers["content-type"]) == (200, types[path.rpartition(".")[2]])
            assert answer.content == (WEB / Path(path).name).read_bytes()
            assert answer.headers["content-security-policy"] == page.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_host() -> None:
    """It works where there is no network."""
    for path in WEB.iterdir():
        hosts = re.findall(r"https?://[\w.]+", path.read_text())
        assert set(hosts) <= {"http://www.w3.org"}, path.name  # a namespace, not an address


def test_its_modules_import_nothing_but_each_other() -> None:
    """No build step puts anything in between, and what makes code and subtitles stands alone."""
    imports = {path.name: set(re.findall(r'from "\./(.*?)";', path.read_text())) for path in WEB.glob("*.js")}
    assert set().union(*imports.values()) <= set(imports)
    assert not any(imports[name] for name in ("api.js", "audio.js", "dom.js", "snippets.js", "subtitles.js", "tap.js"))


async def test_a_browser_keeps_the_files_and_asks_whether_they_are_still_the_same() -> None:
    """304 for what it has, whether it names one tag or several, weak ones too."""
    async with run_in_process() as server, server.http() as http:
        first = await http.get("/web/main.js")
        tag = first.headers["etag"]
        assert first.headers["cache-control"] == "no-cache"
        assert tag != (await http.get("/web/chat.js")).headers["etag"]
        for given, status in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200), ("", 200)):
            answer = await http.get("/web/main.js", headers={"if-none-match": given})
            assert (answer.status_code, answer.headers["etag"]) == (status, tag)
            assert bool(answer.content) == (status == 200)


@pytest.mark.parametrize(
    "path", ["/web", "/web/", "/web/index.html", "/web/nope.js", "/web/../config.py", "/web/%2e%2e/config.py"]
)
async def test_there_is_nothing_beside_the_files(path: str) -> None:
    """No listing and no way out of the folder; without a key not even the knowledge."""
    async with run_in_process(api_keys="key") as server, server.http() as http:
        answer = await http.get(path, headers={"authorization": "Bearer key"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await http.get(path)).status_code == 401


async def test_it_only_answers_to_reading() -> None:
    """HEAD tells what GET does; anything else is refused."""
    async with run_in_process() as server, server.http() as http:
        head, get = await http.head("/"), await http.get("/")
        assert (head.status_code, head.headers["content-length"]) == (200, get.headers["content-length"])
        assert (await http.post("/")).status_code == 405


async def test_it_can_be_switched_off() -> None:
    """Then its paths are as unknown as any other, and need a key as they do."""
    async with run_in_process(playground=False, api_keys="key") as server, server.http() as http:
        for path in ("/", "/web/main.js"):
            answer = await http.get(path, headers={"authorization": "Bearer key"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
            assert (await http.get(path)).status_code == 401
