"""What the README and the pages of docs/ tell is so: commands and snippets are run, settings are those of the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from pydantic_settings import CliApp

from config import Settings
from models.base import Clip, Turn
from models.custom import load_class
from tests.support import settings_page
from tests.support.origin import Origin
from tests.support.servers import RunningServer
from tests.support.speech import JFK, word_error_rate
from wire import NOTHING_HEARD, Delta, Job, JobId, Sampling
from worker.serving import serve

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
README, GUIDE = PAGES["README.md"], PAGES["your-model.md"]


def snippet(language: str, holds: str, page: str = "README.md") -> str:
    """The one code block of a page that holds these words."""
    (found,) = [block for block in blocks_of(PAGES[page], language) if holds in block]
    return found


def blocks_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def for_server(text: str, server: RunningServer) -> str:
    """With the test server's address and model."""
    return text.replace("http://127.0.0.1:8000", server.base_url).replace("whisper-tiny.en", server.model)


def shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_page_of_settings_is_that_of_the_code() -> None:
    """Run `python -m tests.support.settings_page` where it is not."""
    assert settings_page.PAGE.read_text() == settings_page.text()


def test_flags_that_pages_name_are_there() -> None:
    """Of the server, of `models.check` and of others' programs."""
    ours = {name.replace("_", "-") for name in Settings.model_fields}
    switches = {
        f"no-{name}" for name in ours if isinstance(Settings.model_fields[name.replace("-", "_")].default, bool)
    }
    others = {
        "json",
        "help",
        "golden",
        "against",
        "model",
        "url",
        "no",
        "no-stream",
        "max-tokens",
        "temperature",
        "api-key",
    }
    vllms = {"max-num-seqs", "enable-auto-tool-choice", "limit-mm-per-prompt", "tool-call-parser"}
    for name, text in PAGES.items():
        flags = set(re.findall(r"`--([a-z-]+[a-z])", text))
        more = vllms if name == "moving-to-vllm.md" else set()
        assert flags <= ours | switches | others | more | {"build-arg", "gpus"}, name


def test_the_curl_commands(whisper_server: RunningServer, origin: Origin) -> None:
    """An address, and the bytes of a file."""
    fetched = snippet("bash", "example.com/speech.ogg").replace("https://example.com/", origin.url("clip/"))
    for command in (
        fetched.replace("speech.ogg", "jfk.ogg"),
        snippet("bash", "data:audio/ogg;base64,%s"),
        snippet("bash", "-F file=@"),
    ):
        assert "my fellow Americans" in shell(for_server(command, whisper_server))


def test_the_python_example(whisper_server: RunningServer) -> None:
    """As it stands there."""
    code = for_server(snippet("python", "from openai import OpenAI"), whisper_server)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert word_error_rate(JFK, run.stdout) == 0


def test_the_responses_example(whisper_server: RunningServer) -> None:
    """The client and the audio are those of the first example."""
    first = snippet("python", "from openai import OpenAI").partition("stream =")[0]
    code = for_server(first + snippet("python", "client.responses.create", "api.md"), whisper_server)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert word_error_rate(JFK, run.stdout) == 0


def test_the_labels_example(whisper_server: RunningServer) -> None:
    """With the client, the model and the messages of the first one."""
    first = snippet("python", "from openai import OpenAI").partition("stream =")[0]
    block = '{"type": "input_audio", "input_audio": {"data": audio, "format": "ogg"}}'
    given = f'model = "whisper-tiny.en"\nmessages = [{{"role": "user", "content": [{block}]}}]\n'
    code = for_server(first + given + snippet("python", "label_probabilities", "api.md"), whisper_server)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"(happy|sad|angry) \{'happy': [\d.e-]+, 'sad': [\d.e-]+, 'angry': [\d.e-]+\}\n", run.stdout)


def test_the_quick_start(whisper_server: RunningServer) -> None:
    """Its second step, by all three ways."""
    asked = snippet("bash", "client.py", "quick-start.md").replace(".venv/bin/python", sys.executable)
    asked = for_server(asked, whisper_server).replace('here?"', f'here?" --url {whisper_server.base_url}/v1')
    assert shell(asked).count("my fellow Americans") == 2
    code = for_server(snippet("python", "audio.transcriptions", "quick-start.md"), whisper_server)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert word_error_rate(JFK, run.stdout) == 0


# What other tests here run, or what only a machine with Docker, a model hub or many minutes can.
RUN_BY_TESTS = ("curl ", "printf ", '"', "{", "tr -d", ".venv/bin/python client.py", "python client.py")
OF_DOCKER = ("docker build ", "docker run ")


def test_every_command_can_be_given() -> None:
    """Those that no test runs are at least understood: by make, by the server, by `models.check`."""
    for name, text in PAGES.items():
        for line in [line for block in blocks_of(text, "bash") for line in block.splitlines() if line.strip()]:
            command = line.split("  #")[0].strip()
            if command.startswith((*RUN_BY_TESTS, *OF_DOCKER)):
                continue
            program, _, rest = re.sub(r"^(EARDRUM_\w+=\S+ )", "", command).partition(" ")
            if program == "make":
                targets = [word for word in shlex.split(rest) if "=" not in word]
                shell(f"make --dry-run --assume-old=install {' '.join(targets)}")
                rest = " ".join(re.findall(r'ARGS="(.*)"', rest)) if targets == ["serve"] else ""
            if program == "make" or command.startswith("python server.py"):
                given = shlex.split(rest.removeprefix("server.py"))
                CliApp.run(Settings, cli_args=given)
            else:
                assert re.match(r"(\.venv/bin/)?python -m models\.check ", command), f"{name}: {line}"
                known = set(re.findall(r"--[a-z-]+", shell(f"{sys.executable} -m models.check --help")))
                assert set(re.findall(r"--[a-z-]+", command)) <= known, f"{name}: {line}"


def test_the_clients_first_answer(whisper_server: RunningServer) -> None:
    """The second command of the README, and what it prints."""
    (command,) = [line for line in snippet("bash", "# installs into").splitlines() if "client.py" in line]
    command = command.split("#")[0].replace(".venv/bin/python", sys.executable)
    answer = shell(f"{command} --url {whisper_server.base_url}/v1")
    assert f"```\n{answer}```" in README


def test_the_clients_commands(whisper_server: RunningServer, tmp_path: Path) -> None:
    """In the order in which they stand, in a folder of one's own; each says something, and all end well."""
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/jfk.ogg").write_bytes((ROOT / "tests/data/jfk.ogg").read_bytes())
    for line in snippet("bash", "client.py transcribe").splitlines():
        command = line.replace("python client.py", f"{sys.executable} {ROOT / 'client.py'}")
        run = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env={**os.environ, "OPENAI_BASE_URL": whisper_server.base_url},
            input="Who speaks here?\n", capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "fellow Americans" in run.stdout or "my-model" in run.stdout or "1 done" in run.stderr
    assert "fellow Americans" in (tmp_path / "subtitles/talks/jfk.srt").read_text()


def test_the_guides_class_is_served(tmp_path: Path) -> None:
    """The file on the page from a checkpoint to a harness, asked for two clips."""
    (code,) = re.findall(r"```python\n(# my_model.py.*?)```", GUIDE, re.S)
    (tmp_path / "my_model.py").write_text(code)
    model = load_class(f"{tmp_path}/my_model.py:MyModel")
    model.setup("cpu", "auto")
    served = serve(model, Settings(_env_file=None))
    clips = (Clip((np.full(160, 0.5, np.float32),)), Clip((np.full(160, 0.25, np.float32),)))
    job = Job(JobId(0, "x"), (), Sampling())
    conversation = (Turn("user", (*clips, "how loud?")),)
    served.engine.submit(served.engine.requests.prepare(job, conversation, NOTHING_HEARD, None))
    events = [*served.engine.admit(), *served.engine.decode(), *served.engine.decode()]
    text = "".join(event.text for event in events if isinstance(event, Delta))
    assert text == "You asked 'how loud?' about 2 audio(s) with peaks 0.50, 0.25."
    assert served.capabilities.max_seconds_per_window == 30


def test_links_lead_somewhere() -> None:
    """To files, and to headings in them."""
    for name, text in PAGES.items():
        page = ROOT / name if name == "README.md" else ROOT / "docs" / name
        for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
            path, _, heading = link.partition("#")
            target = page.parent / path
            assert target.exists(), f"{name}: {link}"
            assert not heading or heading in _headings(target.read_text()), f"{name}: {link}"


def _headings(text: str) -> set[str]:
    """As GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
