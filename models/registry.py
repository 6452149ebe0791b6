"""What `--model` means: a name to a model that is not loaded yet."""

from __future__ import annotations

from models.base import CausalModel

MODELS = ("whisper-tiny.en", "fake")


def create(name: str) -> CausalModel:
    """The model called `name`. Raises `ValueError` for an unknown name, `FileNotFoundError` for missing weights."""
    if name == "whisper-tiny.en":
        from models.whisper import embedded_whisper  # noqa: PLC0415 -- transformers takes seconds to import

        return embedded_whisper()
    if name == "fake":
        from models.fake import FakeModel  # noqa: PLC0415

        return FakeModel()
    raise ValueError(f"There is no model {name!r}. This version serves: {', '.join(MODELS)}.")
