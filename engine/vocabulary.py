"""What each token of a model is in bytes: for log-probabilities, and for llguidance, which reads answers by the byte.

Read from a `tokenizers.Tokenizer`, whose pieces are bytes in GPT-2's alphabet or SentencePiece's text. llguidance could
read one itself, but not every kind, and it loses tokens where ids are missing. Knows neither grammars nor requests.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from llguidance import LLTokenizer, TokenizerWrapper
from llguidance.numpy import get_bitmask_shape
from tokenizers import AddedToken, Tokenizer

# GPT-2's alphabet (openai/gpt-2, `encoder.bytes_to_unicode`): printable bytes of Latin-1 stand for themselves, the
# others for the characters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}

_FALLBACK_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The tokens that are text, as llguidance takes them. `bits` marks them in the shape of one of its masks."""

    tokenizer: LLTokenizer
    bits: npt.NDArray[np.int32]

    def with_special(self, ids: Iterable[int]) -> Lexicon:
        """With tokens that are no text, and that a grammar can have by their numbers only."""
        marked = np.unpackbits(self.bits.view(np.uint8), bitorder="little")
        marked[list(ids)] = 1
        return Lexicon(self.tokenizer, np.packbits(marked, bitorder="little").view(np.int32))


class Vocabulary:
    """The tokens of one model. Several threads may ask at once.

    `size` is the width of the model's logits, which may have room for more tokens than the tokenizer knows. A token of
    `end_ids` ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, end_ids: frozenset[int]) -> None:
        assert end_ids and max(end_ids) < size, "a model can end its answers"
        self.size = size
        self.end_ids = end_ids
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in repr(tokenizer.decoder)
        self._added = tokenizer.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._lexicon: Lexicon | None = None

    def token_bytes(self, token: int) -> bytes:
        """The token's text, which may be a part of a character; a special token's name; b"" for an unknown id."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._read(token)
        return known

    def is_text(self, token: int) -> bool:
        """Whether an answer that follows a grammar may hold the token. Special tokens and ends are none, and nothing
        that looks like a tag (`<think>`, `<|0.00|>`): to the model it means something else than its characters, also
        where the tokenizer does not call it special."""
        added = self._added.get(token)
        return token not in self.end_ids and not (added and _is_special(added)) and self.token_bytes(token) != b""

    def special_ids(self, names: Iterable[str]) -> dict[str, int]:
        """Those of the names that are tokens of their own and no text, with their ids."""
        ids = {name: self._tokenizer.token_to_id(name) for name in names}
        return {name: id_ for name, id_ in ids.items() if id_ in self._added and not self.is_text(id_)}

    def lexicon(self) -> Lexicon:
        """Built at the first call: about a quarter of a second for 50,000 tokens."""
        with self._lock:
            if self._lexicon is None:
                self._lexicon = _build(
                    [self.token_bytes(token) if self.is_text(token) else b"" for token in range(self.size)]
                )
            return self._lexicon

    def _read(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].content.encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        return _from_byte_level(piece) if self._is_byte_level else _from_sentencepiece(piece)


class _Tokens:
    """What llguidance asks of a tokenizer. Its end is a token of its own behind all others, which no model has: the
    model's ends are not llguidance's business."""

    bos_token_id = None

    def __init__(self, texts: list[bytes]) -> None:
        self.tokens = [*texts, b""]
        self.eos_token_id = len(texts)
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        raise NotImplementedError("grammars are compiled with `no_forcing`, so nothing is tokenized")


def _build(texts: list[bytes]) -> Lexicon:
    tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(texts)))
    _, num_words = get_bitmask_shape(1, tokenizer.vocab_size)
    is_text = np.zeros(num_words * 32, dtype=bool)
    is_text[: len(texts)] = [text != b"" for text in texts]
    return Lexicon(tokenizer, np.packbits(is_text, bitorder="little").view(np.int32))


def _is_special(token: AddedToken) -> bool:
    return token.special or (token.content.startswith("<") and token.content.endswith(">"))


def _from_byte_level(piece: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in piece)
    except KeyError:  # a name in plain text among the pieces
        return piece.encode()


def _from_sentencepiece(piece: str) -> bytes:
    if byte := _FALLBACK_BYTE.fullmatch(piece):
        return bytes.fromhex(byte[1])
    return piece.replace("▁", " ").encode()
