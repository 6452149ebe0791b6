"""What the README tells is so: its commands and snippets are run, its settings are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from config import Settings
from models.base import Clip, Turn
from models.custom import load_class
from tests.support.origin import Origin
from tests.support.servers import RunningServer
from tests.support.speech import JFK, word_error_rate
from wire import NOTHING_HEARD, Delta, Job, JobId, Sampling
from worker.serving import serve

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "your-model.md").read_text()


def snippet(language: str, holds: str) -> str:
    """The one code block that holds these words."""
    (found,) = [block for block in re.findall(rf"```{language}\n(.*?)```", README, re.S) if holds in block]
    return str(found)


def for_server(text: str, server: RunningServer) -> str:
    """With the test server's address and model."""
    return text.replace("http://127.0.0.1:8000", server.base_url).replace("whisper-tiny.en", server.model)


def shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_setting_is_told_with_its_default() -> None:
    """No flag is missing, none is told that is not there."""
    rows = re.findall(r"^\| `--([a-z-]+)` \| (?:`([^`]*)`)? \| (.*) \|$", README, re.M)
    told = {name.replace("-", "_"): (default, text) for name, default, text in rows}
    assert set(told) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        default, text = told[name]
        assert text == field.description
        if isinstance(field.default, float):
            assert float(default) == field.default
        else:
            assert default == _as_told(field.default)


def _as_told(default: object) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    return {"None": "", "False": "off", "True": "on"}.get(str(default), str(default))


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
    code = for_server(first + snippet("python", "client.responses.create"), whisper_server)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert word_error_rate(JFK, run.stdout) == 0


def test_the_clients_first_answer(whisper_server: RunningServer) -> None:
    """The second command of the README, and what it prints."""
    (command,) = [line for line in snippet("bash", "make serve").splitlines() if "client.py" in line]
    command = command.split("#")[0].replace(".venv/bin/python", sys.executable)
    answer = shell(f"{command} --url {whisper_server.base_url}/v1")
    assert f"```\n{answer}```" in README


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


def test_what_the_guide_names_is_there() -> None:
    """Its links lead to files, its flags are settings."""
    for page, text in ((ROOT / "README.md", README), (ROOT / "docs" / "your-model.md", GUIDE)):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    others = {"json", "help", "golden", "against", "model", "url"}
    flags = {flag.replace("-", "_") for flag in re.findall(r"`--([a-z-]+)", GUIDE)} - others
    assert flags <= set(Settings.model_fields)
