"""`client.py transcribe`: many files side by side, each to a file of its own.

A transcript is written under another name and renamed, so one that exists is complete, and a second run goes on where
the first one stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from openai import APIError, APIStatusError, AsyncOpenAI

from cli.problem import Problem, said, told, warn
from cli.progress import Advance, progress
from cli.report import Report
from cli.selection import select, targets
from cli.server import Json, connect, connect_async, model_name
from cli.transcript import FORMATS, Transcript

BUSY = (429, 503)  # the server is full, or between two workers
BUSY_RETRIES = 10  # each after what the server says, or some seconds
WRONG_USAGE = 2


def transcribe(options: argparse.Namespace) -> int:
    if _for_stdout(options):
        return _to_stdout(options)
    files = select([text for text in options.inputs if text != "-"])
    if not files:
        raise Problem(f"No audio in {', '.join(options.inputs)}.", WRONG_USAGE)
    out = Path(options.out) if options.out else None
    planned = targets(files, FORMATS[options.format or "text"], out)
    due = {file: target for file, target in planned.items() if options.again or not target.exists()}
    report = Report(num_skipped=len(planned) - len(due))
    try:
        if due:
            options.model = model_name(connect(options), options)
            asyncio.run(_transcribe_all(due, options, report))
    except KeyboardInterrupt:
        warn("Stopped; the same command goes on from here.")
        raise
    finally:
        report.show()
    return 1 if report.failures else 0


def _for_stdout(options: argparse.Namespace) -> bool:
    """Whether there is one transcript to be printed. Raises `Problem` where that cannot be."""
    inputs, out = options.inputs, options.out
    if "-" in inputs and (len(inputs) > 1 or out not in (None, "-")):
        raise Problem("`-` stands alone, and its transcript goes to stdout.", WRONG_USAGE)
    single = len(inputs) == 1 and (inputs == ["-"] or (Path(inputs[0]).exists() and not Path(inputs[0]).is_dir()))
    if out == "-" and not single:
        raise Problem("--out - takes one file.", WRONG_USAGE)
    return single and ("-" in (out, *inputs) or (out is None and options.format is None))


def _to_stdout(options: argparse.Namespace) -> int:
    (name,) = options.inputs
    file = ("audio", sys.stdin.buffer.read()) if name == "-" else (Path(name).name, Path(name).read_bytes())
    options.model = model_name(connect(options), options)

    async def heard() -> Transcript:
        async with connect_async(options) as client:
            return await _hear(client, file, options)

    print(asyncio.run(heard()).text, end="")
    return 0


async def _transcribe_all(due: dict[Path, Path], options: argparse.Namespace, report: Report) -> None:
    waiting = iter(due.items())
    with progress(len(due)) as advance:
        async with connect_async(options) as client, asyncio.TaskGroup() as workers:
            for _ in range(min(options.jobs, len(due))):
                workers.create_task(_work(client, waiting, options, report, advance))


async def _work(
    client: AsyncOpenAI,
    waiting: Iterator[tuple[Path, Path]],
    options: argparse.Namespace,
    report: Report,
    advance: Advance,
) -> None:
    """One file after the other of those that wait; what fails does not keep the rest."""
    for file, target in waiting:
        try:
            transcript = await _hear(client, (file.name, file.read_bytes()), options)
            _write(target, transcript.text)
        except (APIError, OSError, Problem) as error:
            report.failures[file] = _why(error, options.url)
            advance(f"{file}: failed")
        else:
            report.add(file, transcript)
            advance(f"{file}: done")


def _why(error: APIError | OSError | Problem, url: str) -> str:
    """Behind the file's name."""
    match error:
        case APIStatusError():
            return said(error)
        case OSError():
            return f"{error.strerror}."
        case Problem():
            return str(error)
    return told(error, url)


async def _hear(client: AsyncOpenAI, file: tuple[str, bytes], options: argparse.Namespace) -> Transcript:
    """Asks as often as the SDK does, and with more patience where the server is only busy."""
    format_ = options.format or "text"
    request: Json = {"file": file, "model": options.model, "response_format": "json" if format_ == "text" else format_}
    request |= {name: value for name in ("language", "prompt") if (value := getattr(options, name))}
    try:
        answer = await client.audio.transcriptions.with_raw_response.create(**request)
    except APIStatusError as error:
        if error.status_code not in BUSY:
            raise
        patient = client.with_options(max_retries=BUSY_RETRIES)
        answer = await patient.audio.transcriptions.with_raw_response.create(**request)
    return Transcript.read(answer.text, format_)


def _write(target: Path, text: str) -> None:
    """All of it, or nothing under this name. Raises `Problem`."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(target)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise Problem(f"{target} cannot be written: {error.strerror}.") from None
