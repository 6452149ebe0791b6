"""What clients of all sorts ask, and what became of each request.

Each request names a token of its own, so that an answer meant for somebody else shows. This file knows the API and the
fake model's orders, and nothing of the server's processes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

import httpx
from openai import APIConnectionError, APIError, AsyncOpenAI
from openai.types.chat import ChatCompletion

from tests.support.origin import Origin
from tests.support.speech import CLIPS, audio_url, input_audio, user

Outcome = Literal["ok", "refused", "failed", "left", "lost", "crossed"]
Json = dict[str, Any]

ANSWER_LIMIT_S = 75.0  # the server's own limit is 60
BAD_SHARE, LEAVING_SHARE, NEAR_SHARE, STREAM_SHARE = 0.12, 0.1, 0.75, 0.5  # near: audio in the body, not at an address
KILLED = {500, 503, 504}  # what any request may end with while workers are killed
SHOWN_CHARS = 90
NO_AUDIO = {"type": "input_audio", "input_audio": {"data": "bm9wZQ==", "format": "wav"}}
FORM = {"content-type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class End:
    """How a request ended; `came` is what came instead of the answer."""

    outcome: Outcome
    came: str = ""
    status: int | None = None


@dataclass
class Choice:
    """What has come of one choice."""

    text: str = ""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Request:
    """What is asked, with the text that each choice of its answer must be, or the status that is right for it."""

    fields: Json  # of the SDK's call
    text: str = ""
    status: int = 200
    leaves_after_s: float | None = None
    content: bytes = b""  # sent as it is, where the SDK's call cannot say it

    def __str__(self) -> str:
        fields = {name: value for name, value in self.fields.items() if name != "messages"}
        return f"{fields} for {self.status} {self.text[:SHOWN_CHARS]!r}"

    async def end(self, sdk: AsyncOpenAI) -> End:
        """Send it, and wait for its end. An answer that breaks off must have been the right one until then."""
        choices = [Choice() for _ in range(self.fields.get("n", 1))]
        end = await self._end(sdk, choices)
        wrong = [choice.text for choice in choices if not self.text.startswith(choice.text)]
        return End("crossed", repr(wrong[0][:SHOWN_CHARS])) if wrong else end

    async def _end(self, sdk: AsyncOpenAI, choices: list[Choice]) -> End:
        try:
            async with asyncio.timeout(self.leaves_after_s or ANSWER_LIMIT_S):
                await self._listen(sdk, choices)
        except TimeoutError:
            return End("left") if self.leaves_after_s else End("lost", f"no end within {ANSWER_LIMIT_S:g} s")
        except APIConnectionError as error:
            return End("lost", f"{error!r} from {error.__cause__!r}")
        except APIError as error:
            return self._end_by_error(getattr(error, "status_code", None), error.body)
        except (httpx.HTTPError, ValueError, IndexError) as error:  # cut off, no JSON, a choice too many
            return End("lost", repr(error))
        return self._judge(choices)

    async def _listen(self, sdk: AsyncOpenAI, choices: list[Choice]) -> None:
        if self.content:
            await sdk.post("/chat/completions", content=self.content, cast_to=ChatCompletion)
        elif not self.fields.get("stream"):
            for told in (await sdk.chat.completions.create(**self.fields)).choices:
                choices[told.index] = Choice(told.message.content or "", told.finish_reason)
        else:
            async with await sdk.chat.completions.create(**self.fields) as chunks:
                async for told in (told async for chunk in chunks for told in chunk.choices):
                    choice = choices[told.index]
                    choice.text += told.delta.content or ""
                    choice.finish_reason = told.finish_reason or choice.finish_reason

    def _judge(self, choices: list[Choice]) -> End:
        if all(choice == Choice(self.text, "stop") for choice in choices) and self.status == 200:
            return End("ok", status=200)
        cut = self.status == 200 and any(choice.finish_reason is None for choice in choices)
        return End("lost" if cut else "crossed", str(choices), 200)

    def _end_by_error(self, status: int | None, error: object) -> End:
        """`status` is `None` for an error in the middle of a stream."""
        message, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (None, None)
        if not message:
            return End("lost", f"{status} without a message: {error}", status)
        came = f"{status or 'in a stream:'} {code}"
        if status == 429 or (status == 503 and code != "worker_died"):
            return End("refused", came, status)
        if status is None or status == self.status or status in KILLED:
            return End("failed", came, status)
        return End("crossed", f"{came}: {message}", status)


@dataclass(frozen=True)
class Record:
    request: Request
    sent_at: float  # time.monotonic()
    ended_at: float
    end: End


@dataclass
class Account:
    """Every request, and its end."""

    sent: int = 0
    records: list[Record] = field(default_factory=list)

    async def send(self, request: Request, sdk: AsyncOpenAI) -> End:
        self.sent += 1
        sent_at = time.monotonic()
        end = await request.end(sdk)
        self.records.append(Record(request, sent_at, time.monotonic(), end))
        return end

    def of(self, outcome: Outcome) -> list[Record]:
        return [record for record in self.records if record.end.outcome == outcome]

    def next_answers_s(self, times: Sequence[float]) -> list[float]:
        """For each of `times`, the seconds until the first right answer to a request that was sent after it."""
        ok = self.of("ok")
        return [min((each.ended_at - at for each in ok if each.sent_at > at), default=math.inf) for at in times]


class Mix:
    """Requests at random; the same ones from the same `rng`."""

    def __init__(self, rng: Random, origin: Origin) -> None:
        self._rng, self._origin = rng, origin

    def any(self) -> Request:
        """One of all sorts, of a client that may leave before its end."""
        if self._chance(BAD_SHARE):
            return self._rng.choice(self._bad_inputs())
        (ask,) = self._rng.choices((self._short, self._long, self._echo, self.audio), (3, 3, 1, 3))
        return replace(ask(), leaves_after_s=self._rng.uniform(0.01, 2)) if self._chance(LEAVING_SHARE) else ask()

    def audio(self) -> Request:
        """One that goes through every process of the server."""
        clips, token = self._rng.sample(CLIPS, self._rng.choice((1, 1, 2))), self._token()
        heard = ", ".join(f"{clip.seconds:.1f} s" for clip in clips)
        return self._chat(*(self._clip(clip.name) for clip in clips), token, text=f"I heard {heard}. You said: {token}")

    def deadly(self) -> Request:
        """One that ends the worker it is given to."""
        token = self._token()
        return self._chat(f"#die #say={token}", text=token)

    def _short(self) -> Request:
        token = self._token()
        return self._chat(f"#say={token}", text=token)

    def _long(self) -> Request:
        words = [self._token()] * self._rng.randint(10, 30)
        return self._chat(f"#delay=0.003 #say={'_'.join(words)}", text=" ".join(words))

    def _echo(self) -> Request:
        token = self._token()
        return self._chat(token, text=f"I heard nothing. You said: {token}")

    def _bad_inputs(self) -> list[Request]:
        token = self._token()
        return [
            Request({}, status=400, content=b'{"model": "fake", "messages'),
            self._chat(token, status=415, extra_headers=FORM),
            self._chat(token, status=404, model="gpt-9"),
            self._chat(token, status=400, extra_body={"n": "two"}),
            self._chat(token, NO_AUDIO, status=400),
            self._chat(token, audio_url(self._origin.url("status/404")), status=400),
            self._chat(f"#bad {token}", status=400),
            self._chat(f"#fail=prepare {token}", status=500),
        ]

    def _chat(self, *parts: Json | str, text: str = "", status: int = 200, **options: object) -> Request:
        form = {"stream": self._chance(STREAM_SHARE), "n": self._rng.choice((1, 1, 1, 2))}
        return Request({"model": "fake", "messages": user(*parts), **form, **options}, text, status)

    def _clip(self, name: str) -> Json:
        return input_audio(name) if self._chance(NEAR_SHARE) else audio_url(self._origin.url(f"clip/{name}"))

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _token(self) -> str:
        return f"{self._rng.getrandbits(48):012x}"
