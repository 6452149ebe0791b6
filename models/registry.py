"""What `--model` means: a name to a model that is not loaded yet."""

from __future__ import annotations

from models.base import CausalModel, TextModel
from models.loading import LoadOptions


def create(name: str, options: LoadOptions = LoadOptions()) -> CausalModel | TextModel:  # noqa: B008 -- frozen
    """The model called `name`, for `setup` to load: an embedded one, `file.py:Class`, a directory or a hub id.

    Raises `OSError` for what is missing or cannot be reached, `ValueError` for what cannot be served.
    """
    if name == "whisper-tiny.en":
        from models.whisper import embedded_whisper  # noqa: PLC0415 -- transformers takes seconds to import

        return embedded_whisper()
    if name.partition(":")[0] == "fake":
        from models.fake import FakeModel  # noqa: PLC0415

        return FakeModel.named(name)
    if ".py:" in name:
        from models.custom import load_class  # noqa: PLC0415

        return load_class(name)
    from models.huggingface import load_checkpoint  # noqa: PLC0415

    return load_checkpoint(name, options)
