"""`client.py transcribe`, as a user calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from itertools import count
from pathlib import Path

import pytest

from cli.report import duration
from cli.selection import select, targets
from cli.transcript import Transcript
from tests.support.command_line import MODELS, Answer, Terminal, command, refusal, run_client, stub_server
from tests.support.recordings import DATA
from tests.support.servers import RunningServer, free_port

JFK = "And so my fellow Americans"
SLOW = "#tokens=20 #delay=0.02"


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """A folder with talks of one name, in two places and in two formats, a broken one, and what is no audio."""
    for name, clip in {
        "one/a.ogg": "jfk.ogg",
        "two/a.WAV": "austen-0870.wav",
        "b.mp3": "jfk.mp3",
        "b.wav": "jfk.wav",
    }.items():
        (tmp_path / "talks" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DATA / clip, tmp_path / "talks" / name)
    (tmp_path / "talks/broken.mp3").write_text("no audio")
    (tmp_path / "talks/notes.txt").write_text("read me")
    (tmp_path / "talks/.hidden.mp3").write_text("no audio")
    return tmp_path


def transcripts(folder: Path, suffix: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(f"*.{suffix}")}


def test_a_folder_becomes_subtitles_and_goes_on_where_it_stopped(whisper_server: RunningServer, talks: Path) -> None:
    """One file for each talk, whatever the others are called; the broken one is told at the end, and only it and what
    was lost is done again."""
    arguments = (
        "transcribe",
        "talks",
        "--format",
        "srt",
        "--out",
        "subs",
        "--jobs",
        "3",
        "--url",
        whisper_server.base_url,
    )
    first = run_client(*arguments, cwd=talks)
    subs = talks / "subs" / "talks"
    assert transcripts(subs, "srt") == {"one/a.srt", "two/a.srt", "b.mp3.srt", "b.wav.srt"}
    assert (first.returncode, first.stdout) == (1, "")
    *lines, failure, summary = first.stderr.splitlines()
    assert len(lines) == 5 and {line.split()[0] for line in lines} == {f"{n}/5" for n in range(1, 6)}
    assert failure.startswith("failed: talks/broken.mp3: `file`: the data is not audio")
    assert summary.startswith("4 done, 0 skipped, 1 failed; 40.0 s of audio in ")
    whole = (subs / "b.mp3.srt").read_text()
    assert whole.startswith(f"1\n00:00:00,000 --> 00:00:08,000\n{JFK}")

    (subs / "b.mp3.srt").unlink()
    (subs / "b.wav.srt").write_text("mine")
    second = run_client(*arguments, cwd=talks)
    assert second.stderr.splitlines()[-1].startswith("1 done, 3 skipped, 1 failed; 11.0 s of audio in ")
    assert (subs / "b.mp3.srt").read_text() == whole
    assert (subs / "b.wav.srt").read_text() == "mine"
    assert len(list(subs.rglob("*"))) == 6, "nothing else is left there"

    again = run_client(*arguments, "--again", cwd=talks)
    assert again.stderr.splitlines()[-1].startswith("4 done, 0 skipped, 1 failed")
    assert (subs / "b.wav.srt").read_text() == whole


def test_all_done_is_a_success_without_a_server(talks: Path) -> None:
    """Nothing is left to ask."""
    (talks / "talks/one/a.txt").write_text("done")
    run = run_client("transcribe", "talks/one", "--url", f"http://127.0.0.1:{free_port()}", cwd=talks)
    assert (run.returncode, run.stderr.split(";")[0]) == (0, "0 done, 1 skipped, 0 failed")


@pytest.mark.parametrize("source", ["file", "stdin", "pipe", "out"])
def test_one_transcript_goes_to_stdout(whisper_server: RunningServer, talks: Path, source: str) -> None:
    """Of one file without a format, of stdin, and where --out says so; and nothing else goes anywhere."""
    url, clip = ("--url", whisper_server.base_url), talks / "talks/b.mp3"
    match source:
        case "file":
            run = run_client("transcribe", "talks/b.mp3", *url, cwd=talks)
        case "stdin":
            run = run_client("transcribe", "-", *url, cwd=talks, stdin=clip.read_bytes())
        case "pipe":
            run = run_client("transcribe", "/dev/stdin", *url, cwd=talks, stdin=clip.read_bytes())
        case _:
            run = run_client("transcribe", "talks/b.mp3", "--format", "vtt", "--out", "-", *url, cwd=talks)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("WEBVTT\n\n00:00:00.000 -->" if source == "out" else JFK)
    assert source == "out" or run.stdout.count("\n") == 1
    assert not transcripts(talks, "vtt") and transcripts(talks, "txt") == {"talks/notes.txt"}


def test_formats_and_options_of_the_api(fake_server: RunningServer, talks: Path) -> None:
    """JSON is the server's own, text is its `text`; language and prompt reach the model."""
    for format_ in ("text", "json", "verbose_json"):
        options = ("--format", format_, "--language", "de", "--prompt", "Eardrum", "--url", fake_server.base_url)
        assert run_client("transcribe", "talks/one/*.ogg", *options, cwd=talks).returncode == 0
    folder = talks / "talks/one"
    text = (folder / "a.txt").read_text()
    assert "The speech is in German." in text and "names and spelling: Eardrum" in text and "11.0 s" in text
    assert json.loads((folder / "a.json").read_text())["usage"]["audio"]["seconds_received"] == 11
    assert json.loads((folder / "a.verbose.json").read_text())["text"] == text.strip()


def test_ctrl_c_keeps_what_is_done(fake_server: RunningServer, talks: Path) -> None:
    """It ends at once with 130, without half a file, and the same command goes on."""
    arguments = ("transcribe", "talks/b.mp3", "talks/one/a.ogg", "--out", "out", "--url", fake_server.base_url)
    first, second = talks / "out/talks/b.mp3.txt", talks / "out/talks/one/a.txt"
    run = subprocess.Popen(
        command(*arguments, "--jobs", "1", "--prompt", "#tokens=20 #delay=0.1"),
        cwd=talks, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stderr is not None
    assert run.stderr.readline() == "1/2 talks/b.mp3: done\n"
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=20)
    assert run.returncode == 130
    assert "Traceback" not in told and "the same command goes on" in told and "1 done, 0 skipped, 0 failed" in told
    assert [path for path in (talks / "out").rglob("*") if path.is_file()] == [first]
    assert run_client(*arguments, cwd=talks).returncode == 0
    assert first.read_text() == "abcdefghijklmnopqrst\n" and second.exists()


def test_a_terminal_shows_a_bar(fake_server: RunningServer, talks: Path) -> None:
    """In colours, and the summary below it; stdout stays empty."""
    with Terminal(
        "transcribe", "talks", "--url", fake_server.base_url, "--prompt", SLOW, cwd=talks, piped=True
    ) as terminal:
        assert terminal.end() == 1
    assert terminal.stdout == b""
    assert "\x1b[" in terminal.shown and "5/5" in terminal.shown
    *_, failure, summary = terminal.shown.replace("\r", "").splitlines()
    assert "failed: talks/broken.mp3: `file`" in failure
    assert summary.startswith("4 done, 0 skipped, 1 failed")


def test_without_a_terminal_there_is_no_rich(fake_server: RunningServer, talks: Path) -> None:
    """It is not even imported, and there are no colours."""
    (talks / "rich.py").write_text("raise SystemExit('imported')")
    run = run_client(
        "transcribe", "talks/one", "--url", fake_server.base_url, cwd=talks,
        env={"PYTHONPATH": str(talks), "FORCE_COLOR": "1"},
    )  # fmt: skip
    assert run.returncode == 0 and "\x1b" not in run.stdout + run.stderr


def test_a_busy_server_is_asked_more_often(talks: Path) -> None:
    """Than the SDK does by itself; what else fails is not."""
    asked = {503: count(), 500: count()}

    def answer(method: str, path: str) -> Answer:
        if method == "GET":
            return 200, MODELS
        if next(asked[status]) < 8:
            return status, refusal("Not now.")
        return 200, {"text": " Well. "}

    for status in asked:
        with stub_server(answer) as url:
            run = run_client("transcribe", "talks/b.mp3", "--url", url, cwd=talks)
        assert (run.returncode, run.stdout) == ((0, "Well.\n") if status == 503 else (1, ""))
    assert next(asked[500]) == 3


@pytest.mark.parametrize("body", [{"words": []}, "Well.", {"text": None}])
def test_what_is_no_transcript_is_told(talks: Path, body: object) -> None:
    """By a sentence, for each file."""
    with stub_server(lambda method, path: (200, MODELS if method == "GET" else body)) as url:
        run = run_client("transcribe", "talks/one", "--url", url, cwd=talks)
    assert run.returncode == 1 and "failed: talks/one/a.ogg: The server's answer is no transcript." in run.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("talks/empty",), 2, "No audio in talks/empty."),
        (("-", "talks"), 2, "`-` stands alone"),
        (("-", "--out", "out"), 2, "`-` stands alone"),
        (("talks", "--out", "-"), 2, "--out - takes one file"),
        (("talks", "--jobs", "0"), 2, "give 1 or more"),
        (("talks", "--format", "doc"), 2, "invalid choice"),
        ((), 2, "required: FILE"),
        (("talks/no.mp3", "talks/one"), 1, "failed: talks/no.mp3: No such file or directory."),
        (("talks/*.nothing",), 1, "failed: talks/*.nothing: No such file or directory."),
        (("talks/one", "--out", "talks/notes.txt"), 1, "talks/notes.txt/talks/one/a.txt cannot be written: Not a dir"),
        (("talks/one", "--model", "gpt-9"), 1, "failed: talks/one/a.ogg: This model does not exist here."),
    ],
)
def test_what_goes_wrong_is_a_sentence(
    fake_server: RunningServer, talks: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    """With 2 where the command is wrong, and 1 where a file is."""
    (talks / "talks/empty").mkdir()
    run = run_client("transcribe", *arguments, "--url", fake_server.base_url, cwd=talks)
    assert (run.returncode, run.stdout) == (status, "")
    assert message in run.stderr and "Traceback" not in run.stderr


def test_no_server_is_told_once(talks: Path) -> None:
    """And not for each file."""
    run = run_client("transcribe", "talks", "--url", f"http://127.0.0.1:{free_port()}", cwd=talks)
    assert run.returncode == 1 and run.stderr.count("No server answers") == 1
    assert "Traceback" not in run.stderr


def test_every_file_once(talks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is named, in a folder or in a pattern; what is named counts without looking like audio."""
    monkeypatch.chdir(talks)
    named = ["talks/notes.txt", "talks/one/a.ogg", "talks/*/../one", "talks", str(talks / "talks/b.mp3")]
    assert [os.path.relpath(path) for path in select(named)] == [
        "talks/notes.txt", "talks/one/a.ogg", "talks/b.mp3", "talks/b.wav", "talks/broken.mp3", "talks/two/a.WAV",
    ]  # fmt: skip


def test_no_two_files_have_one_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are named like another with its suffix, or differ in case only; and not with --out either."""
    monkeypatch.chdir(tmp_path)
    files = [
        Path(name) for name in ("a.mp3", "a.wav", "a.mp3.wav", "b.dat", "b.raw", "C.mp3", "c.wav", "x/d.mp3", "d.mp3")
    ]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    expected = ["a.mp3", "a.wav", "a.mp3.wav", "b.dat", "b.raw", "C.mp3", "c.wav", "x/d", "d"]
    assert list(targets(files, "srt", None).values()) == [Path(f"{name}.srt") for name in expected]
    assert list(targets(files, "srt", Path("o")).values()) == [Path(f"o/{name}.srt") for name in expected]
    assert targets([Path("a.wav")], "srt", None) == {Path("a.wav"): Path("a.wav.srt")}, "whatever else is selected"


def test_files_elsewhere_keep_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below --out as they lie below /, so that nothing is ever written outside of it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (target,) = targets([Path("../there/a.mp3")], "txt", Path("out")).values()
    assert target == Path("out") / tmp_path.relative_to("/") / "there/a.txt"


def test_what_a_transcript_tells() -> None:
    """Its seconds, by whatever the server says of them, and whether it was cut."""
    subtitles = "WEBVTT\n\n00:01.000 --> 00:02.500\nHi --> 09:00:00.000\n\n01:00:01.000 --> 01:00:03.250\nHo\n\n"
    assert Transcript.read(subtitles, "vtt") == Transcript(subtitles, 3603.25, False)
    assert Transcript.read("", "srt").seconds == 0
    assert Transcript.read('{"text": "a", "duration": 2.5}', "verbose_json").seconds == 2.5
    assert Transcript.read('{"text": "a", "usage": {"type": "duration", "seconds": 3}}', "json").seconds == 3
    assert Transcript.read('{"text": " a", "finish_reason": "length"}', "text") == Transcript("a\n", 0, True)


def test_a_cut_transcript_is_told(talks: Path) -> None:
    """Beside the counts; it is written all the same."""
    body = {"text": "and so", "finish_reason": "length"}
    with stub_server(lambda method, path: (200, MODELS if method == "GET" else body)) as url:
        run = run_client("transcribe", "talks/one", "--url", url, cwd=talks)
    assert run.returncode == 0 and "cut: talks/one/a.ogg: the model had no room" in run.stderr
    assert (talks / "talks/one/a.txt").read_text() == "and so\n"


def test_durations_read_well() -> None:
    """In the units that people use."""
    assert [duration(value) for value in (0, 7.25, 200, 3599.9, 7500)] == [
        "0.0 s", "7.2 s", "3 min 20 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
