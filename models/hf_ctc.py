"""A transformers speech recogniser without a language model's loop: CTC (wav2vec2, HuBERT, Parakeet) and transducers
(RNN-T, TDT). The text comes at once.

With CTC, clips of one length share a forward, as padding would change what several of these encoders hear. Transducers
hear one clip at a time: transformers 5.23 runs a batch until its last row ends, and the others write on behind the end
of their audio.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from errors import BadRequest
from models.base import Clip, Conversation, Question, TextModel, Turn, clips_of, refuse_shorter
from models.huggingface import Checkpoint, tensors
from wire import Capabilities

# Self-attention over raw frames grows with the square of the time, and these are trained on utterances.
WINDOW_S = 30.0
MIN_CLIP_S = 0.05  # the first convolutions see 25 ms
MAX_BATCH_SIZE = 16

EQUAL_LENGTHS = f"up to {MAX_BATCH_SIZE} clips of one length share a forward, so that none is padded"
ONE_BY_ONE = "in a batch, transducers write on behind the end of their audio, so it hears one clip at a time"

Waveform = npt.NDArray[np.float32]


class HuggingFaceCtc(TextModel):
    """Any `ForCTC`, `ForRNNT` or `ForTDT` model of transformers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def setup(self, device: str, dtype: str) -> None:
        self._processor = self._checkpoint.processor()
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

    def split(self, conversation: Conversation) -> Sequence[Conversation]:
        """A question for each window of each clip: text in the messages steers nothing."""
        windows = [window for clip in clips_of(conversation) for window in clip.windows]
        if not windows:
            raise BadRequest(
                "This model transcribes speech, and the messages hold no audio. "
                "Add a content part of type `audio_url` or `input_audio`.",
                "messages",
            )
        refuse_shorter(conversation, int(MIN_CLIP_S * self.capabilities.sampling_rate))
        return [(Turn("user", (Clip((window,)),)),) for window in windows]

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
        ids = self._module(**placed).logits.argmax(-1) if self._is_ctc else self._module.generate(**placed)
        ids = getattr(ids, "sequences", ids)  # TDT's also tell how long each token lasts
        texts: list[str] = self._processor.batch_decode(ids, skip_special_tokens=True)
        return texts


def _window(question: Question) -> Waveform:
    (clip,) = clips_of(question.conversation)
    return clip.windows[0]
