"""`client.py chat`, as a user calls it, from a pipe and in a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command_line import Terminal, run_client
from tests.support.servers import RunningServer, free_port

JFK = "tests/data/jfk.ogg"
HEARD = "I heard 11.0 s. You said:"

MICROPHONE = """
class PortAudioError(Exception):
    pass

class RawInputStream:
    def __init__(self, samplerate, channels, dtype, callback):
        assert (samplerate, channels, dtype) == (16000, 1, "int16")
        self.callback = callback
    def __enter__(self):
        for _ in range(3):
            self.callback(memoryview(bytes(16000)), 8000, None, None)
    def __exit__(self, *error):
        pass
"""


def test_each_line_of_a_pipe_is_a_question(fake_server: RunningServer) -> None:
    """Clips go with the first, once, and stay in the conversation; only answers go to stdout, and nothing prompts."""
    run = run_client(
        *("chat", "--audio", JFK, "--audio", "tests/data/austen-0870.wav", "--url", fake_server.base_url),
        stdin="one\n\n  two ü  \n/quit\nthree\n".encode(),
    )
    assert run.stdout == "I heard 11.0 s, 7.1 s. You said: one\nI heard 11.0 s, 7.1 s. You said: two ü\n"
    assert (run.returncode, run.stderr) == (0, "")


def test_the_model_hears_all_turns(whisper_server: RunningServer) -> None:
    """A transcriber writes down every clip of the conversation, so the turns are still there."""
    run = run_client("chat", "--audio", JFK, "--url", whisper_server.base_url, stdin=b"one\ntwo")
    first, second = run.stdout.splitlines()
    assert first == second != ""


def test_answers_stand_in_the_next_request(fake_server: RunningServer) -> None:
    """With the questions before them, in order."""
    lines = b"#say=one\n#say=two\n#tools\n"
    run = run_client("chat", "--url", fake_server.base_url, stdin=lines)
    assert run.stdout.splitlines()[-1].count('"role": "user"') == 3
    assert run.stdout.splitlines()[-1].count('"role": "assistant"') == 2


@pytest.mark.parametrize("fault", ["#bad", "#fail=nan"])
def test_a_question_that_fails_is_taken_back(fake_server: RunningServer, fault: str) -> None:
    """With its clips, which then go with the next; before its answer has begun, and in the middle of it."""
    lines = f"{fault} #tokens=9\nagain\n#tools\n".encode()
    run = run_client("chat", "--audio", JFK, "--url", fake_server.base_url, stdin=lines)
    *_, again, history = run.stdout.splitlines()
    assert again == f"{HEARD} again"
    assert history.count('"role": "user"') == 2
    assert run.returncode == 1 and run.stderr.count("client.py: The server refused:") == 1
    assert "Traceback" not in run.stderr


def test_clips_are_added(fake_server: RunningServer) -> None:
    """By /audio; a wrong file or command is told, and does no other harm."""
    lines = f"/audio nope.ogg\n/audio {JFK}\n/sing\n/audio\none\ntwo\n".encode()
    run = run_client("chat", "--url", fake_server.base_url, stdin=lines)
    assert run.stdout == f"{HEARD} one\n{HEARD} two\n"
    first, *others = run.stderr.splitlines()
    assert first == "client.py: nope.ogg cannot be read: No such file or directory."
    assert len(others) == 2 and all("/audio FILE adds" in other for other in others)


def test_recording(fake_server: RunningServer, tmp_path: Path) -> None:
    """Until Enter, where there is a microphone."""
    (tmp_path / "sounddevice.py").write_text(MICROPHONE)
    run = run_client(
        *("chat", "--url", fake_server.base_url), stdin=b"/record\n\none\n", env={"PYTHONPATH": str(tmp_path)}
    )
    assert run.stdout == "I heard 1.5 s. You said: one\n"
    assert run.stderr == "Recording; Enter ends.\n1.5 s recorded.\n"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise ModuleNotFoundError('sounddevice')", "pip install sounddevice"),
        ("raise OSError('PortAudio library not found')", "libportaudio2"),
        (MICROPHONE.replace("assert (", "raise PortAudioError('no device'); ("), "cannot be used: no device"),
    ],
)
def test_what_keeps_from_recording_is_a_sentence(
    fake_server: RunningServer, tmp_path: Path, module: str, message: str
) -> None:
    """And one can go on."""
    (tmp_path / "sounddevice.py").write_text(module)
    run = run_client(*("chat", "--url", fake_server.base_url), stdin=b"/record\none", env={"PYTHONPATH": str(tmp_path)})
    assert run.stdout == "I heard nothing. You said: one\n"
    assert message in run.stderr and "Traceback" not in run.stderr


def test_in_a_terminal(fake_server: RunningServer) -> None:
    """It prompts, Ctrl-C stops an answer and takes the question back, and Ctrl-D ends."""
    with Terminal("chat", "--audio", JFK, "--url", fake_server.base_url) as terminal:
        terminal.wait_for("> ")
        terminal.type("#tokens=5000 #delay=0.05\n")
        terminal.wait_for("\nabc")
        terminal.interrupt()
        terminal.wait_for("Stopped.")
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for(f"{HEARD} one")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.shown
    assert f"fake at {fake_server.base_url}/v1" in terminal.shown and "/record" in terminal.shown


def test_a_terminal_whose_answers_are_piped(fake_server: RunningServer) -> None:
    """The prompt is on stderr, so that only answers go into the pipe; Ctrl-C at the prompt ends it all."""
    with Terminal("chat", "--url", fake_server.base_url, piped=True) as terminal:
        terminal.wait_for("> ")
        terminal.type("one\n")
        terminal.wait_for("\n> ")
        terminal.interrupt()
        assert terminal.end() == 130
    assert terminal.stdout == b"I heard nothing. You said: one\n"
    assert "Traceback" not in terminal.shown


def test_what_is_wrong_from_the_start_ends_it(fake_server: RunningServer) -> None:
    """No server, no clip."""
    run = run_client("chat", "--url", f"http://127.0.0.1:{free_port()}", stdin=b"one")
    assert run.returncode == 1 and "make serve" in run.stderr
    run = run_client("chat", "--audio", os.devnull + "/x", "--url", fake_server.base_url, stdin=b"one")
    assert (run.returncode, run.stdout) == (1, "") and "cannot be read" in run.stderr
