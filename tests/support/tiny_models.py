"""Tiny models with random weights: transformers' own classes of the kinds that we serve, built in memory in a moment.

Their answers mean nothing but depend on the audio and the text, so two ways to compute them can be compared. Features
come from the models' real feature extractors. A byte of text is a token; there are no tokenizers and no chat templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

import models  # noqa: F401 -- brings the guard for torchaudio, which transformers imports later, on use

SAMPLING_RATE = 16_000
MEL_BINS = 128
WINDOW_S = 30
WINDOW_FRAMES = WINDOW_S * 100

# One vocabulary for all: special tokens, then a token for each byte.
PAD, END, BEGIN, BEGIN_AUDIO, AUDIO, IMAGE, VIDEO, UNUSED = range(8)
SPECIAL = {"pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
FIRST_BYTE = 16
VOCABULARY = 512

ATTENTION = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, **ATTENTION, **SPECIAL}
# An audio encoder, in the two ways in which configurations name things.
BARTS_NAMES = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
LLAMAS_NAMES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}

# What random matrices are multiplied by: as they come they are so small that all prompts have the same answer, and too
# large they blow rounding up. Gemma multiplies its embeddings itself, and uses them again for the logits.
GAIN = 12.0
GAINS = {"gemma4": 4.0, "whisper": 16.0}

Waveform = npt.NDArray[np.float32]  # mono, 16 kHz; at most 30 s, which is where some extractors cut
Inputs = dict[str, Tensor]
MakeInputs = Callable[[Sequence[Waveform], str], Inputs]
Built = tuple[PreTrainedModel, MakeInputs]


@dataclass(frozen=True)
class TinyModel:
    """A module and what feeds it.

    `make_inputs` returns the module's keyword arguments for a batch of one. A chat model's prompt is the clips and then
    the text, and both may be missing; an encoder-decoder hears exactly one clip, and the text begins its answer.
    `audio_token_ids`: the placeholders of audio, images and videos, which no answer may hold.
    """

    name: str
    module: PreTrainedModel
    audio_token_ids: tuple[int, ...]
    make_inputs: MakeInputs


@cache
def build(name: str) -> TinyModel:
    """The model of this name, its weights the same in each run. Tests share it: leave it as it is."""
    placeholders = (AUDIO, IMAGE, VIDEO) if name in CHAT_MODELS else ()
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        module, make_inputs = _BUILDERS[name]()
        for weight in module.parameters():
            if weight.dim() >= 2 and weight.requires_grad:  # the others are sinusoids
                weight.mul_(GAINS.get(name, GAIN))
    module.generation_config = GenerationConfig(
        **SPECIAL, decoder_start_token_id=BEGIN, suppress_tokens=list(placeholders) or None
    )
    return TinyModel(name, module.eval(), placeholders, make_inputs)


def greedy(model: TinyModel, inputs: Inputs, max_new_tokens: int) -> list[int]:
    """The new tokens of transformers' own greedy loop. Not the module's `generate`: Whisper's does far more."""
    prompt = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    ids = GenerationMixin.generate(model.module, **inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return ids[0, prompt.shape[1] :].tolist()


def sweep(duration_s: float, start_hz: float, stop_hz: float) -> Waveform:
    """A tone that glides from one frequency to the other, and a little noise, the same in each run."""
    hz = np.linspace(start_hz, stop_hz, round(duration_s * SAMPLING_RATE))
    tone = np.sin(2 * np.pi * np.cumsum(hz) / SAMPLING_RATE)
    noise = np.random.default_rng(0).standard_normal(len(hz))
    return (0.3 * tone + 0.01 * noise).astype(np.float32)


def _tokens(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]


# Clips as a module takes them, and how many tokens of the prompt stand for each.
Heard = tuple[Inputs, Sequence[int]]
Listen = Callable[[Sequence[Waveform]], Heard]


def _chat_inputs(listen: Listen, clips: Sequence[Waveform], text: str) -> Inputs:
    features, counts = listen(clips) if clips else ({}, ())
    ids = [BEGIN]
    for num_tokens in counts:
        ids += [BEGIN_AUDIO] + [AUDIO] * num_tokens
    input_ids = torch.tensor([ids + _tokens(text)])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **features}


def _typed_chat_inputs(listen: Listen, clips: Sequence[Waveform], text: str) -> Inputs:
    inputs = _chat_inputs(listen, clips, text)
    return {**inputs, "mm_token_type_ids": 3 * (inputs["input_ids"] == AUDIO)}  # 3 for audio, 0 for text


def _listen_to_mels(mask_name: str, count_tokens: Callable[[Tensor], Tensor]) -> Listen:
    """Whisper's front end: each clip padded to 30 s, and a mask. `count_tokens` makes tokens of frames."""
    extract = transformers.WhisperFeatureExtractor(feature_size=MEL_BINS)

    def listen(clips: Sequence[Waveform]) -> Heard:
        mels = extract(list(clips), sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt")
        features = {"input_features": mels.input_features, mask_name: mels.attention_mask}
        return features, count_tokens(mels.attention_mask.sum(-1)).tolist()

    return listen


def _convolved_and_pooled(frames: Tensor) -> Tensor:
    """As in the processors of Qwen2-Audio, Qwen2.5-Omni and Audio Flamingo 3."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def _convolved_and_merged(frames: Tensor) -> Tensor:
    """As in `GlmAsrProcessor._get_audio_token_length`."""
    return ((frames - 1) // 2 + 1 - 4) // 4 + 1


def qwen2_audio() -> Built:
    config = transformers.Qwen2AudioConfig(
        audio_token_index=AUDIO,
        audio_config={"model_type": "qwen2_audio_encoder", "num_mel_bins": MEL_BINS, **BARTS_NAMES},
        text_config={"model_type": "qwen2", **TEXT},
    )
    listen = _listen_to_mels("feature_attention_mask", _convolved_and_pooled)
    return transformers.Qwen2AudioForConditionalGeneration(config), partial(_chat_inputs, listen)


def voxtral() -> Built:
    """It hears whole windows of 30 s, silence and all, without a mask. Its encoder halves the frames, its projector
    makes one of four."""
    config = transformers.VoxtralConfig(
        audio_token_id=AUDIO,
        audio_config={"model_type": "voxtral_encoder", "num_key_value_heads": 2, "head_dim": 16, **LLAMAS_NAMES},
        text_config={"model_type": "llama", "head_dim": 16, **TEXT},
    )
    extract = transformers.WhisperFeatureExtractor(feature_size=MEL_BINS)
    padding = {"padding": True, "truncation": False, "pad_to_multiple_of": WINDOW_S * SAMPLING_RATE}

    def listen(clips: Sequence[Waveform]) -> Heard:  # as `VoxtralProcessor._retrieve_input_features`
        mels = [extract(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt", **padding) for clip in clips]
        windows = [mel.input_features[0].unflatten(-1, (-1, WINDOW_FRAMES)).transpose(0, 1) for mel in mels]
        return {"input_features": torch.cat(windows)}, [len(each) * WINDOW_FRAMES // 8 for each in windows]

    return transformers.VoxtralForConditionalGeneration(config), partial(_chat_inputs, listen)


def granite_speech() -> Built:
    encoder = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "dim_head": 16, "output_dim": 8}
    config = transformers.GraniteSpeechConfig(
        audio_token_index=AUDIO,
        has_lora_adapter=False,
        encoder_config={"context_size": 50, "max_pos_emb": 64, **encoder},
        projector_config={"model_type": "blip_2_qformer", "encoder_hidden_size": 32, **LLAMAS_NAMES},
        text_config={"model_type": "granite", **TEXT},
    )
    extract = transformers.GraniteSpeechFeatureExtractor()

    def listen(clips: Sequence[Waveform]) -> Heard:
        features = dict(extract(list(clips)))
        return features, features.pop("audio_embed_sizes")

    return transformers.GraniteSpeechForConditionalGeneration(config), partial(_chat_inputs, listen)


def audioflamingo3() -> Built:
    config = transformers.AudioFlamingo3Config(
        audio_token_id=AUDIO,
        audio_config={"model_type": "audioflamingo3_encoder", **LLAMAS_NAMES},
        text_config={"model_type": "qwen2", **TEXT},
    )
    listen = _listen_to_mels("input_features_mask", _convolved_and_pooled)
    return transformers.AudioFlamingo3ForConditionalGeneration(config), partial(_chat_inputs, listen)


def glmasr() -> Built:
    config = transformers.GlmAsrConfig(
        audio_token_id=AUDIO,
        audio_config={"model_type": "glmasr_encoder", "num_key_value_heads": 2, "head_dim": 16, **LLAMAS_NAMES},
        text_config={"model_type": "llama", **TEXT},
    )
    listen = _listen_to_mels("input_features_mask", _convolved_and_merged)
    return transformers.GlmAsrForConditionalGeneration(config), partial(_chat_inputs, listen)


def qwen3_asr() -> Built:
    encoder = {"output_dim": 64, "downsample_hidden_size": 16, "num_mel_bins": MEL_BINS, **BARTS_NAMES}
    config = transformers.Qwen3ASRConfig(
        audio_token_id=AUDIO,
        audio_config={"model_type": "qwen3_asr_encoder", **encoder},
        text_config={"model_type": "qwen3", "head_dim": 16, **TEXT},
    )
    extract = transformers.Qwen3ASRFeatureExtractor()

    def listen(clips: Sequence[Waveform]) -> Heard:
        mels = extract(list(clips), sampling_rate=SAMPLING_RATE, padding=True, return_attention_mask=True)
        frames = mels.attention_mask.sum(-1)
        rest = frames % 100
        for _ in range(3):  # as `Qwen3ASRProcessor._get_audio_token_length`: three halvings, 13 tokens for 100 frames
            rest = (rest - 1) // 2 + 1
        features = {"input_features": mels.input_features, "input_features_mask": mels.attention_mask}
        return features, (frames // 100 * 13 + rest).tolist()

    return transformers.Qwen3ASRForConditionalGeneration(config), partial(_chat_inputs, listen)


def phi4_multimodal() -> Built:
    channels = dict.fromkeys(("nemo_conv_channels", "ext_pw_out_channel", "depthwise_separable_out_channel"), 32)
    audio = {"hidden_size": 32, "num_blocks": 1, "num_attention_heads": 2, "intermediate_size": 32, **channels}
    vision = {**LLAMAS_NAMES, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14, "crop_size": 28}
    config = transformers.Phi4MultimodalConfig(
        audio_config={"audio_token_id": AUDIO, **audio}, vision_config={"image_token_id": IMAGE, **vision}, **TEXT
    )
    extract = transformers.Phi4MultimodalFeatureExtractor()

    def listen(clips: Sequence[Waveform]) -> Heard:
        features = dict(extract(list(clips), sampling_rate=SAMPLING_RATE, return_tensors="pt"))
        return features, features["audio_embed_sizes"].tolist()

    return transformers.Phi4MultimodalForCausalLM(config), partial(_chat_inputs, listen)


def gemma4() -> Built:
    """Layers with a sliding window, heads of two sizes, and layers that share keys and values."""
    layers = ["sliding_attention", "full_attention"] * 2
    shape = {"num_hidden_layers": 4, "hidden_size": 32, "head_dim": 8, "global_head_dim": 16, "sliding_window": 64}
    per_layer = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
    encoder = {"num_hidden_layers": 1, "num_attention_heads": 2, "subsampling_conv_channels": [128, 4]}
    ids = {"audio_token_id": AUDIO, "image_token_id": IMAGE, "video_token_id": VIDEO, "boa_token_id": BEGIN_AUDIO}
    config = transformers.Gemma4Config(
        **ids,
        **dict.fromkeys(("boi_token_id", "eoi_token_id", "eoa_token_index"), UNUSED),
        text_config={**TEXT, **shape, **per_layer, "layer_types": layers, "num_kv_shared_layers": 2},
        audio_config={"hidden_size": 32, "output_proj_dims": 32, **encoder},
        vision_config={"num_key_value_heads": 2, "head_dim": 16, **LLAMAS_NAMES},
    )
    extract = transformers.Gemma4AudioFeatureExtractor()

    def listen(clips: Sequence[Waveform]) -> Heard:
        features = dict(extract(list(clips), return_tensors="pt"))
        tokens = features["input_features_mask"][:, ::2][:, ::2]  # as `Gemma4Processor.replace_audio_token`
        return features, tokens.sum(-1).tolist()

    return transformers.Gemma4ForConditionalGeneration(config), partial(_typed_chat_inputs, listen)


def qwen2_5_omni() -> Built:
    """The thinker, which reads and writes text."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    ids = {"audio_token_index": AUDIO, "image_token_index": IMAGE, "video_token_index": VIDEO}
    unused = ("audio_end_token_id", "vision_start_token_id", "vision_end_token_id")
    config = transformers.Qwen2_5OmniThinkerConfig(
        **ids,
        audio_start_token_id=BEGIN_AUDIO,
        **dict.fromkeys(unused, UNUSED),
        audio_config={"num_mel_bins": MEL_BINS, "output_dim": 64, **BARTS_NAMES},
        vision_config={"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64},
        text_config={"rope_parameters": rope, **TEXT},
    )
    listen = _listen_to_mels("feature_attention_mask", _convolved_and_pooled)
    return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config), partial(_chat_inputs, listen)


def _deaf(clips: Sequence[Waveform]) -> Heard:
    raise AssertionError("This model takes text only.")


def qwen2_text() -> Built:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT)), partial(_chat_inputs, _deaf)


def recurrent_text() -> Built:
    """Its first layer keeps a state of fixed size, no keys and values."""
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    config = transformers.Qwen3NextConfig(
        layer_types=["linear_attention", "full_attention"],
        mlp_only_layers=[0, 1],
        **{"head_dim": 16, "linear_key_head_dim": 16, "linear_value_head_dim": 16, **linear, **TEXT},
    )
    return transformers.Qwen3NextForCausalLM(config), partial(_chat_inputs, _deaf)


def _decoder_inputs(extract: Callable[..., transformers.BatchFeature], clips: Sequence[Waveform], text: str) -> Inputs:
    (clip,) = clips
    features = extract(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    return {**features, "decoder_input_ids": torch.tensor([[BEGIN, *_tokens(text)]])}


def whisper() -> Built:
    encoder = {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    decoder = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 128, "vocab_size": VOCABULARY}
    start = {"decoder_start_token_id": BEGIN, **SPECIAL}
    config = transformers.WhisperConfig(tie_word_embeddings=False, **encoder, **decoder, **start)
    extract = transformers.WhisperFeatureExtractor()
    return transformers.WhisperForConditionalGeneration(config), partial(_decoder_inputs, extract)


def moonshine() -> Built:
    """It hears raw samples, as many as there are, and a mask."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    layers = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    heads = {"encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4}
    config = transformers.MoonshineConfig(tie_word_embeddings=False, **sizes, **layers, **heads, **SPECIAL)
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return transformers.MoonshineForConditionalGeneration(config), partial(_decoder_inputs, extract)


_CHAT = (qwen2_audio, voxtral, granite_speech, audioflamingo3, glmasr, qwen3_asr, phi4_multimodal, gemma4, qwen2_5_omni)
_TEXT_ONLY = (qwen2_text, recurrent_text)
_ENCODER_DECODERS = (whisper, moonshine)
_BUILDERS = {builder.__name__: builder for builder in (*_CHAT, *_TEXT_ONLY, *_ENCODER_DECODERS)}
CHAT_MODELS = tuple(builder.__name__ for builder in _CHAT)
TEXT_MODELS = tuple(builder.__name__ for builder in _TEXT_ONLY)
ENCODER_DECODERS = tuple(builder.__name__ for builder in _ENCODER_DECODERS)
