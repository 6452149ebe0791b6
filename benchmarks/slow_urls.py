"""Measures whether ordinary requests wait for somebody else's slow audio: their time to the first token, with a slow
and an endless address in flight, and without.

    python server.py ── ordinary requests, one after another: a small clip from an address, a short answer
         │           ── slow: an audio that comes at 10 kB/s until its request's fetch time is over; then the next
         │           ── endless: one that comes at 2 MB/s until it is over a limit; then the next
      an origin, in a process of its own

With and without take turns, so that what else the machine does hits both. Knows the server as its clients do, and the
fake model: no weights, so nothing hides what fetching costs.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
import wave
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import openai

from benchmarks.results import RESULTS, Spread, filled, machine, sections, table, write_section

ROOT = Path(__file__).parents[1]
SAMPLING_RATE = 16_000
CLIP_S = 1
ORDERS = "#tokens=8 #delay=0.005"
START_LIMIT_S = 120.0
TICK_S = 0.05  # between two pieces of a slow audio
BYTES_PER_S = {"slow": 10_000, "endless": 2_000_000}
MAX_RATIO = 1.2  # of the time to the first token at the 95th percentile, with and without
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nConnection: close\r\n"


# ----------------------------------------------------------------------------------------------------------- the origin


def run_origin(port: Connection) -> None:
    """`/clip/N` at once, `/slow/N` and `/endless/N` for ever. Tells its port."""
    asyncio.run(_serve(port))


async def _serve(port: Connection) -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        name = (await reader.readuntil(b"\r\n\r\n")).split(b"/")[1].decode()
        if name == "clip":
            writer.write(_HEAD + b"Content-Length: %d\r\n\r\n" % len(_CLIP) + _CLIP)
            return await writer.drain()
        writer.write(_HEAD + b"\r\n")
        while True:
            writer.write(b"\0" * round(BYTES_PER_S[name] * TICK_S))
            await writer.drain()
            await asyncio.sleep(TICK_S)
    except ConnectionError:
        return None
    finally:
        writer.close()


def _silence() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLING_RATE)
        out.writeframes(bytes(2 * SAMPLING_RATE * CLIP_S))
    return buffer.getvalue()


_CLIP = _silence()


@contextmanager
def origin() -> Iterator[str]:
    """Its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_origin, args=(theirs,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()


# ----------------------------------------------------------------------------------------------------------- the server


@contextmanager
def server() -> Iterator[str]:
    """Its address, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "server.py", "--model", "fake", "--port", str(port), "--allow-private-networks"]
    process = subprocess.Popen([*command, "--log-level", "error"], cwd=ROOT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not get ready")


# ---------------------------------------------------------------------------------------------------------- the clients


class Clients:
    """Ask about audio at addresses of the origin, each of which is asked for once."""

    def __init__(self, server_url: str, origin_url: str) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0)
        self._origin_url = origin_url
        self._numbers = count()
        self.ends: Counter[str] = Counter()  # of disturbing requests, by what they asked for and how they ended

    async def first_token_s(self) -> float:
        """Of an ordinary request."""
        begin_s = perf_counter()
        stream = await self._ask("clip")
        first_s = None
        async for chunk in stream:
            if first_s is None and chunk.choices and chunk.choices[0].delta.content:
                first_s = perf_counter() - begin_s
        assert first_s is not None, "an answer of eight tokens"
        return first_s

    async def _ask(self, name: str) -> openai.AsyncStream[Any]:
        audio = {"type": "audio_url", "audio_url": {"url": f"{self._origin_url}/{name}/{next(self._numbers)}"}}
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": ORDERS}, audio]}]
        return await self._client.chat.completions.create(model="fake", messages=messages, stream=True)

    async def _disturb(self, name: str) -> None:
        """With one such address in flight at each moment."""
        while True:
            try:
                await self._ask(name)
                self.ends[f"{name}: answered"] += 1
            except openai.BadRequestError as error:
                self.ends[f"{name}: {error.code}"] += 1

    @asynccontextmanager
    async def disturbed(self) -> AsyncIterator[None]:
        """One slow and one endless address are in flight."""
        tasks = [asyncio.create_task(self._disturb(name)) for name in BYTES_PER_S]
        try:
            await asyncio.sleep(1)  # until they are in the middle of it
            yield
            for task in tasks:
                assert not task.done(), task.exception()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def aclose(self) -> None:
        await self._client.close()


# ----------------------------------------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class Round:
    """Times to the first token, in seconds."""

    without: list[float]
    disturbed: list[float]

    @property
    def ratio(self) -> float:
        return p95(self.disturbed) / p95(self.without)


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


async def measure(clients: Clients, repeats: int, requests: int) -> list[Round]:
    for _ in range(5):  # connections, processes, caches
        await clients.first_token_s()
    rounds = []
    for _ in range(repeats):
        without = [await clients.first_token_s() for _ in range(requests)]
        async with clients.disturbed():
            disturbed = [await clients.first_token_s() for _ in range(requests)]
        rounds.append(Round(without, disturbed))
    await clients.aclose()
    return rounds


def report(rounds: list[Round], ends: Counter[str], requests: int) -> str:
    rows = []
    for name, sides in (("without", [r.without for r in rounds]), ("with both", [r.disturbed for r in rounds])):
        spreads = [Spread.of([1000 * of(side) for side in sides]) for of in (statistics.median, p95)]
        rows.append((name, *(spread.text(1) for spread in spreads)))
    ratio = Spread.of([r.ratio for r in rounds])
    reached = "reached" if ratio.median <= MAX_RATIO else "not reached"
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items())) or "none"
    return sections(
        filled(
            f"""`python server.py` with the fake model. Rounds in which the two take turns: {len(rounds)}, each of
            {requests} requests one after another on each side: a clip of {CLIP_S} s from an address of its own on this
            machine, an answer of 8 tokens. Beside them, one address that sends {BYTES_PER_S["slow"] // 1000} kB/s and
            one that sends {BYTES_PER_S["endless"] // 1_000_000} MB/s without end, each asked for anew when it is given
            up. So ended: {told}."""
        ),
        table(("a slow and an endless address", "first token, median, ms", "first token, p95, ms"), rows),
        f"p95 with both / without: {ratio.text(2, 'x')}.",
        f"Aim: at most {MAX_RATIO:g}x: {reached}.",
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.slow_urls", description="Measure who waits for slow audio.")
    parser.add_argument("--quick", action="store_true", help="a little, to see that it runs")
    parser.add_argument("--results", type=Path, help=f"where its section goes (default: {RESULTS}, none with --quick)")
    return parser.parse_args()


def main() -> int:
    """Print the section."""
    arguments = _arguments()
    repeats, requests = (1, 10) if arguments.quick else (4, 150)
    command = shlex.join(["python", "-m", "benchmarks.slow_urls", *sys.argv[1:]])
    head = f"## Slow addresses\n\n- Command: `{command}`\n{machine(os.cpu_count() or 1, ('litserve', 'httpcore'))}"
    with origin() as origin_url, server() as server_url:
        clients = Clients(server_url, origin_url)
        rounds = asyncio.run(measure(clients, repeats, requests))
    text = sections(head, report(rounds, clients.ends, requests))
    print(text)
    path = arguments.results or (None if arguments.quick else RESULTS)
    if path is not None:
        write_section("slow-urls", text, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
