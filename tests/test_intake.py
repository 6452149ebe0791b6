"""Audio that clients may name again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from api.intake import KeptAudio, RequestIntake, Source
from audio.spool import open_spool
from errors import BadRequest
from tests.support.inprocess import run_in_process
from tests.support.speech import input_audio, user


def test_kept_audio_outlives_its_request_and_costs_its_bytes_once(tmp_path: Path) -> None:
    """Another request of the same owner gets a file of its own; nobody else gets it."""
    with open_spool(tmp_path, 0) as spool:
        kept = KeptAudio(spool, 100)
        with closing(spool.files()) as files:
            intake = RequestIntake(files, kept, "owner")
            path = intake.store(b"audio")
            intake.keep("clip", Source(path))
            assert Path(path).stat().st_nlink == 2
        assert not Path(path).exists()
        with closing(spool.files()) as files:
            again = RequestIntake(files, kept, "owner")
            source = again.again("clip")
            assert (Path(source.path).read_bytes(), again.num_bytes) == (b"audio", 5)
            for owner, uuid in (("somebody", "clip"), ("owner", "other")):
                with pytest.raises(BadRequest, match="no audio is kept"):
                    RequestIntake(files, kept, owner).again(uuid)
        assert not Path(source.path).exists()
        assert len(list(spool.directory.glob("*.audio"))) == 1


def test_the_least_used_goes_first(tmp_path: Path) -> None:
    """Within so many bytes; what is in use lives on. With no bytes nothing is kept."""
    with open_spool(tmp_path, 0) as spool, closing(spool.files()) as files:
        kept = KeptAudio(spool, 10)
        for uuid in "abc":
            if uuid == "c":
                used = kept.get("", "a")
            kept.put("", uuid, Source(files.write(b"four")))
        assert kept.get("", "b") is None
        assert [kept.get("", uuid) is not None for uuid in "ac"] == [True, True]
        kept.put("", "a", Source(files.write(b"ten bytes!")))
        assert kept.get("", "c") is None
        assert Path(used.path).read_bytes() == b"four"
        kept.put("", "large", Source(files.write(b"eleven byte")))
        assert kept.get("", "large") is kept.get("", "a") is None
        nothing = KeptAudio(spool, 0)
        nothing.put("", "a", Source(files.write(b"x")))
        assert nothing.get("", "a") is None


async def test_a_question_about_the_same_clip() -> None:
    """Over HTTP: sent once, asked about twice; and each key has uuids of its own."""
    async with run_in_process(api_keys="first,second") as server, server.http() as http:

        async def ask(key: str, *parts: dict | str) -> tuple[int, str]:
            headers = {"authorization": f"Bearer {key}"}
            body = {"model": "fake", "messages": user(*parts)}
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            told = answer.json()
            return answer.status_code, told["error"]["message"] if "error" in told else (
                told["choices"][0]["message"]["content"]
            )

        clip = {**input_audio("cv-en-no.mp3"), "uuid": "my clip"}
        again = {"type": "input_audio", "uuid": "my clip"}
        assert await ask("first", clip, "one") == (200, "I heard 4.1 s. You said: one")
        assert await ask("first", again, "two") == (200, "I heard 4.1 s. You said: two")
        status, message = await ask("second", again, "three")
        assert (status, "Send the audio with it" in message) == (400, True)
