"""A transformers speech recogniser without a language model's loop: CTC (wav2vec2, HuBERT, Parakeet) and transducers
(RNN-T, TDT). The text comes at once.

With CTC, clips of one length share a forward, as padding would change what several of these encoders hear. Transducers
hear one clip at a time: transformers 5.23 runs a batch until its last row ends, and the others write on behind the end
of their audio.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from errors import InternalError
from models.base import (
    Clip,
    Conversation,
    Question,
    TextModel,
    Turn,
    clips_of,
    refuse_overflow,
    refuse_shorter,
    refuse_steering,
    transcribed_windows,
)
from models.huggingface import Checkpoint, tensors
from wire import Capabilities, Transcribe

# Self-attention over raw frames grows with the square of the time, and these are trained on utterances.
WINDOW_S = 30.0
MIN_CLIP_S = 0.05  # the first convolutions see 25 ms
MAX_BATCH_SIZE = 16

EQUAL_LENGTHS = f"up to {MAX_BATCH_SIZE} clips of one length share a forward, so that none is padded"
ONE_BY_ONE = "in a batch, transducers write on behind the end of their audio, so it hears one clip at a time"

LANGUAGE_MODELS_PACKAGE = "pyctcdecode"

log = logging.getLogger("eardrum.models")

Waveform = npt.NDArray[np.float32]


class HuggingFaceCtc(TextModel):
    """Any `ForCTC`, `ForRNNT` or `ForTDT` model of transformers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def setup(self, device: str, dtype: str) -> None:
        self._processor = self._load_processor()
        self._module: Any = self._checkpoint.module(device, dtype)
        self._is_ctc = type(self._module).__name__.endswith("ForCTC")
        self.max_batch_size = MAX_BATCH_SIZE if self._is_ctc else 1
        extractor = getattr(self._processor, "feature_extractor", self._processor)
        self.capabilities = Capabilities(
            sampling_rate=int(getattr(extractor, "sampling_rate", 16_000)),
            max_seconds_per_window=WINDOW_S,
            long_audio="chunk",
            batching="dynamic" if self._is_ctc else "serial",
            why=EQUAL_LENGTHS if self._is_ctc else ONE_BY_ONE,
        )

    def _load_processor(self) -> Any:
        """Without the n-gram language model that some checkpoints of wav2vec2 bring: it wants packages of its own."""
        try:
            processor = self._checkpoint.processor()
        except ValueError as error:
            if LANGUAGE_MODELS_PACKAGE not in str(error):
                raise
        else:
            if not type(processor).__name__.endswith("WithLM"):
                return processor
        log.warning("the checkpoint's language model is not used: the likeliest letters are taken")
        return self._checkpoint.processor("Wav2Vec2Processor")

    def split(self, conversation: Conversation) -> Sequence[Conversation]:
        """A question for each window of each clip: text in the messages steers nothing."""
        windows = [window for _, window in transcribed_windows(conversation)]
        refuse_shorter(conversation, int(MIN_CLIP_S * self.capabilities.sampling_rate))
        return [(Turn("user", (Clip((window,)),)),) for window in windows]

    def transcribe(self, conversation: Conversation, task: Transcribe) -> Sequence[Conversation]:
        refuse_steering(task)
        return self.split(conversation)

    def group(self, question: Question) -> int:
        """Its clip's samples."""
        return len(_window(question))

    def generate(self, questions: Sequence[Question]) -> Iterator[Sequence[str | None]]:
        yield self._transcribe([_window(question) for question in questions])

    def count_tokens(self, text: str) -> int:
        tokenizer = getattr(self._processor, "tokenizer", None)
        return len(tokenizer(text).input_ids) if tokenizer is not None else super().count_tokens(text)

    @torch.inference_mode()
    def _transcribe(self, windows: Sequence[Waveform]) -> list[str]:
        """The texts of clips of one length, each of shape (samples,)."""
        rate = self.capabilities.sampling_rate
        features = tensors(self._processor(list(windows), sampling_rate=rate, return_tensors="pt"), self._module)
        device, dtype = self._module.device, self._module.dtype
        placed = {
            name: value.to(device, dtype if value.is_floating_point() else None) for name, value in features.items()
        }
        refuse_overflow(placed.values())
        return self._read(placed)

    def _read(self, features: dict[str, torch.Tensor]) -> list[str]:
        if not self._is_ctc:
            ids = self._module.generate(**features)
            ids = getattr(ids, "sequences", ids)  # TDT's also tell how long each token lasts
            return list(self._processor.batch_decode(ids, skip_special_tokens=True))
        logits = self._module(**features).logits
        if not bool(logits.isfinite().all()):  # the likeliest of no numbers is the blank, and the transcript empty
            raise InternalError("The model's output is no numbers. Another --dtype may help.")
        # The blank is a special token: skipped before repeats are merged, it would take doubled letters with it.
        return list(self._processor.batch_decode(logits.argmax(-1)))


def _window(question: Question) -> Waveform:
    (clip,) = clips_of(question.conversation)
    return clip.windows[0]
