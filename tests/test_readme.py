"""What the README tells is so: its commands and snippets are run, its settings are those of the code."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizerFast

from audio.decode import DecodeLimits, decode_file, read_waveform
from config import Settings
from models.base import CausalModel, Clip, Turn
from models.whisper import embedded_whisper
from tests.support.causal import EngineRun
from tests.support.origin import Origin
from tests.support.servers import RunningServer
from tests.support.speech import DATA, JFK, word_error_rate

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


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
            assert default == {"None": "", "()": "", "False": "off"}.get(str(field.default), str(field.default))


def test_the_curl_commands(whisper_server: RunningServer, origin: Origin) -> None:
    """An address, and the bytes of a file."""
    fetched = snippet("bash", "example.com/speech.ogg").replace("https://example.com/", origin.url("clip/"))
    for command in (fetched.replace("speech.ogg", "jfk.ogg"), snippet("bash", "data:audio/ogg;base64,%s")):
        assert "my fellow Americans" in shell(for_server(command, whisper_server))


def test_the_python_example(whisper_server: RunningServer) -> None:
    """As it stands there."""
    code = for_server(snippet("python", "from openai import OpenAI"), whisper_server)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert word_error_rate(JFK, run.stdout) == 0


def test_the_clients_first_answer(whisper_server: RunningServer) -> None:
    """The second command of the README, and what it prints."""
    (command,) = [line for line in snippet("bash", "make serve").splitlines() if "client.py" in line]
    command = command.split("#")[0].replace(".venv/bin/python", sys.executable)
    answer = shell(f"{command} --url {whisper_server.base_url}/v1")
    assert f"```\n{answer}```" in README


@pytest.fixture(scope="module")
def whisper_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded weights as a transformers directory, as a researcher would have one."""
    whisper = embedded_whisper()
    whisper.setup("cpu", "auto")
    path = str(whisper._directory / "tokenizer.json")
    special = [token for token, id_ in sorted(whisper.tokenizer.get_vocab().items(), key=lambda item: item[1])]
    special = [token for token in special if token.startswith("<|")]
    tokenizer = WhisperTokenizerFast(tokenizer_file=path, extra_special_tokens=special, pad_token="<|endoftext|>")
    directory = tmp_path_factory.mktemp("whisper")
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(directory)
    (end,) = whisper.end_ids
    whisper.module.generation_config = GenerationConfig(eos_token_id=end, suppress_tokens=list(whisper.banned_ids))
    whisper.module.save_pretrained(directory)
    return directory


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_model_of_ones_own(whisper_directory: Path, tmp_path: Path) -> None:
    """The class in the README transcribes, through the engine."""
    module = types.ModuleType("my_asr")
    code = snippet("python", "class MyAsr").replace("/models/my-whisper", str(whisper_directory))
    exec(compile(code, "my_asr.py", "exec"), module.__dict__)
    model: CausalModel = module.MyAsr()
    model.setup("cpu", "auto")
    (tmp_path / "out").touch()
    decode_file(str(DATA / "jfk.ogg"), str(tmp_path / "out"), 16_000, DecodeLimits(100, 1 << 28, 5, 1))
    clip = Clip((read_waveform(str(tmp_path / "out")),))
    run = EngineRun(model)
    run.submit("x", *model.prepare((Turn("user", (clip,)),)))
    run.finish()
    assert word_error_rate(JFK, run.texts["x", 0]) == 0
