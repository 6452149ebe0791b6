"""Cuts a text to a number of tokens, where all that is known of tokens is how many a text counts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable

# Up to the last whole word: behind it a blank, and at most the beginning of another. A longer one is taken for writing
# without blanks, such as Chinese, which may be cut anywhere.
LONGEST_WORD = 20  # characters
_WHOLE_WORDS = re.compile(rf"(.*\S)\s+\S{{0,{LONGEST_WORD}}}", re.DOTALL)


def within(text: str, limit: int | None, count: Callable[[str], int]) -> tuple[str, int]:
    """The text, or as much of its beginning as counts at most `limit`, in whole words where one fits; and its count.

    Where `count` cannot tell, and says 1 of any text, all of it is kept or nothing.

    >>> within("one two three", 9, len)
    ('one two', 7)
    """
    num_tokens = count(text)
    if limit is None or num_tokens <= limit:
        return text, num_tokens
    size = bisect_right(range(1, len(text)), limit, key=lambda size: count(text[:size]))
    words = _WHOLE_WORDS.fullmatch(text[: size + 1])
    if words and (num_tokens := count(words[1])) <= limit:
        return words[1], num_tokens
    return text[:size], count(text[:size]) if size else 0
