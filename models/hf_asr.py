"""A transformers speech recogniser with an encoder and a decoder, such as Whisper or Moonshine: each clip is one line.

Text in the messages steers nothing. The decoder's prompt is the processor's where that makes one (Canary), Whisper's
where the generation configuration has its tokens, and otherwise the start token alone.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from errors import BadRequest
from models.base import CausalModel, Conversation, Prompt, refuse_shorter, refuse_steering, transcribed_windows
from models.huggingface import Checkpoint, defaults_of, end_ids_of, tensors, window_of
from models.whisper import NO_SPEECH_THRESHOLD, check_english, context_ids
from wire import Capabilities, Transcribe

# Recognisers of this kind are trained on utterances; where none says how long, longer audio is cut at quiet places.
DEFAULT_WINDOW_S = 30.0
MIN_CLIP_S = 0.05  # those that hear raw samples begin with convolutions over 25 to 40 ms
# Whose decoders are asked with a start token alone; others are refused rather than asked wrongly.
PROMPTLESS = ("moonshine", "moonshine_streaming", "speech_to_text", "speecht5", "speech-encoder-decoder")
NO_SPEECH_TOKENS = ("<|nospeech|>", "<|nocaptions|>")

OLD_CODES = {"jv": "jw"}  # as Whisper's tokens still have them

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Opening:
    """What a decoder begins with: `ids`, of which `num_context` are text from before; and, where the model tells the
    language first, what follows each language. `options` are for a processor that makes the ids itself."""

    ids: tuple[int, ...]
    num_context: int = 0
    following: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    language: str | None = None
    languages: Mapping[int, str] = field(default_factory=dict)
    first_timestamp: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)


class HuggingFaceAsr(CausalModel):
    """Any `ForSpeechSeq2Seq` model of transformers."""

    max_model_len: int

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
        self.timestamp_ids = self._timestamps()
        self.banned_ids = (*(config.suppress_tokens or ()), *self.timestamp_ids)
        self.banned_first_ids = tuple(config.begin_suppress_tokens or ())
        self.max_model_len = window_of(module.config)
        self._samples_per_token = self._encoder_hop()
        self._no_speech_id = self._id(*NO_SPEECH_TOKENS)
        self._previous_id = self._id("<|startofprev|>")
        self._opening(Transcribe())
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

    def _timestamps(self) -> range:
        """Whisper's last tokens; without them it writes plain text."""
        first = self._no_timestamps_id
        return range(0) if first is None else range(first + 1, self.vocabulary_size)

    # ------------------------------------------------------------------------------------------------------ prompts

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        return self.transcribe(conversation, Transcribe())

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Prompt]:
        opening = self._opening(task)
        windows = transcribed_windows(conversation)
        refuse_shorter(conversation, int(MIN_CLIP_S * self.capabilities.sampling_rate))
        return [self._prompt(window, lead, opening) for lead, window in windows]

    def _opening(self, task: Transcribe) -> Opening:
        """What the decoder begins with. Raises `ValueError` for a checkpoint that wants what nobody here knows,
        `BadRequest` for a task that it cannot do."""
        module: Any = self.module
        config = module.generation_config
        start = config.decoder_start_token_id
        start = module.config.decoder_start_token_id if start is None else start
        if self._makes_prompts:
            return Opening((), options=self._request_options(task))
        if self._no_timestamps_id is None and module.config.model_type not in PROMPTLESS:
            raise ValueError(
                f"--model {self._checkpoint.name}: a `{module.config.model_type}` decoder wants a prompt that this "
                "server does not know. Serve it by a class of your own, with `prepare`: see docs/your-model.md."
            )
        if self._no_timestamps_id is None:
            refuse_steering(task)
            return Opening((start,))
        return self._whispers_opening(config, start, task)

    def _request_options(self, task: Transcribe) -> dict[str, str]:
        """What the processor is told beside the audio, as Canary's takes it."""
        takes = inspect.signature(self._processor.apply_transcription_request).parameters
        if not {"source_language", "target_language"} <= set(takes):
            refuse_steering(task)
        if task.prompt is not None:
            refuse_steering(Transcribe(prompt=task.prompt))
        source = {} if task.language is None else {"source_language": task.language}
        return {**source, "target_language": "en"} if task.translate else source

    def _whispers_opening(self, config: Any, start: int, task: Transcribe) -> Opening:
        """Radford et al. 2022, section 2.3: the text before, the language, the task, no timestamps; as far as the
        client or the configuration sets them, and the language by the model itself otherwise."""
        first = self.timestamp_ids.start if task.timestamps else None
        end = () if task.timestamps else (self._no_timestamps_id,)
        context = () if self._previous_id is None else self._context(task)
        begin = (*context, start)
        languages = getattr(config, "lang_to_id", None)
        if not getattr(config, "is_multilingual", True) or not languages:
            check_english(task)
            forced = [id_ for _, id_ in getattr(config, "forced_decoder_ids", None) or () if id_ is not None]
            fixed = (id_ for id_ in forced if id_ != self._no_timestamps_id)
            english = "en" if getattr(config, "is_multilingual", None) is False else None
            return Opening((*begin, *fixed, *end), len(context), language=english, first_timestamp=first)
        kind = "translate" if task.translate else getattr(config, "task", None) or "transcribe"
        tail = (config.task_to_id[kind], *end)
        wanted = task.language or getattr(config, "language", None)
        if wanted is None:
            following = {language: (language, *tail) for language in languages.values()}
            codes = {id_: _code(name) for name, id_ in languages.items()}
            return Opening(begin, len(context), following, languages=codes, first_timestamp=first)
        name = _language_name(wanted, languages)
        return Opening((*begin, languages[name], *tail), len(context), language=_code(name), first_timestamp=first)

    def _context(self, task: Transcribe) -> tuple[int, ...]:
        assert self._previous_id is not None, "asked before"
        return context_ids(self.tokenizer, task.prompt, self._previous_id, self.max_model_len)

    def _prompt(self, window: Waveform, lead: str, opening: Opening) -> Prompt:
        inputs = tensors(self._features(window, opening.options), self.module)
        ids = inputs.setdefault("decoder_input_ids", torch.tensor([opening.ids]))
        num_following = max(map(len, opening.following.values()), default=0)
        num_tokens = ids.shape[1] + num_following
        audio_tokens = -(-len(window) // self._samples_per_token) if self._samples_per_token else 0
        return Prompt(
            inputs=inputs,
            num_tokens=num_tokens + audio_tokens,
            num_audio_tokens=audio_tokens,
            max_new_tokens=self.max_model_len - num_tokens,
            lead=lead,
            follow_up=partial(_language_prompt, opening.following) if opening.following else None,
            num_following=num_following,
            num_context=opening.num_context,
            language=opening.language,
            languages=opening.languages,
            first_timestamp=opening.first_timestamp,
        )

    def _features(self, window: Waveform, options: Mapping[str, str]) -> Any:
        """The module's inputs for one clip alone, so nothing is padded but what the processor pads always."""
        if not hasattr(self._local, "processor"):
            self._local.processor = copy.deepcopy(self._processor)
        if self._makes_prompts:
            return self._local.processor.apply_transcription_request(window, **options)
        rate = self.capabilities.sampling_rate
        return self._local.processor(window, sampling_rate=rate, return_tensors="pt")

    def hears_nothing(self, prompt_logits: torch.Tensor) -> bool:
        """Whisper's no-speech probability after its start token, see `models.whisper`."""
        if self._no_speech_id is None:
            return False
        return bool(prompt_logits[0].float().softmax(-1)[self._no_speech_id] > NO_SPEECH_THRESHOLD)


def _language_name(wanted: str, languages: Mapping[str, int]) -> str:
    """The name of a language's token. Raises `BadRequest` for one that the model does not know."""
    code = TO_LANGUAGE_CODE.get(wanted.lower(), wanted)
    for name in (wanted, f"<|{code}|>", f"<|{OLD_CODES.get(code, code)}|>"):
        if name in languages:
            return name
    raise BadRequest(f"`language`: this model does not know `{wanted}`.", "language")


def _code(name: str) -> str:
    """`de` of `<|de|>`."""
    return name[2:-2]


def _language_prompt(languages: Mapping[int, tuple[int, ...]], logits: torch.Tensor) -> tuple[int, ...]:
    """What follows the start token: the likeliest language, and then as always."""
    ids = list(languages)
    return languages[ids[int(logits[ids].argmax())]]
