"""A transformers speech recogniser with an encoder and a decoder, such as Whisper or Moonshine: each clip is one line.

Text in the messages steers nothing. The decoder's prompt is the processor's where that makes one (Canary), Whisper's
where the generation configuration has its tokens, and otherwise the start token alone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from models.base import CausalModel, Conversation, Prompt, refuse_shorter, transcribed_windows
from models.huggingface import Checkpoint, defaults_of, end_ids_of, tensors, window_of
from models.whisper import NO_SPEECH_THRESHOLD
from wire import Capabilities

# Recognisers of this kind are trained on utterances; where none says how long, longer audio is cut at quiet places.
DEFAULT_WINDOW_S = 30.0
MIN_CLIP_S = 0.05  # those that hear raw samples begin with convolutions over 25 to 40 ms
# Whose decoders are asked with a start token alone; others are refused rather than asked wrongly.
PROMPTLESS = ("moonshine", "moonshine_streaming", "speech_to_text", "speecht5", "speech-encoder-decoder")
NO_SPEECH_TOKENS = ("<|nospeech|>", "<|nocaptions|>")

Waveform = npt.NDArray[np.float32]


class HuggingFaceAsr(CausalModel):
    """Any `ForSpeechSeq2Seq` model of transformers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._local = threading.local()

    def setup(self, device: str, dtype: str) -> None:
        self._processor = processor = self._checkpoint.processor()
        self.module = module = self._checkpoint.module(device, dtype)
        self._makes_prompts = hasattr(processor, "apply_transcription_request")
        self._extractor = getattr(processor, "feature_extractor", processor)
        tokenizer = getattr(processor, "tokenizer", processor)
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise ValueError(f"The tokenizer of {self._checkpoint.name} is no fast one (tokenizer.json).")
        self.tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
        config = module.generation_config
        told = getattr(config, "no_timestamps_token_id", None)
        self._no_timestamps_id = self._id("<|notimestamps|>") if told is None else told
        self.end_ids = end_ids_of(module, tokenizer)
        self.defaults = defaults_of(config)
        self.banned_ids = (*(config.suppress_tokens or ()), *self._timestamps())
        self.banned_first_ids = tuple(config.begin_suppress_tokens or ())
        self._window = window_of(module.config)
        self._samples_per_token = self._encoder_hop()
        self._no_speech_id = self._id(*NO_SPEECH_TOKENS)
        self._start_ids, self._languages = self._prompt_ids()
        rate = int(getattr(self._extractor, "sampling_rate", 16_000))
        self.capabilities = Capabilities(
            sampling_rate=rate,
            max_seconds_per_window=float(getattr(self._extractor, "chunk_length", None) or DEFAULT_WINDOW_S),
            long_audio="chunk",
            batching="continuous",
        )

    def _id(self, *names: str) -> int | None:
        ids = (self.tokenizer.token_to_id(name) for name in names)
        return next((id_ for id_ in ids if id_ is not None), None)

    def _encoder_hop(self) -> int:
        """Samples for each position of the encoder, where configurations tell: Whisper's halves the frames. Else 0."""
        positions = getattr(self.module.config, "max_source_positions", None)
        samples = getattr(self._extractor, "n_samples", None)
        return samples // positions if positions and samples else 0

    def _timestamps(self) -> Sequence[int]:
        """Whisper's last tokens; without them it writes plain text."""
        first = self._no_timestamps_id
        return () if first is None else range(first + 1, self.vocabulary_size)

    def _prompt_ids(self) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
        """What the decoder begins with; and, where the model tells the language first, what follows each language.
        Raises `ValueError`."""
        module: Any = self.module
        config = module.generation_config
        start = config.decoder_start_token_id
        start = module.config.decoder_start_token_id if start is None else start
        if self._makes_prompts:
            return (), {}
        end = self._no_timestamps_id
        if end is None and module.config.model_type not in PROMPTLESS:
            raise ValueError(
                f"--model {self._checkpoint.name}: a `{module.config.model_type}` decoder wants a prompt that this "
                "server does not know. Serve it by a class of your own, with `prepare`: see docs/your-model.md."
            )
        if end is None:
            return (start,), {}
        return self._whispers_prompt(config, start, end)

    def _whispers_prompt(self, config: Any, start: int, end: int) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
        """Radford et al. 2022, section 2.3: the language, the task, no timestamps; as far as the configuration sets
        them, and the language by the model itself otherwise."""
        languages = getattr(config, "lang_to_id", None)
        if not getattr(config, "is_multilingual", True) or not languages:
            forced = [id_ for _, id_ in getattr(config, "forced_decoder_ids", None) or () if id_ is not None]
            return (start, *(id_ for id_ in forced if id_ != end), end), {}
        task = config.task_to_id[getattr(config, "task", None) or "transcribe"]
        wanted = getattr(config, "language", None)
        if wanted is None:
            return (start,), {language: (language, task, end) for language in languages.values()}
        code = TO_LANGUAGE_CODE.get(wanted.lower(), wanted)
        return (start, languages.get(wanted) or languages[f"<|{code}|>"], task, end), {}

    # ------------------------------------------------------------------------------------------------------ prompts

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        windows = transcribed_windows(conversation)
        refuse_shorter(conversation, int(MIN_CLIP_S * self.capabilities.sampling_rate))
        return [self._prompt(window, lead) for lead, window in windows]

    def _prompt(self, window: Waveform, lead: str) -> Prompt:
        inputs = tensors(self._features(window), self.module)
        ids = inputs.setdefault("decoder_input_ids", torch.tensor([self._start_ids]))
        num_following = max(map(len, self._languages.values()), default=0)
        num_tokens = ids.shape[1] + num_following
        audio_tokens = -(-len(window) // self._samples_per_token) if self._samples_per_token else 0
        return Prompt(
            inputs=inputs,
            num_tokens=num_tokens + audio_tokens,
            num_audio_tokens=audio_tokens,
            max_new_tokens=self._window - num_tokens,
            lead=lead,
            follow_up=partial(_language_prompt, self._languages) if self._languages else None,
            num_following=num_following,
        )

    def _features(self, window: Waveform) -> Any:
        """The module's inputs for one clip alone, so nothing is padded but what the processor pads always."""
        if not hasattr(self._local, "processor"):
            self._local.processor = copy.deepcopy(self._processor)
        if self._makes_prompts:
            return self._local.processor.apply_transcription_request(window)
        rate = self.capabilities.sampling_rate
        return self._local.processor(window, sampling_rate=rate, return_tensors="pt")

    def hears_nothing(self, prompt_logits: torch.Tensor) -> bool:
        """Whisper's no-speech probability after its start token, see `models.whisper`."""
        if self._no_speech_id is None:
            return False
        return bool(prompt_logits[0].float().softmax(-1)[self._no_speech_id] > NO_SPEECH_THRESHOLD)


def _language_prompt(languages: dict[int, tuple[int, ...]], logits: torch.Tensor) -> tuple[int, ...]:
    """What follows the start token: the likeliest language, and then as always."""
    ids = list(languages)
    return languages[ids[int(logits[ids].argmax())]]
