"""Which files are meant, and where the transcript of each goes: one place for each, whatever else is selected."""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

SUFFIXES = (".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp3",
            ".mp4", ".mpeg", ".mpga", ".oga", ".ogg", ".opus", ".wav", ".weba", ".webm", ".wma")  # fmt: skip


def select(inputs: Sequence[str]) -> list[Path]:
    """Every file once. Of folders, what looks like audio; what is named itself, whatever it looks like or whether it is
    there: then it fails by itself."""
    found = (path for text in inputs for path in _meant(text))
    return list({os.path.abspath(path): path for path in found}.values())  # noqa: PTH100 -- links keep their names


def _meant(text: str) -> Iterator[Path]:
    if Path(text).exists():
        yield from _files(Path(text))
    else:
        for name in sorted(glob.glob(text, recursive=True)) or [text]:  # noqa: PTH207 -- Path.glob takes no absolute ones
            yield from _files(Path(name))


def _files(path: Path) -> Iterator[Path]:
    """A file itself; of a folder and those in it, what looks like audio and is not hidden."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and looks_like_audio(file) and file.is_file():
            yield file


def looks_like_audio(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def targets(files: Sequence[Path], suffix: str, out: Path | None) -> dict[Path, Path]:
    """Where each transcript goes: `talk.srt` for `talk.mp3`, but `talk.mp3.srt` if a `talk.wav` lies beside it, so that
    the one is never taken for the other's."""
    long = _with_rivals(files)
    while True:
        planned = {file: _target(file, suffix, out, file in long) for file in files}
        clashing = _sharing(planned) - long
        if not clashing:
            return planned
        long |= clashing


def _with_rivals(files: Iterable[Path]) -> set[Path]:
    """Those that share their name, but for the suffix, with other audio in their folder, selected now or not."""
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in files:
        folders[file.parent].append(file)
    rivals: set[Path] = set()
    for folder, chosen in folders.items():
        lying = [path for path in folder.iterdir() if looks_like_audio(path)] if folder.is_dir() else []
        shared = _sharing({path: Path(path.stem.casefold()) for path in {*chosen, *lying}})
        rivals.update(shared.intersection(chosen))
    return rivals


def _sharing(places: dict[Path, Path]) -> set[Path]:
    """The files whose place is another's, too."""
    by_place: defaultdict[Path, set[Path]] = defaultdict(set)
    for file, place in places.items():
        by_place[place].add(file)
    return {file for files in by_place.values() if len(files) > 1 for file in files}


def _target(file: Path, suffix: str, out: Path | None, long: bool) -> Path:
    name = f"{file.name if long else file.stem}.{suffix}"
    return (file.parent if out is None else out / _below_here(file.parent)) / name


def _below_here(folder: Path) -> Path:
    """Relative to the working directory, or to / for what is elsewhere: the same whatever is selected, so that folders
    stay apart and a later run finds what an earlier one did."""
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 -- without following links
    here = Path.cwd()
    return absolute.relative_to(here if absolute.is_relative_to(here) else absolute.anchor)
