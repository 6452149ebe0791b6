"""Any transformers checkpoint that hears or reads, and writes text, by directory or hub id: what kind it is, and how
its module and processor are loaded.

    chat, or text only     hf_chat.py    a processor's chat template, a decoder: continuous batching
    encoder-decoder ASR    hf_asr.py     Whisper, Moonshine, ...: continuous batching
    CTC, RNN-T, TDT        hf_ctc.py     one forward for clips of one length
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from models.base import CausalModel, Defaults, TextModel
from models.loading import LoadOptions, torch_dtype

AUTO_CLASSES = (
    "AutoModelForMultimodalLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForCTC",
    "AutoModelForRNNT",
    "AutoModelForTDT",
    "AutoModelForSeq2SeqLM",
    "AutoModelForCausalLM",
)
# Models that also speak are wrapped around the part that hears and writes, which is what is served.
THINKERS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
CTC_ENDINGS = ("ForCTC", "ForRNNT", "ForTDT")
AUDIO_INPUTS = ("input_features", "input_values")  # what an encoder-decoder hears
AUDIO_IDS = ("audio_token_id", "audio_token_index")  # what configurations call the placeholder of audio
NO_LIMIT = 1 << 30  # tokens, where a configuration names no window
# Where int8 costs more than it saves: the logits, and what turns audio into embeddings.
KEPT_WHOLE = ("lm_head", "proj_out", "audio_tower", "audio_encoder", "multi_modal_projector", "encoder", "projector")
TRAINING_ONLY = ("masked_spec_embed",)  # weights that checkpoints of CTC models lack and no answer needs


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A directory or hub id, its configuration read; the weights are loaded on demand."""

    name: str
    options: LoadOptions
    config: Any
    architecture: Any

    def module(self, device: str, dtype: str) -> Any:
        """The module on its device, for answering. Raises `OSError` and `ValueError`."""
        options = self.options
        wanted = {
            "attn_implementation": options.attn_implementation,
            "device_map": options.device_map,
            "quantization_config": _quantization(options.quantization),
        }
        transformers.logging.disable_progress_bar()
        with load_errors(self.name):
            module, loaded = self.architecture.from_pretrained(
                self.name,
                dtype=torch_dtype(device, dtype),
                output_loading_info=True,
                **{key: value for key, value in wanted.items() if value is not None},
                **_where(self.name, options),
            )
            self._check_complete(loaded["missing_keys"])
            if options.quantization == "int8":
                _check_rounded(module)
            if options.adapter is not None:
                module = _adapted(module, options)
            return (module if options.device_map else module.to(device)).eval()

    def _check_complete(self, missing: Iterable[str]) -> None:
        """Weights that are not in the files are random, and would answer something. Raises `ValueError`."""
        missing = sorted(name for name in missing if not name.endswith(TRAINING_ONLY))
        if missing:
            raise ValueError(
                f"{len(missing)} weights of {self.architecture.__name__} are not in its files, {missing[0]} among "
                "them: it was saved by another class, or the files do not fit the configuration."
            )

    def processor(self, class_name: str = "AutoProcessor") -> Any:
        """The checkpoint's processor; its tokenizer where it has nothing else. Raises `OSError` and `ValueError`."""
        with load_errors(self.name):
            return getattr(transformers, class_name).from_pretrained(self.name, **_where(self.name, self.options))


def load_checkpoint(name: str, options: LoadOptions) -> CausalModel | TextModel:
    """The model in a directory or on the hub, for `setup` to load. Reads its configuration. Raises `OSError` for one
    that cannot be found, `ValueError` for one that cannot be served."""
    from models.hf_asr import HuggingFaceAsr  # noqa: PLC0415 -- they import this file
    from models.hf_chat import HuggingFaceChat  # noqa: PLC0415
    from models.hf_ctc import HuggingFaceCtc  # noqa: PLC0415

    _check_name(name)
    with load_errors(name):
        config = transformers.AutoConfig.from_pretrained(name, **_where(name, options))
    architecture = _architecture(config, options.trust_remote_code)
    checkpoint = Checkpoint(name, options, config, architecture)
    if architecture.__name__.endswith(CTC_ENDINGS):
        return HuggingFaceCtc(checkpoint)
    if getattr(architecture, "main_input_name", "") in AUDIO_INPUTS:
        return HuggingFaceAsr(checkpoint)
    if config.is_encoder_decoder:
        raise ValueError(
            f"--model {name}: {architecture.__name__} reads text with an encoder; of encoder-decoders, those "
            "are served that hear."
        )
    return HuggingFaceChat(checkpoint)


def _check_name(name: str) -> None:
    """Paths that are none are told at once: the hub's answer to them would be a riddle."""
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"The directory {name} holds no config.json, so it is no transformers checkpoint.")
    elif path.suffix == ".py":
        raise FileNotFoundError(f"--model {name}: name the class in it, as in {name}:MyModel.")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"--model {name}: there is no such directory.")


def _where(name: str, options: LoadOptions) -> dict[str, Any]:
    """Where transformers looks. `trust_remote_code` is always said: unsaid, it would ask at the terminal."""
    where = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
    if Path(name).is_dir():
        where["local_files_only"] = True
    return {key: value for key, value in where.items() if value is not None}


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Whatever transformers raises inside as a sentence of what was tried and what to do."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"--model {name}: a package that it needs cannot be imported ({_first_line(error)}). Some processors need "
            "torchvision: install the build that fits your torch. A newer checkpoint may need a newer transformers."
        ) from error
    except OSError as error:
        tried = "read from this directory" if Path(name).is_dir() else "found here as a directory, nor on the hub"
        raise OSError(
            f"--model {name} could not be {tried}: {_first_line(error)} (Built in: whisper-tiny.en, fake. A class of "
            "your own: path/to/file.py:Class.)"
        ) from error
    except Exception as error:  # whatever a checkpoint's files, or code of its own, may raise
        hint = " Pass --trust-remote-code if you trust it." if "trust_remote_code" in str(error) else ""
        raise ValueError(f"--model {name} cannot be loaded: {_first_line(error)}{hint}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _architecture(config: Any, trust_remote_code: bool) -> Any:
    """The class that answers. No single auto class knows all, so the configuration's own word goes first. Raises
    `ValueError`."""
    if thinker := THINKERS.get(config.model_type):
        return getattr(transformers, thinker)
    remote = getattr(config, "auto_map", None) or {}
    if trust_remote_code and (known := [name for name in (*AUTO_CLASSES, "AutoModel") if name in remote]):
        return getattr(transformers, known[0])
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None and (name.endswith(CTC_ENDINGS) or _writes(found)):
            return found
    for name in AUTO_CLASSES:
        mapping = getattr(transformers, name)._model_mapping
        if type(config) in mapping:
            return mapping[type(config)]
    hint = " It brings code of its own: pass --trust-remote-code to run it." if remote else ""
    raise ValueError(
        f"transformers {transformers.__version__} has no class for a `{config.model_type}` checkpoint "
        f"({', '.join(config.architectures or ['no architecture named'])}) that writes text.{hint}"
    )


def _writes(architecture: Any) -> bool:
    can_generate = getattr(architecture, "can_generate", None)
    return can_generate is not None and bool(can_generate())


def _quantization(choice: str | None) -> Any:
    """Raises `ValueError`."""
    if choice is None:
        return None
    if choice == "int8":
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415 -- rarely wanted

        kept = [rf"(?:.*\.)?{name}" for name in KEPT_WHOLE]
        return transformers.TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    try:
        given = json.loads(choice)
    except json.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(f"--quantization {choice}: int8, or the JSON of a transformers quantization_config.")
    return given


def _check_rounded(module: Any) -> None:
    if not any("int8" in type(weight).__name__.lower() for weight in module.parameters()):
        raise ValueError("--quantization int8 rounds a decoder's matrices, and this model has none of them.")


def _adapted(module: Any, options: LoadOptions) -> Any:
    """The module with the adapter's weights added to its own."""
    from peft import PeftModel  # noqa: PLC0415 -- rarely wanted

    assert options.adapter is not None, "asked for"
    if options.quantization is not None:
        raise ValueError("--adapter is merged into the weights, which --quantization has rounded. Use one of them.")
    return PeftModel.from_pretrained(module, options.adapter).merge_and_unload()


# ------------------------------------------------------------------------------- what configurations say, for all kinds


def defaults_of(generation_config: Any) -> Defaults:
    """How the checkpoint's own `generate` samples: greedily unless it says `do_sample`."""
    penalty = getattr(generation_config, "repetition_penalty", None) or 1.0
    if not getattr(generation_config, "do_sample", None):
        return Defaults(temperature=0.0, repetition_penalty=penalty)

    def given(name: str, otherwise: Any) -> Any:
        value = getattr(generation_config, name, None)
        return otherwise if value is None else value

    # 50 is what transformers' own sampling takes where nothing is said (GenerationConfig, `top_k`).
    return Defaults(given("temperature", 1.0), given("top_p", 1.0), given("top_k", 50), penalty)


def end_ids_of(module: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer. Raises `ValueError` where there is none."""
    text = module.config.get_text_config(decoder=True)
    for source in (module.generation_config, module.config, text, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        ids = ids if isinstance(ids, list | tuple) else [ids]
        if known := frozenset(id_ for id_ in ids if id_ is not None and id_ < text.vocab_size):
            return known
    raise ValueError("The checkpoint names no token that ends an answer (`eos_token_id` in generation_config.json).")


def ids_in(*sources: Any, names: tuple[str, ...]) -> tuple[int, ...]:
    """The token ids that any of the sources has under one of the names."""
    found = {getattr(source, name, None) for source in sources for name in names}
    return tuple(sorted(id_ for id_ in found if isinstance(id_, int) and id_ >= 0))


def window_of(config: Any) -> int:
    """The decoder's positions, prompt and answer together."""
    text = config.get_text_config(decoder=True)
    names = ("max_target_positions", "max_position_embeddings")
    return next((int(size) for name in names if (size := getattr(text, name, None))), NO_LIMIT)


def tensors(features: Mapping[str, Any], module: Any) -> dict[str, torch.Tensor]:
    """What a processor made, without what the module does not take; all of it where the module only says `**kwargs`."""
    found = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    takes = inspect.signature(module.forward).parameters
    return {name: value for name, value in found.items() if name in takes} or found
