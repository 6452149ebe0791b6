"""`/docs`: a page that shows the API without a network, and nothing of the server's files but its own."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from api.documentation import STATIC
from tests.support.inprocess import run_in_process
from tests.support.servers import RunningServer

VENDORED = {  # of swagger-ui-dist 5.35.0
    "swagger-ui-bundle.js": "sha256-5qiYaS8tdo6AfDukYmBopposXdlg3Wx28+TTo94YCvI=",
    "swagger-ui.css": "sha256-XtCHV+U9o+Am1svsxh/l1DWFyVYLMC1TStVmklGaJz0=",
}


async def test_the_page_and_all_that_it_names_are_here() -> None:
    """From this server alone, without a key, also with a slash at the end."""
    async with run_in_process(api_keys="key") as server, server.http() as http:
        for path in ("/docs", "/docs/"):
            page = await http.get(path)
            assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(links) == 5 and all(link.startswith(("/", "data:,")) for link in links)
        for link in links:
            if link.startswith("/"):
                named = await http.get(link)
                assert named.status_code == 200 and named.content
                kind = {".js": "text/javascript", ".css": "text/css", ".json": "application/json"}[Path(link).suffix]
                assert named.headers["content-type"].startswith(kind)


async def test_the_page_may_run_nothing_from_elsewhere_and_nothing_inline() -> None:
    """By its Content-Security-Policy, which its HTML needs no exception from."""
    async with run_in_process() as server, server.http() as http:
        page = await http.get("/docs")
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<script>|<style| on\w+=| style=", page.text)
    assert page.headers["x-content-type-options"] == "nosniff"


async def test_files_are_asked_for_again_and_sent_once() -> None:
    """A new version is seen at once, and an old one costs no bytes. A HEAD tells the same."""
    async with run_in_process() as server, server.http() as http:
        for path in ("/docs", "/docs/docs.js", "/docs/swagger-ui/swagger-ui.css"):
            first = await http.get(path)
            assert first.headers["cache-control"] == "no-cache"
            again = await http.get(path, headers={"if-none-match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = await http.head(path)
            assert (head.status_code, head.headers["etag"]) == (200, first.headers["etag"])


@pytest.mark.parametrize(
    "path",
    ["nope.js", "swagger-ui", "swagger-ui/nope", "../auth.py", "%2e%2e/auth.py", "..%2fauth.py", "%2fetc%2fpasswd",
     "%00", "swagger-ui/..%2f..%2fauth.py", "x" * 5000],
)  # fmt: skip
async def test_nothing_else_is_served(path: str) -> None:
    """404 in the envelope, whatever is tried; and what is posted to it is refused."""
    async with run_in_process() as server, server.http() as http:
        answer = await http.get(f"/docs/{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
        assert (await http.post("/docs/docs.js")).status_code == 405


def test_the_vendored_files_are_those_of_the_package() -> None:
    """Unchanged; a new version changes these lines and the README beside them."""
    for name, expected in VENDORED.items():
        digest = hashlib.sha256((STATIC / "swagger-ui" / name).read_bytes()).digest()
        assert f"sha256-{base64.b64encode(digest).decode()}" == expected
    assert {path.name for path in (STATIC / "swagger-ui").iterdir()} == {
        *VENDORED, "LICENSE", "NOTICE", "README.md", "swagger-ui-bundle.js.LICENSE.txt",
    }  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_shows_it(fake_server: RunningServer, tmp_path: Path) -> None:
    """Every operation, and the browser complains of nothing."""
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", f"{fake_server.base_url}/docs"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    shown = re.findall(r'data-path="([^"]+)"', run.stdout)
    with fake_server.http() as http:
        assert set(shown) == set(http.get("/openapi.json").json()["paths"])
    assert "CONSOLE" not in run.stderr
