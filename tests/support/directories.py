"""Tiny random models saved as Hugging Face directories, with processors and chat templates, which load offline.

Where `tiny_models` has the module, a copy of it is saved, with a tokenizer whose special tokens have that file's ids.
Nothing here loads a directory again; that is what tests are for.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

import models  # noqa: F401 -- brings the guard for torchaudio, which transformers imports later, on use
from tests.support.tiny_models import (
    AUDIO,
    BEGIN,
    BEGIN_AUDIO,
    END,
    FIRST_BYTE,
    LLAMAS_NAMES,
    MEL_BINS,
    PAD,
    SAMPLING_RATE,
    SPECIAL,
    UNUSED,
    VOCABULARY,
    build,
    sweep,
)

CORPUS = Path(__file__).parents[2] / "LICENSE"  # from which tokenizers learn what bytes to merge

CHATML = r"""{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\n' }}CONTENT{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
BLOCKS = """
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {{- 'AUDIO' if part['type'] == 'audio' else part['text'] }}
        {%- endfor %}
    {%- endif %}
"""
STRING = "{{- '' + message['content'] }}"  # as older Granites': a list of blocks is a `TypeError`

# Mistral's special tokens: the first ids, and three that audio needs. The others up to 40 are called <SPECIAL_n>.
MISTRALS_FIRST_TOKENS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
MISTRALS_TOKENS = {**dict(enumerate(MISTRALS_FIRST_TOKENS)), 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"}
NUM_MISTRALS_TOKENS = 40

WHISPERS_TOKENS = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
WHISPERS_TIMESTAMPS = tuple(f"<|{i / 50:.2f}|>" for i in range(51))  # the first second of thirty

# What the matrices of recognisers are multiplied by, and how far their blank token is ahead, in standard deviations.
RECOGNISERS_GAIN = 8.0
BLANKS_LEAD = 2.5

PARAKEETS_TOKENS = ("<pad>", "<blank>", "<unk>")
PARAKEETS_ENCODER = {**LLAMAS_NAMES, "subsampling_conv_channels": 8}

Built = tuple[PreTrainedModel, Any]  # the model, and its processor or tokenizer


def save(name: str, root: Path) -> Path:
    """The new directory `root/name` with the model of this name, the same in each run."""
    directory = root / name
    directory.mkdir(parents=True)
    module, processor = _BUILDERS[name](directory)
    module.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def saved(name: str, root: Path) -> Path:
    """The same directory, saved at the first call."""
    directory = root / name
    return directory if directory.is_dir() else save(name, root)


def _copy(name: str, **ids: int) -> PreTrainedModel:
    """The module of `tiny_models`, with the special tokens that are given instead of that file's."""
    module = copy.deepcopy(build(name).module)
    for config in (module.config, module.config.get_text_config(decoder=True)):
        config.update(ids)
    module.generation_config = GenerationConfig(**SPECIAL | ids)
    return module


def _chatml(audio: str) -> str:
    """A chat template for lists of blocks and for strings."""
    return CHATML.replace("CONTENT", BLOCKS.replace("AUDIO", audio))


def _bpe(special: Sequence[str], size: int = VOCABULARY) -> Tokenizer:
    """Ids from 0: the special tokens, the 256 bytes, and what they merge to, `size` in all."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS.read_text()], trainer)
    assert tokenizer.get_vocab_size() == size
    return tokenizer


def _tokenizer(
    audio: str = "<|audio|>",
    begin_audio: str = "<|audio_bos|>",
    end_audio: str = "<|audio_eos|>",
    **options: Any,
) -> transformers.PreTrainedTokenizerFast:
    """As Qwen's."""
    names = {PAD: "<|endoftext|>", END: "<|im_end|>", BEGIN: "<|im_start|>"}
    names |= {AUDIO: audio, BEGIN_AUDIO: begin_audio, UNUSED: end_audio}
    tokenizer = _bpe([names.get(id_, f"<|unused_{id_}|>") for id_ in range(FIRST_BYTE)])
    ends = {"pad_token": names[PAD], "eos_token": names[END], "bos_token": names[BEGIN]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends, **options)


def _mels() -> transformers.WhisperFeatureExtractor:
    return transformers.WhisperFeatureExtractor(feature_size=MEL_BINS)


def qwen2_audio(_: Path) -> Built:
    """Its processor brings a chat template, which numbers the clips and adds a system message."""
    return _copy("qwen2_audio"), transformers.Qwen2AudioProcessor(_mels(), _tokenizer("<|AUDIO|>"))


def voxtral(directory: Path) -> Built:
    from transformers.tokenization_mistral_common import MistralCommonBackend  # imports all of mistral-common

    path = directory / "tekken.json"
    path.write_text(json.dumps(_tekken()))
    ids = {name: id_ for id_, name in MISTRALS_TOKENS.items()}
    module = _copy("voxtral", bos_token_id=ids["<s>"], eos_token_id=ids["</s>"], pad_token_id=ids["<pad>"])
    module.config.audio_token_id = ids["[AUDIO]"]
    return module, transformers.VoxtralProcessor(_mels(), MistralCommonBackend(tokenizer_path=path))


def _tekken() -> dict[str, Any]:
    """Mistral's file format. Its ranks are the order of the merges, so they can be those of `_bpe`."""
    size = VOCABULARY - NUM_MISTRALS_TOKENS
    bpe = _bpe([], size)
    merged = [bpe.decode([id_]).encode() for id_ in range(256, size)]
    tokens = [bytes([byte]) for byte in range(256)] + merged
    config = {"pattern": r"\S+|\s+", "num_vocab_tokens": size, "version": "v7"}
    return {
        "config": {**config, "default_vocab_size": VOCABULARY, "default_num_special_tokens": NUM_MISTRALS_TOKENS},
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": id_, "token_str": MISTRALS_TOKENS.get(id_, f"<SPECIAL_{id_}>"), "is_control": True}
            for id_ in range(NUM_MISTRALS_TOKENS)
        ],
        "audio": {
            "sampling_rate": SAMPLING_RATE,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": MEL_BINS, "window_size": 400, "hop_length": 160},
            "chunk_length_s": 30.0,
        },
    }


def granite_speech(_: Path) -> Built:
    return _granite(_chatml("<|audio|>"))


def granite_string_template(_: Path) -> Built:
    return _granite(CHATML.replace("CONTENT", STRING))


def _granite(chat_template: str) -> Built:
    extractor = transformers.GraniteSpeechFeatureExtractor()
    processor = transformers.GraniteSpeechProcessor(extractor, _tokenizer("<|audio|>"), chat_template=chat_template)
    return _copy("granite_speech"), processor


def audioflamingo3(_: Path) -> Built:
    template = _chatml("<sound>")
    processor = transformers.AudioFlamingo3Processor(_mels(), _tokenizer("<sound>"), chat_template=template)
    return _copy("audioflamingo3"), processor


def glmasr(_: Path) -> Built:
    """Here `<|pad|>` is not for padding."""
    template = _chatml("<|begin_of_audio|><|pad|><|end_of_audio|>")
    tokenizer = _tokenizer("<|pad|>", "<|begin_of_audio|>", "<|end_of_audio|>")
    return _copy("glmasr"), transformers.GlmAsrProcessor(_mels(), tokenizer, chat_template=template)


def qwen3_asr(_: Path) -> Built:
    """Its processor asks the tokenizer for the names of the tokens about audio. Its attention gets the gain that the
    normalised queries lack: without, all long clips have the same answer."""
    names = ("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
    roles = dict(zip(("audio_token", "audio_bos_token", "audio_eos_token"), names, strict=True))
    processor = transformers.Qwen3ASRProcessor(
        transformers.Qwen3ASRFeatureExtractor(),
        _tokenizer(*names, extra_special_tokens=roles),
        chat_template=_chatml("<|audio_start|><|audio_pad|><|audio_end|>"),
    )
    module = _copy("qwen3_asr")
    for layer in module.get_decoder().layers:
        layer.self_attn.q_norm.weight.data *= 4
    return module, processor


def qwen2_text(_: Path) -> Built:
    """It takes no audio, and its processor is a tokenizer."""
    return _copy("qwen2_text"), _tokenizer(chat_template=_chatml(""))


def whisper(_: Path) -> Built:
    """As the multilingual ones: ids of special tokens follow those of text, and those of timestamps are last."""
    tokenizer = _whispers_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in WHISPERS_TOKENS}
    end, start, *_ = ids.values()
    specials = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    module = _copy("whisper", **specials)
    kept = ("<|endoftext|>", "<|en|>", "<|de|>", "<|notimestamps|>")
    module.generation_config = GenerationConfig(
        **specials,
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|de|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("translate", "transcribe")},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_length=module.config.max_target_positions,
        return_timestamps=False,
        suppress_tokens=[id_ for name, id_ in ids.items() if name not in kept],
        begin_suppress_tokens=[*tokenizer(" ", add_special_tokens=False).input_ids, end],
    )
    return module, transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer)


def _whispers_tokenizer() -> transformers.WhisperTokenizer:
    size = VOCABULARY - len(WHISPERS_TOKENS) - len(WHISPERS_TIMESTAMPS)
    bpe = json.loads(_bpe([], size).to_str())["model"]
    merges = [tuple(pair) for pair in bpe["merges"]]
    tokenizer = transformers.WhisperTokenizer(vocab=bpe["vocab"], merges=merges)
    tokenizer.add_special_tokens({"extra_special_tokens": list(WHISPERS_TOKENS)})
    tokenizer.add_tokens(list(WHISPERS_TIMESTAMPS))
    return tokenizer


def moonshine(_: Path) -> Built:
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    module = _copy("moonshine", decoder_start_token_id=BEGIN)
    return module, transformers.Wav2Vec2Processor(extractor, _tokenizer())


def wav2vec2(directory: Path) -> Built:
    names = ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'")
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({name: id_ for id_, name in enumerate(names)}))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    processor = transformers.Wav2Vec2Processor(extractor, transformers.Wav2Vec2CTCTokenizer(vocabulary))
    encoder = {**LLAMAS_NAMES, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    config = transformers.Wav2Vec2Config(vocab_size=len(names), pad_token_id=PAD, **encoder)
    module = _recogniser(transformers.Wav2Vec2ForCTC, config)
    _even_out(module.lm_head.bias, module(**_heard(processor)).logits, blank=PAD)
    return module, processor


def _recogniser(architecture: type[PreTrainedModel], config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """With weights that are the same in each run."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        module = architecture(config)
        for weight in module.parameters():
            if weight.dim() >= 2:
                weight.mul_(RECOGNISERS_GAIN)
    return module.eval().requires_grad_(False)


def _heard(processor: Any) -> dict[str, Tensor]:
    clip = sweep(4, start_hz=100, stop_hz=4000)
    return processor(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt")


def _even_out(bias: Tensor, logits: Tensor, blank: int) -> None:
    """Changes the bias that `logits`, shape (..., tokens), were computed with: no token is likelier than others on
    average, but blank. Else a few tokens take all frames."""
    logits = logits.flatten(0, -2)
    bias -= logits.mean(0)
    bias[blank] += BLANKS_LEAD * logits.std(0).mean()


def parakeet_ctc(_: Path) -> Built:
    """Its padding is blank."""
    processor = _parakeets_processor("ctc")
    config = transformers.ParakeetCTCConfig(vocab_size=VOCABULARY, pad_token_id=PAD, encoder_config=PARAKEETS_ENCODER)
    module = _recogniser(transformers.ParakeetForCTC, config)
    _even_out(module.ctc_head.bias, module(**_heard(processor)).logits, blank=PAD)
    return module, processor


def parakeet_rnnt(_: Path) -> Built:
    return _transducer("rnnt", transformers.ParakeetForRNNT, transformers.ParakeetRNNTConfig)


def parakeet_tdt(_: Path) -> Built:
    """`generate` takes the likeliest of all logits, and those of durations are among them: they must be low."""
    module, processor = _transducer("tdt", transformers.ParakeetForTDT, transformers.ParakeetTDTConfig)
    module.joint.head.bias[VOCABULARY:] -= 20
    return module, processor


def _transducer(kind: str, architecture: type[PreTrainedModel], config: type[transformers.PreTrainedConfig]) -> Built:
    processor = _parakeets_processor(kind)
    blank = processor.blank_token_id
    decoder = {"decoder_hidden_size": 64, "num_decoder_layers": 1, "vocab_size": VOCABULARY}
    ids = {"blank_token_id": blank, "pad_token_id": PAD}
    module = _recogniser(architecture, config(encoder_config=PARAKEETS_ENCODER, **decoder, **ids))
    some_tokens = torch.arange(0, VOCABULARY, 16)[None]
    logits = module(**_heard(processor), decoder_input_ids=some_tokens).logits
    _even_out(module.joint.head.bias, logits, blank=blank)
    module.generation_config = GenerationConfig(decoder_start_token_id=blank, pad_token_id=PAD)
    return module, processor


def _parakeets_processor(kind: str) -> transformers.ParakeetProcessor:
    tokenizer = transformers.ParakeetTokenizer(
        tokenizer_object=_bpe(PARAKEETS_TOKENS), pad_token="<pad>", unk_token="<unk>"
    )
    extractor = transformers.ParakeetFeatureExtractor()
    return transformers.ParakeetProcessor(extractor, tokenizer, blank_token="<blank>", decoder_type=kind)


_CHAT = (qwen2_audio, voxtral, granite_speech, audioflamingo3, glmasr, qwen3_asr)
_STRING_TEMPLATES = (granite_string_template,)
_TEXT = (qwen2_text,)
_ENCODER_DECODERS = (whisper, moonshine)
_CTC = (wav2vec2, parakeet_ctc)
_TRANSDUCERS = (parakeet_rnnt, parakeet_tdt)
_ALL = (*_CHAT, *_STRING_TEMPLATES, *_TEXT, *_ENCODER_DECODERS, *_CTC, *_TRANSDUCERS)
_BUILDERS: dict[str, Callable[[Path], Built]] = {builder.__name__: builder for builder in _ALL}
CHAT, STRING_TEMPLATES, TEXT, ENCODER_DECODERS, CTC, TRANSDUCERS = (
    tuple(builder.__name__ for builder in builders)
    for builders in (_CHAT, _STRING_TEMPLATES, _TEXT, _ENCODER_DECODERS, _CTC, _TRANSDUCERS)
)
