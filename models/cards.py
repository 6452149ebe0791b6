"""What `models.check` has found out about a `TextModel`'s batches, in a file that the server reads; and a model that is
batched so. A card is found by the model's fingerprint: one whose file was edited since has none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from models.base import CausalModel, Conversation, Question, TextModel, clips_of
from wire import Transcribe

log = logging.getLogger("eardrum.models")

# Any requests share a batch; only those with clips of one length; none do.
CardBatching = Literal["dynamic", "one length", "serial"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Card:
    """`why`: what was seen, in a sentence. `checked_at`: in ISO 8601, UTC."""

    batching: CardBatching
    why: str
    checked_at: str
    fingerprint: str

    def __post_init__(self) -> None:
        if self.batching not in get_args(CardBatching):
            raise ValueError(f"`batching` is {self.batching!r}")


def fingerprint(name: str) -> str | None:
    """What changes with the model that `--model name` serves: of `file.py:Class`, the file's bytes; of a directory, its
    configuration and the names and sizes of its weights. `None` for anything else, which gets no card."""
    file, _, class_name = name.rpartition(":")
    if file.endswith(".py") and _path(file).is_file():
        return hashlib.sha256(_path(file).read_bytes() + class_name.encode()).hexdigest()
    directory = _path(name)
    if not (directory / "config.json").is_file():
        return None
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.iterdir()):
        if path.suffix in WEIGHTS:
            digest.update(f"{path.name} {path.stat().st_size};".encode())
    return digest.hexdigest()


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name)).resolve()  # noqa: PTH111 -- Path's fails where there is no home


def read_card(name: str, directory: Path) -> Card | None:
    """The card of the model as it is now, if `directory` has one. An unreadable one counts for nothing."""
    key = fingerprint(name)
    if key is None:
        return None
    try:
        card = Card(**json.loads(_file(directory, key).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("the capability card %s is ignored: %s", _file(directory, key), error)
        return None
    return card if card.fingerprint == key else None


def write_card(card: Card, directory: Path) -> Path:
    """Keep a card, in the place of an older one of the same model; its path. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = _file(directory, card.fingerprint)
    unfinished = path.with_suffix(f".{os.getpid()}.new")
    unfinished.write_text(json.dumps(asdict(card), indent=2) + "\n")
    return unfinished.replace(path)


def _file(directory: Path, key: str) -> Path:
    return directory / f"{key[:32]}.json"


def as_card_says(model: CausalModel | TextModel, card: Card | None) -> CausalModel | TextModel:
    """The model, which is set up, in batches no bolder than its card allows. Cards are for a `TextModel`."""
    if card is None or card.batching == "dynamic" or not isinstance(model, TextModel) or model.max_batch_size == 1:
        return model
    log.info("%s", card.why)
    return Cautious(model, card)


class Cautious(TextModel):
    """A loaded model, one request at a time, or only clips of one length together."""

    def __init__(self, model: TextModel, card: Card) -> None:
        self._model = model
        self._one_length = card.batching == "one length"
        self.max_batch_size = model.max_batch_size if self._one_length else 1
        self.capabilities = replace(model.capabilities, why=card.why)

    def setup(self, device: str, dtype: str) -> None:
        """It is loaded."""

    def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
        return self._model.generate(questions)

    def split(self, conversation: Conversation) -> Sequence[Conversation]:
        return self._model.split(conversation)

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Conversation]:
        return self._model.transcribe(conversation, task)

    def group(self, question: Question) -> Hashable:
        lengths = tuple(len(window) for clip in clips_of(question.conversation) for window in clip.windows)
        return self._model.group(question), lengths if self._one_length else None

    def count_tokens(self, text: str) -> int:
        return self._model.count_tokens(text)
