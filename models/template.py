"""A starting point for a model of your own. It runs as it is:

    python server.py --model models/template.py:MyModel

Copy the file, keep the class that fits, and replace what the comments name. `MyModel` brings a loop of its own: any
Python that turns audio and text into text. `MyFastModel` brings a transformers module, and the server runs it: requests
join and leave while others are being answered, and structured output, log-probabilities and all of the sampling work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from errors import BadRequest
from models.asks import Ask


class MyModel:
    """Says how long and how loud each clip is."""

    sampling_rate = 16_000  # hertz: the audio comes at this rate, mono, whatever the client sent
    max_batch_size = 8  # requests that one call of `generate` gets at most; 1: one by one
    max_seconds = None  # what the model hears at once, such as 30; then `long_audio`: "error", "truncate" or "chunk"
    max_clips = None  # audio in one conversation

    def setup(self, device: str) -> None:
        """Once, in the worker process. Load your weights onto `device` here."""

    def generate(self, batch: list[Ask]) -> Iterator[list[str | None]]:
        """Answer the whole batch: return a list of texts, or yield a list of next pieces, as here, to stream."""
        answers = [self._answer(ask).split(" ") for ask in batch]  # your model, over all of the batch at once
        for step in range(max(map(len, answers))):
            # The next piece of each answer; "" where there is no news, None where it is complete.
            yield [_piece(words, step) for words in answers]

    def _answer(self, ask: Ask) -> str:
        # ask.messages: all turns, with text and audio in their places; ask.audios and ask.text: the short way.
        # ask.max_tokens, ask.temperature, ask.seed, ...: what the client set, None otherwise.
        if not ask.audios:
            raise BadRequest("Send audio: a content part of type `input_audio` or `audio_url`.", "messages")
        return " ".join(self._describe(audio) for audio in ask.audios)

    def _describe(self, audio: np.ndarray) -> str:
        loudness = 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-10)
        return f"{len(audio) / self.sampling_rate:.1f} seconds at {loudness:.0f} dB."

    def count_tokens(self, text: str) -> int:
        """For `usage` and `max_tokens`. Without it, each piece counts as one."""
        return len(text.split())


def _piece(words: list[str], step: int) -> str | None:
    if step >= len(words):
        return None
    return words[step] if step == 0 else f" {words[step]}"


class MyFastModel:
    """Transcribes, with the embedded Whisper."""

    sampling_rate = 16_000
    max_seconds = 30
    max_clips = 1
    long_audio = "chunk"

    def setup(self, device: str, dtype: str) -> None:
        """Set `module`, a transformers module on its device, and `tokenizer`, a fast one."""
        from transformers import WhisperFeatureExtractor  # noqa: PLC0415 -- slow to import, and MyModel needs it not

        from models.whisper import embedded_whisper  # noqa: PLC0415

        # Yours: AutoProcessor.from_pretrained(...), and SomeModelForConditionalGeneration.from_pretrained(...)
        whisper = embedded_whisper()
        whisper.setup(device, dtype)
        self.module = whisper.module
        self.tokenizer = whisper.tokenizer
        self._extract = WhisperFeatureExtractor()
        # What the checkpoint's own generation_config.json says holds here, too: the tokens that end an answer and those
        # that are never written. This one comes without such a file.
        settings: Any = whisper.module.generation_config
        settings.suppress_tokens, settings.begin_suppress_tokens = whisper.banned_ids, whisper.banned_first_ids

    def prepare(self, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The module's arguments for this conversation, as for a batch of one. Yours, for a chat model:
        `self._processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True, sanitize_control_tokens=True)`. Without the last, a client could write your model's
        control tokens."""
        audios = [block["audio"] for message in messages for block in message["content"] if block["type"] == "audio"]
        if not audios:
            raise BadRequest("Send audio: a content part of type `input_audio` or `audio_url`.", "messages")
        features = self._extract(audios[0], sampling_rate=self.sampling_rate, return_tensors="pt")
        start = [self.tokenizer.token_to_id(name) for name in ("<|startoftranscript|>", "<|notimestamps|>")]
        return {"input_features": features.input_features, "decoder_input_ids": torch.tensor([start])}
