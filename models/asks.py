"""What a user's class with a `generate` is asked, and what it may answer with. Plain Python on the user's side: lists,
dictionaries, arrays, strings.

    conversation ──▶ messages ──▶ Ask ──▶ generate ──▶ texts │ generator │ coroutine │ async generator ──▶ pieces

Knows no class; `custom.py` does.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.base import Clip, Conversation, Question

Message = dict[str, Any]  # {"role": ..., "content": [{"type": "text", "text": ...}, {"type": "audio", "audio": ...}]}

LOOK_S = 0.05  # how long a step waits for an `async` class before it looks whether somebody still waits for the answer


@dataclass(frozen=True, eq=False)
class Ask:
    """One request as a class with `generate(batch)` is given it.

    Audio is mono float32, shape (samples,), at the class's `sampling_rate`. `None`: the client said nothing, and the
    model's own way is meant. The server itself ends the answer at a stop string, and cuts it at `max_tokens` as
    `count_tokens` counts them: heeding them saves time, no more. Each choice of a request is an ask of its own, with
    its own seed, and so is each window of a long audio, with the `max_tokens` that are left.
    """

    messages: list[Message]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # 0: all tokens
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, question: Question) -> Ask:
        settings = {name: getattr(question.sampling, name) for name in SETTINGS}
        return cls(messages_of(question.conversation), **settings)

    @property
    def audios(self) -> list[npt.NDArray[np.float32]]:
        """All audio of the conversation, in order."""
        blocks = (block for message in self.messages for block in message["content"])
        return [block["audio"] for block in blocks if block["type"] == "audio"]

    @property
    def text(self) -> str:
        """The text of the last message of the user's."""
        last = next((message for message in reversed(self.messages) if message["role"] == "user"), None)
        return "" if last is None else _text(last)


SETTINGS = tuple(field.name for field in fields(Ask) if field.name != "messages")


def messages_of(conversation: Conversation) -> list[Message]:
    """A conversation, whose clips have one window each, as dictionaries."""
    return [{"role": turn.role, "content": [_block(part) for part in turn.parts]} for turn in conversation]


def _block(part: str | Clip) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    (window,) = part.windows
    return {"type": "audio", "audio": window}


def _text(message: Message) -> str:
    return "\n".join(block["text"] for block in message["content"] if block["type"] == "text")


class Fields(dict[str, Any]):
    """A dictionary whose keys are attributes, too: AU-Harness's classes are given objects."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def as_clients_write(message: Message) -> Fields:
    """A message with its content as OpenAI's clients send it: a string where there is only text."""
    if all(block["type"] == "text" for block in message["content"]):
        return Fields(message, content=_text(message))
    return Fields(message, content=[Fields(block) for block in message["content"]])


class AnswerReader:
    """Reads what a `generate` gave, whatever it is, piece by piece."""

    def pieces(self, answer: Any, no_news: Any) -> Generator[Any, None, None]:
        """`no_news` comes now and then while an `async` class has nothing. Closing it closes the class's generator, or
        cancels its coroutine."""
        if inspect.isasyncgen(answer) or inspect.isawaitable(answer):
            yield from self._awaited(answer, no_news)
        elif isinstance(answer, Iterator):
            yield from answer
        elif isinstance(answer, str | list | tuple):
            yield answer
        else:
            raise TypeError(f"`generate` gave a {type(answer).__name__}, neither text nor a generator of text")

    def _awaited(self, answer: Any, no_news: Any) -> Iterator[Any]:
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        task = asyncio.run_coroutine_threadsafe(_pass_on(answer, arrived.put), self._loop)
        task.add_done_callback(lambda _: arrived.put(task))
        try:
            while (piece := _next(arrived, no_news)) is not task:
                yield piece
            task.result()
        finally:
            task.cancel()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """One for all requests, as a web server would have: clients and locks of the class may be bound to it."""
        loop = asyncio.new_event_loop()

        def run() -> None:
            with torch.inference_mode():
                loop.run_forever()

        threading.Thread(target=run, name="generate", daemon=True).start()
        return loop


async def _pass_on(answer: AsyncIterator[Any] | Awaitable[Any], put: Callable[[Any], None]) -> None:
    if not inspect.isasyncgen(answer):
        put(await answer)  # type: ignore[misc]  # it is one or the other
        return
    async with aclosing(answer) as pieces:
        async for piece in pieces:
            put(piece)
            await asyncio.sleep(0)  # one that never waits could not be cancelled otherwise


def _next(arrived: queue.SimpleQueue[Any], no_news: Any) -> Any:
    try:
        return arrived.get(timeout=LOOK_S)
    except queue.Empty:
        return no_news
