"""A transformers chat model, with or without ears: its processor makes prompts, the engine runs its module."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from dialects import THOUGHTS, takes_tools, tool_style_of
from errors import AudioTooLong, BadRequest
from models.base import CausalModel, Clip, Conversation, Prompt, Turn, clips_of, one_window_each
from models.chat_template import ChatTemplate
from models.huggingface import AUDIO_IDS, Checkpoint, defaults_of, end_ids_of, ids_in, tensors, window_of
from wire import AS_USUAL, Capabilities, Templating, Tools, Transcribe

OTHER_IDS = tuple(f"{kind}_token_{ending}" for kind in ("image", "video") for ending in ("id", "index"))
TEXT_ONLY_RATE = 16_000  # hertz; nobody's
PROBE_S = 1.0
END_OF_CALL = "<|eom_id|>"
OPENING_TOKENS = 16  # of a prompt's end, to see what it opens
NOT_MEASURED = Capabilities(TEXT_ONLY_RATE, None, "error", "continuous")
# How far a processor is tried for cutting audio. Longer audio is tried in each request.
HORIZON_S = 660
USUAL_CUTS_S = (30, 600, 630)  # Whisper's window, Audio Flamingo 3's, GLM-ASR's: tried first, to be quick
STEP_S = 30
RESOLUTION_S = 0.25
TAIL_S = 0.1  # what is changed at the end of the audio, to see whether it is heard; less than `RESOLUTION_S`
SHORT_S = 0.1
ROUNDING = 1e-3  # features differ by more where they hear something else

Waveform = npt.NDArray[np.float32]


class HuggingFaceChat(CausalModel):
    """Any causal language model of transformers with a chat template, and a processor for audio if it hears."""

    max_model_len: int

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def setup(self, device: str, dtype: str) -> None:
        processor = self._checkpoint.processor()
        self.module = module = self._checkpoint.module(device, dtype)
        audio_config = getattr(module.config, "audio_config", None)
        self.placeholder_ids = ids_in(processor, module.config, audio_config, names=AUDIO_IDS + OTHER_IDS)
        audio_ids = ids_in(processor, module.config, audio_config, names=AUDIO_IDS)
        self._template = ChatTemplate(processor, audio_ids[0] if audio_ids else None)
        self.tokenizer = self._template.backend()
        self.end_ids = end_ids_of(module, self._template.tokenizer) | self._call_ends()
        self.banned_ids = tuple(module.generation_config.suppress_tokens or ())
        self.banned_first_ids = tuple(module.generation_config.begin_suppress_tokens or ())
        self.defaults = defaults_of(module.generation_config)
        self._audio_ids = torch.tensor(audio_ids)
        self.max_model_len = window_of(module.config)
        self.takes_tools = takes_tools(self._template.text)
        self.capabilities = NOT_MEASURED
        self.capabilities = replace(self._measured(), tools=tool_style_of(self._template.text))

    def _call_ends(self) -> frozenset[int]:
        """What Llamas end a message with that is a call; not every checkpoint names it as an end."""
        id_ = self.tokenizer.token_to_id(END_OF_CALL)
        return frozenset() if id_ is None else frozenset({id_})

    def prepare(self, conversation: Conversation) -> Sequence[Prompt]:
        return self.prepare_by(conversation)

    def prepare_by(
        self, conversation: Conversation, templating: Templating = AS_USUAL, tools: Tools | None = None
    ) -> Sequence[Prompt]:
        prompts = self._prompts(conversation, partial(self._inputs, templating=templating, tools=tools))
        return [replace(prompt, is_continued=templating.continues) for prompt in prompts]

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Prompt]:
        """As the processor asks for a transcription, where it does and can say all of the task; in words otherwise."""
        in_words = task.translate or task.prompt is not None or not self._template.takes_transcriptions(task.language)
        if in_words:
            return self.prepare(conversation)
        return self._prompts(conversation, partial(self._transcription_inputs, language=task.language))

    def _prompts(
        self, conversation: Conversation, inputs: Callable[[Conversation], dict[str, torch.Tensor]]
    ) -> Sequence[Prompt]:
        conversations = one_window_each(conversation)
        for each in conversations:
            self._check_heard(each)
        lead = " " if len(conversations) > 1 else None
        return [self._prompt(inputs(each), lead) for each in conversations]

    def prepare_plain(self, text: str) -> Prompt:
        return replace(self._prompt(tensors(self._template.plain_inputs(text), self.module)), is_continued=True)

    def _prompt(self, inputs: dict[str, torch.Tensor], lead: str | None = None) -> Prompt:
        ids = inputs["input_ids"]
        return Prompt(
            inputs=inputs,
            num_tokens=ids.shape[1],
            num_audio_tokens=int(torch.isin(ids, self._audio_ids).sum()),
            max_new_tokens=self.max_model_len - ids.shape[1],
            lead=lead,
            opening=self._opening(ids[0, -OPENING_TOKENS:].tolist()),
        )

    def _opening(self, last_ids: Sequence[int]) -> str:
        """The tag before thoughts, where the template has written it: the model goes on behind it."""
        if self.capabilities.reasoning is None:
            return ""
        tag, _ = THOUGHTS[self.capabilities.reasoning]
        ends = self.tokenizer.decode(last_ids, skip_special_tokens=False).rstrip().endswith(tag)
        return tag if ends else ""

    def _inputs(
        self, conversation: Conversation, templating: Templating = AS_USUAL, tools: Tools | None = None
    ) -> dict[str, torch.Tensor]:
        return tensors(self._template.inputs(conversation, templating, tools), self.module)

    def _transcription_inputs(self, conversation: Conversation, language: str | None) -> dict[str, torch.Tensor]:
        (clip,) = clips_of(conversation)
        return tensors(self._template.transcription_inputs(clip.windows[0], language), self.module)

    # ------------------------------------------------------------------------------------- what the processor takes

    def _measured(self) -> Capabilities:
        """What is told about models of one's own name is tried on each: how much audio the processor really takes."""
        rate = self._template.sampling_rate
        return Capabilities(
            sampling_rate=rate or TEXT_ONLY_RATE,
            max_seconds_per_window=None if rate is None else self._hearing_span(rate),
            long_audio="error",
            batching="continuous",
            max_clips=self._max_clips(rate),
        )

    def _max_clips(self, rate: int | None) -> int | None:
        """How many audios a conversation may hold; `None`: many."""
        if rate is None:
            return 0
        clip = Clip((_noise(int(PROBE_S * rate)),))
        two = (Turn("user", (clip, "a")), Turn("assistant", ("b",)), Turn("user", (clip, "c")))
        try:
            count = self._prompt(self._inputs(two)).num_audio_tokens
        except Exception:  # whatever a processor may raise where it wants one
            return 1
        return None if count == 2 * self._prompt(self._inputs(two[:1])).num_audio_tokens else 1

    def _hearing_span(self, rate: int) -> float | None:
        """Seconds of audio that reach the features; `None` where no end of it was found."""

        def heard(seconds: float) -> bool:
            return self._hears_end(_noise(int(seconds * rate)), rate)

        if heard(HORIZON_S):
            return None
        for seconds in USUAL_CUTS_S:
            if not heard(seconds + RESOLUTION_S) and heard(seconds):
                return float(seconds)
        whole = _last(heard, 0, HORIZON_S, STEP_S)
        return _last(heard, whole, whole + STEP_S, RESOLUTION_S)

    def _hears_end(self, waveform: Waveform, rate: int) -> bool:
        """Whether the features change when the end of the audio does: some noise, and the same backwards, so that mean
        and loudness, by which extractors normalise all of the audio, stay what they are."""
        tail = _noise(int(TAIL_S * rate))
        one, other = (self._features(Clip((_ending(waveform, end),))) for end in (tail, tail[::-1]))
        return any(not torch.allclose(one[name].float(), other[name].float(), atol=ROUNDING) for name in one)

    def _features(self, clip: Clip) -> dict[str, torch.Tensor]:
        return self._inputs((Turn("user", (clip,)),))

    def _check_heard(self, conversation: Conversation) -> None:
        """No audio goes unheard: one that is longer than what was tried at the load, or so short that some processors
        make nothing of it, is tried now. Raises `BadRequest`."""
        rate = self._template.sampling_rate or TEXT_ONLY_RATE
        for clip in clips_of(conversation):
            samples = len(clip.windows[0])
            if samples > HORIZON_S * rate and not self._hears_end(clip.windows[0], rate):
                raise AudioTooLong(f"The model's processor cuts audio of {samples / rate:.0f} seconds.", "messages")
            if samples < SHORT_S * rate and not self._is_heard(clip):
                raise BadRequest(f"An audio of {samples} samples is too short for this model.", "messages")

    def _is_heard(self, clip: Clip) -> bool:
        try:
            ids = self._features(clip)["input_ids"]
        except Exception:  # whatever a feature extractor may raise that needs more
            return False
        return bool(torch.isin(ids, self._audio_ids).any()) or not len(self._audio_ids)


def _last(heard: Callable[[float], bool], low: float, high: float, step: float) -> float:
    """The last of the values from `low` in steps below `high` that is heard; those behind it are not. By bisection."""
    count = int((high - low) / step)
    return low + step * (bisect_left(range(1, count), True, key=lambda i: not heard(low + step * i)))


def _ending(waveform: Waveform, end: Waveform) -> Waveform:
    return np.concatenate([waveform[: -len(end)], end])


def _noise(samples: int) -> Waveform:
    return (0.1 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
