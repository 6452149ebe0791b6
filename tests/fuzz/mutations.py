"""Recordings with something broken in them, the same for the same seed and number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

Mutation = Callable[[bytearray, Random, Sequence[bytes]], bytearray]

MAX_STEPS = 3  # mutations of one input
HEADERS = 512  # bytes in which most lengths and counts stand
LIES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """One of `seeds` after one to three mutations."""
    draw = Random(f"{seed}:{number}")
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randint(1, MAX_STEPS)):
        data = draw.choice(MUTATIONS)(data, draw, seeds)
    return bytes(data)


def _place(data: bytearray, draw: Random) -> int:
    """Half of them where headers are."""
    return draw.randrange(min(len(data), HEADERS) if draw.random() < 0.5 else len(data)) if data else 0


def _flip_bits(data: bytearray, draw: Random, _: Sequence[bytes]) -> bytearray:
    for _flip in range(draw.choice((1, 1, 3, 30)) if data else 0):
        data[_place(data, draw)] ^= 1 << draw.randrange(8)
    return data


def _lie(data: bytearray, draw: Random, _: Sequence[bytes]) -> bytearray:
    """Another number in the place of what may be a length, a count or a rate."""
    size, at = draw.choice((1, 2, 4, 8)), _place(data, draw)
    value = draw.choice((*LIES, draw.getrandbits(32))) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, draw.choice(("little", "big")))
    return data


def _truncate(data: bytearray, draw: Random, _: Sequence[bytes]) -> bytearray:
    return data[: _place(data, draw)]


def _cut_out(data: bytearray, draw: Random, _: Sequence[bytes]) -> bytearray:
    at = _place(data, draw)
    del data[at : at + draw.choice((1, 4, 100, 5_000))]
    return data


def _repeat(data: bytearray, draw: Random, _: Sequence[bytes]) -> bytearray:
    at, size = _place(data, draw), draw.choice((1, 4, 100, 5_000))
    data[at:at] = data[at : at + size] * draw.choice((1, 1, 20))
    return data


def _splice(data: bytearray, draw: Random, seeds: Sequence[bytes]) -> bytearray:
    """A piece of another recording, in the place of some of this one or behind its beginning."""
    other = draw.choice(seeds)
    at, begin = _place(data, draw), draw.randrange(len(other))
    size = draw.choice((8, 200, 5_000, len(other)))
    data[at : at + draw.choice((0, size))] = other[begin : begin + size]
    return data


def _noise(data: bytearray, draw: Random, _: Sequence[bytes]) -> bytearray:
    at, size = _place(data, draw), draw.choice((4, 64, 4_000))
    data[at : at + size] = draw.choice((bytes(size), b"\xff" * size, draw.randbytes(size)))
    return data


MUTATIONS: tuple[Mutation, ...] = (_flip_bits, _lie, _lie, _truncate, _cut_out, _repeat, _splice, _noise)
