"""`models.check` finds what an adapter breaks, keeps what it found of batches for the server, and compares servers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from check.answering import cancels, honours_seeds, streamed_equals_unstreamed
from check.asking import Run
from check.batching import BATCHED, batched_equals_alone
from check.command import main
from check.golden import record, replay
from check.hearing import hears_the_end, keeps_order
from check.outcome import Outcome, passed, quoted
from check.run import CHECKS, LOADS, Options, Report, check, guarded, loaded
from check.sounds import Sounds, as_wav, decoded
from check.subject import Subject
from config import Settings
from models.cards import Card, fingerprint, read_card, write_card
from tests.support import broken, directories
from tests.support.servers import ROOT, run_server
from tests.support.speech import DATA
from worker.serving import Served, load

BROKEN = Path(broken.__file__)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # transformers' advice on generation settings


def settings_of(model: str, cards: Path) -> Settings:
    return Settings(_env_file=None, model=model, device="cpu", cards_dir=cards)


def report_of(model: str, cards: Path, **options: object) -> Report:
    return check(settings_of(model, cards), Options(), **options)


def subject_of(model: str, cards: Path) -> Subject:
    return loaded(settings_of(model, cards), Options())[0]


def failures(report: Report) -> dict[str, Outcome]:
    return {name: outcome for name, outcome in report.outcomes if outcome.status == "fail"}


def served(model: str, cards: Path) -> Served:
    """As the server has it."""
    return load(settings_of(model, cards), "cpu")


# ----------------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("name", ["Honest", "Other", "HonestInputs"])
def test_an_honest_class_passes(name: str, tmp_path: Path) -> None:
    """Everything; only what a class makes of placeholders cannot be seen where there is no prompt."""
    report = report_of(f"{BROKEN}:{name}", tmp_path)
    expected = dict.fromkeys((LOADS, *dict(CHECKS)), "pass")
    if name != "HonestInputs":
        expected["placeholders stay text"] = "warn"
    assert {name: outcome.status for name, outcome in report.outcomes} == expected
    assert report.is_good


@pytest.mark.parametrize(
    ("name", "check_name", "seen"),
    [
        ("PadsAudio", BATCHED, "with clips of one length none differs"),
        ("PadsAll", BATCHED, "of 6 answers"),
        ("Crowded", BATCHED, "of 6 answers"),
        ("SortsAudio", "order of audios", "swapping two audios does not change the answer"),
        ("TranscribesBackwards", "order of audios", "became"),
        ("ReversesFeatures", "order of audios", "in the order in which they did not"),
        ("CutsAt30Seconds", "the end is heard", "that of 61 s does not"),
        ("CutsFeatures", "the end is heard", "the end of 61 s is in no feature"),
        ("NormalisesAndCuts", "the end is heard", "the end of 61 s is in no feature"),
        ("IgnoresSeed", "seed", "asked twice with the same seeds"),
        ("SharesSeed", "seed", ", in company"),
        ("CountsPlaceholders", "placeholders stay text", "InternalError"),
        ("TakesPlaceholders", "placeholders stay text", '"<|AUDIO|>" in a user\'s text: +1 control tokens'),
        ("LosesEnd", "streamed equals unstreamed", 'ends by itself after ""'),
        ("TrimsAtStops", "stop strings", "stop"),
        ("Remembers", "cancel", "before"),
        ("RefusesSystem", "renders", "with system role"),
        ("Miscounts", "choices and length", "stop"),
    ],
)
def test_a_broken_promise_fails_one_check(name: str, check_name: str, seen: str, tmp_path: Path) -> None:
    """And no other, so that the report tells what to mend."""
    found = failures(report_of(f"{BROKEN}:{name}", tmp_path))
    assert list(found) == [check_name]
    assert seen in found[check_name].seen
    assert found[check_name].advice


def test_the_cause_of_an_internal_error_is_told(tmp_path: Path) -> None:
    """Clients are told nothing of it, the author of an adapter is."""
    (outcome,) = failures(report_of(f"{BROKEN}:RefusesSystem", tmp_path)).values()
    assert outcome.advice == "behind it: KeyError: 'system'"


def test_what_does_not_load_fails(tmp_path: Path) -> None:
    """With the reason; nothing else is tried."""
    report = report_of(f"{BROKEN}:DoesNotLoad", tmp_path)
    assert failures(report) == {LOADS: Outcome("fail", "OSError: the weights are gone")}
    assert {outcome.status for _, outcome in report.outcomes[1:]} == {"skipped"}


def test_a_check_that_raises_leaves_nothing_behind(tmp_path: Path) -> None:
    """It has failed, and the engine is idle for the next one."""
    subject = subject_of("fake", tmp_path)

    def explodes(subject: Subject) -> Outcome:
        Run(subject.served).submit(subject.probe("hello"))
        raise LookupError("boom")

    assert guarded(subject, explodes) == Outcome("fail", "LookupError: boom")
    assert subject.engine.idle
    assert guarded(subject, lambda _: passed("fine")).status == "pass"


@pytest.mark.parametrize("run", [cancels, honours_seeds, streamed_equals_unstreamed])
def test_a_model_that_answers_at_once_is_not_blamed(run: Callable[[Subject], Outcome], tmp_path: Path) -> None:
    """It has no middle and no pieces."""
    assert guarded(subject_of(f"{BROKEN}:AtOnce", tmp_path), run).status in ("pass", "warn", "skipped")


def test_what_differs_from_itself_is_not_blamed_on_batches(tmp_path: Path) -> None:
    """And there is no card of it."""
    outcome = guarded(subject_of(f"{BROKEN}:NeverTheSame", tmp_path), batched_equals_alone)
    assert outcome.status == "fail"
    assert outcome.seen.startswith("the same request, alone, has different answers: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["qwen2_audio", "wav2vec2", "moonshine"])
def test_a_checkpoint_passes(name: str, tmp_path: Path) -> None:
    """A chat model, a CTC transcriber and an encoder-decoder."""
    report = report_of(str(directories.save(name, tmp_path)), tmp_path / "cards")
    assert not failures(report)
    assert dict(report.outcomes)[BATCHED].status == "pass"


def test_the_embedded_whisper_passes_on_speech(tmp_path: Path) -> None:
    """The checks that do not take it half a minute."""
    checks = tuple((run.__name__, run) for run in (batched_equals_alone, hears_the_end, keeps_order))
    options = Options(recording=DATA / "jfk.wav", max_tokens=8)
    report = check(settings_of("whisper-tiny.en", tmp_path), options, checks=checks)
    assert {outcome.status for _, outcome in report.outcomes} == {"pass"}


@pytest.mark.parametrize("model", ["fake", "fake:30:2", "cascade:fake,fake"])
def test_what_cannot_be_seen_is_no_failure(model: str, tmp_path: Path) -> None:
    """The fake model tells the seconds alone, so no end of an audio changes its answer."""
    report = report_of(model, tmp_path)
    assert report.is_good
    end = dict(report.outcomes)["the end is heard"]
    assert (end.status, end.seen.partition(":")[0]) == ("warn", "could not be seen")
    assert list(tmp_path.iterdir()) == [], "there is no card of it"


# -------------------------------------------------------------------------------------------------------------- cards


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's file, which may be edited."""
    return Path(shutil.copy(BROKEN, tmp_path / "mine.py"))


def test_the_server_answers_one_by_one_what_no_batch_bears(file: Path, tmp_path: Path) -> None:
    """As long as the file is as it was."""
    model, cards = f"{file}:PadsAll", tmp_path / "cards"
    assert served(model, cards).engine.batching[0] == "dynamic"
    advice = failures(report_of(model, cards))[BATCHED].advice
    assert advice.startswith("serve it one by one: ")
    assert "the server will do so from now on" in advice
    now = served(model, cards)
    assert (now.engine.batching[0], now.capabilities.batching) == ("serial", "serial")
    assert f"models.check failed `{BATCHED}`" in now.capabilities.why
    file.write_text(file.read_text() + "\n# mended\n")
    assert served(model, cards).engine.batching[0] == "dynamic"


def test_the_server_batches_clips_of_one_length_where_others_change_answers(file: Path, tmp_path: Path) -> None:
    """So that answers in company are those alone."""
    model, cards = f"{file}:PadsAudio", tmp_path / "cards"
    report_of(model, cards)
    now = served(model, cards)
    assert now.engine.batching[0] == "dynamic"
    assert "clips of one length share a batch" in now.capabilities.why
    subject = Subject(model, now, Sounds(16_000), 8, cards)
    probes = subject.varied()
    alone = [subject.ask(probe).text for probe in probes]
    assert [reply.text for reply in subject.ask_together(probes)] == alone
    assert now.model.max_batch_size == broken.PadsAudio.max_batch_size


def test_a_check_does_not_heed_the_card_of_the_last_one(file: Path, tmp_path: Path) -> None:
    """What fails, fails again, until it is mended; then its card says so."""
    model, cards = f"{file}:PadsAll", tmp_path / "cards"
    for _ in range(2):
        assert list(failures(report_of(model, cards, checks=((BATCHED, batched_equals_alone),)))) == [BATCHED]
    report_of(f"{file}:Honest", cards, checks=((BATCHED, batched_equals_alone),))
    assert read_card(f"{file}:Honest", cards).batching == "dynamic"
    assert read_card(model, cards).batching == "serial"


def test_a_card_comes_back_as_it_was_written(file: Path, tmp_path: Path) -> None:
    """For this class of this file only."""
    key = fingerprint(f"{file}:Honest")
    card = Card("serial", "because", "2026-01-01T00:00:00+00:00", key)
    write_card(card, tmp_path / "cards")
    assert read_card(f"{file}:Honest", tmp_path / "cards") == card
    assert read_card(f"{file}:Other", tmp_path / "cards") is None
    assert read_card(f"{file}:Honest", tmp_path / "elsewhere") is None


CARD_OF_ANOTHER = '{"batching": "serial", "why": "", "checked_at": "", "fingerprint": "another"}'


@pytest.mark.parametrize("text", ["", "{}", "[]", CARD_OF_ANOTHER.replace("serial", "wild"), CARD_OF_ANOTHER])
def test_a_damaged_card_counts_for_nothing(text: str, file: Path, tmp_path: Path) -> None:
    """The server starts as if there were none."""
    model = f"{file}:PadsAll"
    write_card(Card("serial", "because", "", fingerprint(model)), tmp_path / "cards").write_text(text)
    assert read_card(model, tmp_path / "cards") is None
    assert served(model, tmp_path / "cards").engine.batching[0] == "dynamic"


def test_a_checkpoints_fingerprint_is_that_of_its_configuration_and_weights(tmp_path: Path) -> None:
    """Other files do not matter; what is no directory and no file has none."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    prints = [fingerprint(str(tmp_path))]
    (tmp_path / "README.md").write_text("new")
    assert fingerprint(str(tmp_path)) == prints[0]
    (tmp_path / "model.safetensors").write_bytes(b"12")
    prints.append(fingerprint(str(tmp_path)))
    (tmp_path / "config.json").write_text("{ }")
    prints.append(fingerprint(str(tmp_path)))
    assert len(set(prints)) == 3
    assert [fingerprint(name) for name in ("fake", "whisper-tiny.en", "org/model", "gone.py:Class")] == [None] * 4


def test_a_card_is_for_text_models(tmp_path: Path) -> None:
    """The engine batches its own as it can; the operator is told how to keep it from that."""
    model = f"{BROKEN}:Crowded"
    write_card(Card("serial", "because", "", fingerprint(model)), tmp_path)
    assert served(model, tmp_path).engine.batching[0] == "continuous"
    advice = guarded(subject_of(model, tmp_path), batched_equals_alone).advice
    assert "--max-rows 1" in advice


def test_cards_have_a_place_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's cache, unless the operator says otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings(_env_file=None).cards_path == tmp_path / "eardrum"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Settings(_env_file=None).cards_path == Path.home() / ".cache" / "eardrum"
    assert Settings(_env_file=None, cards_dir=tmp_path).cards_path == tmp_path


# ------------------------------------------------------------------------------------------------------------- golden


def test_answers_are_recorded_and_a_server_of_the_same_model_repeats_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file holds what OpenAI's clients send; another model's answers differ, and both are told."""
    model, file = f"{BROKEN}:Honest", tmp_path / "golden.jsonl"
    num_requests = record(subject_of(model, tmp_path), file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == num_requests >= 8
    assert all(line["answer"] and line["finish_reason"] == "length" for line in lines)
    assert [block["type"] for block in lines[-1]["request"]["messages"][0]["content"]] == [*["input_audio"] * 2, "text"]
    with run_server("--model", model, "--cards-dir", str(tmp_path)) as server:
        url = f"{server.base_url}/v1"
        assert main(["--golden", str(file), "--against", url]) == 0
        assert f"{num_requests} of {num_requests} are equal" in capsys.readouterr().out
        record(subject_of(f"{BROKEN}:Other", tmp_path), file)
        assert main(["--golden", str(file), "--against", url, "--model-name", model, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        comparisons = replay(file, url, "none", "nobody")
    assert not any(request["equal"] for request in told["requests"])
    assert all(request["answered"] and request["answered"] != request["recorded"] for request in told["requests"])
    assert all("NotFoundError" in each.error and not each.is_equal for each in comparisons)


def test_what_a_model_refuses_is_not_recorded(tmp_path: Path) -> None:
    """A model of one clip has no request with two."""
    subject = subject_of("fake:30:1", tmp_path)
    record(subject, tmp_path / "golden.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "golden.jsonl").read_text().splitlines()]
    assert lines
    assert all(str(line["request"]).count("input_audio'") <= 2 for line in lines), "its key and its type"


# ------------------------------------------------------------------------------------------------------------ the door


def test_the_door_prints_json_and_a_table(tmp_path: Path) -> None:
    """As a user calls it; the exit status tells whether something failed."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "models.check", *arguments, "--cards-dir", str(tmp_path / "cards")]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("fake", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["passed"], report["model"]) == (0, True, "fake")
    assert [each["check"] for each in report["checks"]] == [LOADS, *dict(CHECKS)]
    done = run(f"{BROKEN}:PadsAll")
    assert done.returncode == 1
    assert "serve it one by one" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    "arguments", [[], ["--golden", "x"], ["--against", "http://localhost"], ["x", "--against", "y"]]
)
def test_what_makes_no_sense_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """By the command line, before anything is loaded."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--golden FILE" in capsys.readouterr().err


def test_a_golden_file_that_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence, with a status of its own."""
    assert main(["--golden", str(tmp_path / "none"), "--against", "http://127.0.0.1:1/v1"]) == 2
    assert "No such file" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- sounds


def test_clips_are_pieces_of_the_recording() -> None:
    """Each number another one, repeated where it is too short."""
    recording = np.arange(32_000, dtype=np.float32)
    sounds = Sounds(16_000, recording)
    assert sounds.clip(1.0).tolist() == recording[:16_000].tolist()
    assert len(sounds.clip(5.0)) == 80_000
    assert sounds.clip(1.0, 1)[0] != sounds.clip(1.0, 0)[0]


def test_other_tails_change_nothing_before_them() -> None:
    """And each is another."""
    sounds = Sounds(16_000)
    whole = sounds.clip(2.0)
    tails = sounds.with_other_tails(whole, 0.5)
    assert all(np.array_equal(tail[:-8000], whole[:-8000]) for tail in tails)
    assert len({tail.tobytes() for tail in tails}) == len(tails)


def test_a_wav_file_is_heard_as_it_was_rounded() -> None:
    """So that a recorded request is the very one that was answered."""
    waveform = Sounds(16_000).clip(0.3)
    heard = decoded(as_wav(waveform, 16_000), 16_000)
    assert np.abs(heard - waveform).max() <= 0.5 / 32768
    assert as_wav(heard, 16_000) == as_wav(waveform, 16_000)


def test_quotes_are_short() -> None:
    """And stand in one line."""
    assert quoted("a\nb") == '"a\\nb"'
    assert len(quoted("x" * 1000)) < 80


def test_a_directory_for_cards_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The finding stands, with why the server does not hear of it."""
    (tmp_path / "file").write_text("")
    outcome = dict(report_of(f"{BROKEN}:PadsAll", tmp_path / "file").outcomes)[BATCHED]
    assert outcome.status == "fail"
    assert "cannot be written" in outcome.advice


def test_no_home_and_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, as in a container, serves models all the same."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/root/../nonexistent-home")
    assert Settings(_env_file=None).cards_path.name == "eardrum"
    assert read_card(f"{BROKEN}:Honest", Path("/dev/null/cards")) is None
