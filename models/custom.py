"""A class of the user's own, `path/to/file.py:Class`, as a model. No base class is needed: what it has decides.

    prepare(messages)                  fast: inputs of a transformers module, which the engine runs in its rows
    generate(batch)                    simple: a loop of its own, over a batch of asks
    generate(messages, audio_inputs)   one request at a time, maybe `async`: the shape of AU-Harness's classes
    CausalModel, TextModel             the contract itself (base.py), used as it is

template.py shows the first two. What a class says of itself is read once its `setup` has run.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import torch
from tokenizers import Tokenizer

from models.asks import SETTINGS, AnswerReader, Ask, as_clients_write, messages_of
from models.base import CausalModel, Conversation, Defaults, Prompt, Question, TextModel, one_window_each
from models.huggingface import AUDIO_IDS, end_ids_of, ids_in, window_of
from wire import Batching, Capabilities, LongAudio

MIN_WINDOW_S = 0.1
POLICIES: tuple[LongAudio, ...] = get_args(LongAudio)  # the first is the usual one
RATE_OF_HARNESS_CLASSES = 16_000  # hertz; they say nothing about it


def load_class(name: str) -> CausalModel | TextModel:
    """The model that `path/to/file.py:Class` names, for `setup` to load. Imports the file. Raises `OSError` for a
    missing file, `ValueError` for what cannot be served."""
    file, _, class_name = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(f"--model {name}: there is no file {path}.")
    found = _class_in(_imported(path), class_name, path)
    try:
        own = found()
    except Exception as error:
        raise ValueError(
            f"--model {name}: `{class_name}()` failed: {_told(error, path)}. It is called without arguments; load what "
            "is large in `setup`."
        ) from error
    return _adapted(own, name)


def _imported(path: Path) -> ModuleType:
    """The file as a module. It may import its neighbours; last, so that none of them hides an installed package."""
    module_name = f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None, "the registry sends names of .py files"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        hint = IMPORT_HINT if isinstance(error, ImportError) else ""
        raise ValueError(f"{path} cannot be imported: {_told(error, path)}{hint}") from error
    return module


IMPORT_HINT = (
    ". Its directory is searched, and those in PYTHONPATH. A relative import has no package here: write `from other "
    "import X`. The server's own names hide yours: api, audio, check, config, engine, errors, models, wire, worker."
)


def _told(error: Exception, path: Path) -> str:
    """The error, and the last line of the user's file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")


def _class_in(module: ModuleType, name: str, path: Path) -> type:
    found = getattr(module, name, None)
    if inspect.isclass(found):
        return found
    classes = [each.__name__ for each in vars(module).values() if _is_defined_in(module, each)]
    known = f"it defines {', '.join(classes)}" if classes else "it defines no class"
    raise ValueError(f"{path} has no class `{name}`: {known}. Name one as {path.name}:Class.")


def _is_defined_in(module: ModuleType, value: object) -> bool:
    return inspect.isclass(value) and value.__module__ == module.__name__


# -------------------------------------------------------------------------------------------------------------- shapes


def _adapted(own: Any, name: str) -> CausalModel | TextModel:
    """The user's object behind the contract. Raises `ValueError` for one of no known shape."""
    if isinstance(own, CausalModel | TextModel):
        return own
    if callable(getattr(own, "generate", None)):
        first = next(iter(inspect.signature(own.generate).parameters), None)
        return OneByOne(own) if first == "messages" else Batched(own)
    if callable(getattr(own, "prepare", None)):
        return Prepared(own)
    raise ValueError(
        f"--model {name}: the class has neither `generate(self, batch)`, to answer by a loop of its own, nor "
        "`prepare(self, messages)`, for the server to run its `module`, nor `generate(self, messages, audio_inputs)`; "
        "and it is no CausalModel or TextModel of models.base. Start from models/template.py."
    )


def _check_takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Whether it can be called so. Raises `ValueError`."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"`{function.__qualname__}{inspect.signature(function)}` cannot be called as the server does ({error}). "
            "See models/template.py."
        ) from None


def _set_up(own: Any, device: str, dtype: str) -> None:
    """Call the class's `setup`, if it has one, with what it takes."""
    setup = getattr(own, "setup", None)
    if setup is None:
        return
    options = {"dtype": dtype} if "dtype" in inspect.signature(setup).parameters else {}
    _check_takes(setup, device, **options)
    setup(device, **options)


def _capabilities(own: Any, batching: Batching, rate: int | None = None, why: str = "") -> Capabilities:
    """What the class says of itself. Raises `ValueError`."""
    rate, seconds = getattr(own, "sampling_rate", rate), getattr(own, "max_seconds", None)
    clips, long_audio = getattr(own, "max_clips", None), getattr(own, "long_audio", POLICIES[0])
    _check(own, "sampling_rate", isinstance(rate, int) and rate > 0, "hertz, such as 16_000")
    is_time = isinstance(seconds, int | float) and seconds >= MIN_WINDOW_S
    _check(
        own, "max_seconds", seconds is None or is_time, f"the seconds it hears at once, {MIN_WINDOW_S} or more, or None"
    )
    is_count = isinstance(clips, int) and clips >= 0
    _check(own, "max_clips", clips is None or is_count, "the clips it hears in a conversation, or None")
    _check(own, "long_audio", long_audio in POLICIES, f"one of {', '.join(POLICIES)}")
    assert rate is not None, "checked above"
    return Capabilities(rate, seconds, long_audio, batching, clips, why=why)


def _check(own: Any, attribute: str, is_right: bool, what: str) -> None:
    if not is_right:
        value = f"{getattr(own, attribute)!r:.100}" if hasattr(own, attribute) else "missing"
        raise ValueError(f"`{type(own).__name__}.{attribute}` is {value}. It should be {what}.")


# ---------------------------------------------------------------------------------------------------- it has `generate`


class _Generating(TextModel):
    """An object with a `generate`."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._reader = AnswerReader()

    def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
        """A class that is asked one question may answer with a plain string."""
        asks = [Ask.of(question) for question in questions]
        with closing(self._reader.pieces(self._call(asks), [""] * len(asks))) as pieces:
            for piece in pieces:
                yield [piece] if isinstance(piece, str) and len(asks) == 1 else piece

    def _call(self, asks: list[Ask]) -> Any:
        raise NotImplementedError

    def count_tokens(self, text: str) -> int:
        count = getattr(self._own, "count_tokens", super().count_tokens)
        return int(count(text))


class Batched(_Generating):
    """`generate(batch)`, as many asks at once as its `max_batch_size` says; one, where it says nothing. Where it has a
    `group(ask)`, only asks of equal groups come together."""

    def __init__(self, own: Any) -> None:
        super().__init__(own)
        _check_takes(own.generate, [])

    def setup(self, device: str, dtype: str) -> None:
        _set_up(self._own, device, dtype)
        self.max_batch_size = getattr(self._own, "max_batch_size", 1)
        is_size = isinstance(self.max_batch_size, int) and self.max_batch_size >= 1
        _check(self._own, "max_batch_size", is_size, "a number, 1 or more")
        self.capabilities = _capabilities(self._own, "serial" if self.max_batch_size == 1 else "dynamic")

    def _call(self, asks: list[Ask]) -> Any:
        return self._own.generate(asks)

    def group(self, question: Question) -> Hashable:
        own = getattr(self._own, "group", None)
        key: Hashable = None if own is None else own(Ask.of(question))
        return key


class OneByOne(_Generating):
    """`generate(messages, audio_inputs)`. `audio_inputs` is a list of float32 arrays, not of addresses; parameters with
    the names of an `Ask`'s settings get what the client has set."""

    def __init__(self, own: Any) -> None:
        super().__init__(own)
        names = inspect.signature(own.generate).parameters
        self._takes_audio = "audio_inputs" in names
        self._settings = [name for name in SETTINGS if name in names]
        _check_takes(own.generate, [], **({"audio_inputs": []} if self._takes_audio else {}))

    def setup(self, device: str, dtype: str) -> None:
        _set_up(self._own, device, dtype)
        why = "its `generate(messages, ...)` takes one request at a time"
        self.capabilities = _capabilities(self._own, "serial", RATE_OF_HARNESS_CLASSES, why)

    def _call(self, asks: list[Ask]) -> Any:
        (ask,) = asks
        given = {name: value for name in self._settings if (value := getattr(ask, name)) is not None}
        if self._takes_audio:
            given["audio_inputs"] = ask.audios
        return self._own.generate([as_clients_write(message) for message in ask.messages], **given)


# ----------------------------------------------------------------------------------------------------- it has `prepare`


class Prepared(CausalModel):
    """`prepare(messages)`, which makes the inputs of its `module`, a transformers module that the engine runs."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._lock = threading.Lock()  # processors and their tokenizers bear one thread at a time
        _check_takes(own.prepare, [])

    def setup(self, device: str, dtype: str) -> None:
        own = self._own
        _set_up(own, device, dtype)
        _check(own, "module", isinstance(getattr(own, "module", None), torch.nn.Module), "a module, set in `setup`")
        self.module = module = own.module.eval()
        self.tokenizer = self._backend()
        self.placeholder_ids = tuple(getattr(own, "placeholder_ids", ids_in(module.config, names=AUDIO_IDS)))
        self.end_ids = frozenset(own.end_ids if hasattr(own, "end_ids") else end_ids_of(module, None))
        generation: Any = getattr(module, "generation_config", None)
        self.banned_ids = tuple(getattr(generation, "suppress_tokens", None) or ())
        self.banned_first_ids = tuple(getattr(generation, "begin_suppress_tokens", None) or ())
        self.defaults = Defaults(temperature=getattr(own, "temperature", 0.0))
        self.capabilities = _capabilities(own, "continuous")

    def _backend(self) -> Tokenizer:
        given = getattr(self._own, "tokenizer", None)
        tokenizer = getattr(given, "backend_tokenizer", given)
        if isinstance(tokenizer, Tokenizer):
            return tokenizer
        raise ValueError(
            f"`{type(self._own).__name__}.tokenizer` should be set in `setup`: a `tokenizers.Tokenizer`, or a fast "
            "tokenizer of transformers, which holds one."
        )

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        conversations = one_window_each(conversation)
        lead = " " if len(conversations) > 1 else None
        return [self._prompt(self._inputs(each), lead) for each in conversations]

    def _inputs(self, conversation: Conversation) -> dict[str, torch.Tensor]:
        with self._lock, torch.no_grad():
            inputs = dict(self._own.prepare(messages_of(conversation)))
        for name, value in inputs.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"`prepare` gave `{name}` as {type(value).__name__}, not as a tensor")
        module: Any = self.module
        if module.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = torch.tensor([[module.generation_config.decoder_start_token_id]])
        return {name: tensor.detach().cpu() for name, tensor in inputs.items()}

    def _prompt(self, inputs: dict[str, torch.Tensor], lead: str | None) -> Prompt:
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        if ids is None or ids.dim() != 2 or len(ids) != 1:
            raise TypeError("`prepare` gave no `input_ids` of shape (1, tokens)")
        return Prompt(
            inputs=inputs,
            num_tokens=ids.shape[1],
            num_audio_tokens=int(torch.isin(ids, torch.tensor(self.placeholder_ids)).sum()),
            max_new_tokens=window_of(self.module.config) - ids.shape[1],
            lead=lead,
        )
