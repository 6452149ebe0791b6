"""Requests that are counted: each ends with an answer or with an error that the server wrote, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import openai

from tests.support.speech import input_audio, user

LIMIT_S = 40.0  # nobody waits longer


@dataclass
class Outcome:
    """How a request ended. `code`: of its error; `status`: of its answer, 200 for a stream that had begun."""

    text: str = ""
    code: str | None = None
    status: int = 200
    ended_at: float = 0.0  # time.monotonic()


class Asked:
    """One request that is under way."""

    def __init__(self, client: openai.AsyncOpenAI, text: str, stream: bool, **options: object) -> None:
        self.outcome = Outcome()
        self.begun = asyncio.Event()  # the client has got some of its stream
        options = {"model": "fake", "messages": user(text), "stream": stream, **options}
        self.task = asyncio.ensure_future(self._run(client, options))

    async def _run(self, client: openai.AsyncOpenAI, options: dict) -> Outcome:
        """Raises what is no answer and no error of the server's: a connection that broke, a stream without an end."""
        try:
            async with asyncio.timeout(LIMIT_S):
                answer = await client.chat.completions.create(**options)
                if options["stream"]:
                    await self._read(answer)
                else:
                    self.outcome.text = answer.choices[0].message.content
        except openai.APIStatusError as error:
            self.outcome.status, self.outcome.code = error.status_code, str(error.code)
            assert error.body["message"]
        except openai.APIError as error:
            if isinstance(error, openai.APIConnectionError):
                raise
            self.outcome.code = str(error.code)
        self.outcome.ended_at = time.monotonic()
        return self.outcome

    async def _read(self, stream: openai.AsyncStream) -> None:
        reason = None
        async for chunk in stream:
            self.begun.set()
            self.outcome.text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason
        assert reason, "a stream ended without an end and without an error"


def ask(client: openai.AsyncOpenAI, text: str, stream: bool = False, **options: object) -> Asked:
    return Asked(client, text, stream, **options)


def ask_about_audio(client: openai.AsyncOpenAI, text: str, stream: bool = False, **options: object) -> Asked:
    """With a clip, which `Processes.accepted` sees."""
    return ask(client, "", stream, messages=user(input_audio("cv-en-no.mp3"), text), **options)


def ask_many(client: openai.AsyncOpenAI, texts: Iterable[str], stream: bool = False) -> list[Asked]:
    return [ask(client, text, stream) for text in texts]


async def begun(asked: Iterable[Asked]) -> None:
    """Waits until each client has got some of its stream."""
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(each.begun.wait() for each in asked))


async def tally(*groups: Iterable[Asked]) -> Counter[str]:
    """How many ended in which way, "ok" or by the code of an error. As many as were asked, or the test fails."""
    asked = [each for group in groups for each in group]
    outcomes = await asyncio.gather(*(each.task for each in asked))
    return Counter(outcome.code or "ok" for outcome in outcomes)
