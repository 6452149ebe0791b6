"""Broken recordings are decoded or refused, whatever is broken. In small; `make fuzz` has more time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from errors import BadAudio
from tests.fuzz.decoder import WARM_UP, Fuzz, fuzz_pool
from tests.fuzz.mutations import mutated
from tests.support.recordings import DATA

CLIP = (DATA / "jfk.ogg").read_bytes()


async def test_broken_recordings_are_decoded_or_refused() -> None:
    """Nothing else comes back, nothing hangs, no file stays open, and no decoder dies."""
    fuzz = await fuzz_pool(lambda number: number < 200, seed=1)
    assert fuzz.failures == []
    assert fuzz.outcomes["decoder died"] == 0
    assert fuzz.outcomes["decoded"] > 0 < fuzz.outcomes["refused"]


def test_a_seed_gives_the_same_inputs() -> None:
    """So that a failure can be looked at again."""
    assert [mutated([CLIP], 5, n) for n in range(20)] == [mutated([CLIP], 5, n) for n in range(20)]
    assert len({mutated([CLIP], seed, 0) for seed in range(20)}) > 15


LEFT_OPEN: list[int] = []


async def _leak(source: str, target: str, rate: int) -> int:
    LEFT_OPEN.append(os.open(source, os.O_RDONLY))
    raise BadAudio("no")


async def _raise(source: str, target: str, rate: int) -> int:
    raise KeyError(source)


async def _write_nothing(source: str, target: str, rate: int) -> int:
    return 5


@pytest.mark.parametrize(
    ("decode", "told"), [(_leak, "left open"), (_raise, "other exception"), (_write_nothing, "not audio")]
)
async def test_a_run_sees_what_is_wrong(decode, told, tmp_path: Path) -> None:
    """A leak, an exception that no client may see, and samples that are not there."""
    fuzz = Fuzz(decode, 1, lambda number: number < 2 * WARM_UP, kept=tmp_path / "kept")
    await fuzz.run([CLIP], tmp_path)
    assert any(told in failure for failure in fuzz.failures)
    while LEFT_OPEN:
        os.close(LEFT_OPEN.pop())
