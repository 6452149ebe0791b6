"""`client.py chat`: questions from the terminal or a pipe, one a line, in one conversation.

Clips go with the next question. A question that fails is taken back with its clips, so that one can go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import suppress

from openai import APIError, OpenAI

from cli.problem import Problem, told, warn
from cli.record import record, seconds
from cli.server import Json, audio_part, connect, model_name, print_answer, recorded_part

PROMPT = "> "
COMMANDS = "/audio FILE adds a clip to the next question, /record one from the microphone; /quit or Ctrl-D ends."


def chat(options: argparse.Namespace) -> int:
    clips = [audio_part(audio) for audio in options.audio]
    client = connect(options)
    talk = Chat(client, model_name(client, options), clips, options)
    if sys.stdin.isatty():
        print(f"{talk.model} at {options.url}\n{COMMANDS}", file=sys.stderr)
    for line in lines():
        if line == "/quit":
            break
        if line:
            talk.take(line)
    return 1 if talk.failed and not sys.stdin.isatty() else 0


class Chat:
    def __init__(self, client: OpenAI, model: str, clips: list[Json], options: argparse.Namespace) -> None:
        self.model = model
        self.failed = False
        self._client, self._options = client, options
        self._turns: list[Json] = []
        self._clips = clips

    def take(self, line: str) -> None:
        """A question, or a command; what goes wrong with it is shown."""
        try:
            if line.startswith("/"):
                self._obey(*line.split(maxsplit=1))
            else:
                self._answer(line)
        except BrokenPipeError:
            raise
        except Problem as problem:
            self._fail(str(problem))
        except (APIError, OSError) as error:
            self._fail(told(error, self._options.url))
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            self._fail("Stopped.")

    def _fail(self, sentence: str) -> None:
        self.failed = True
        warn(sentence)

    def _obey(self, command: str, argument: str = "") -> None:
        match command:
            case "/audio" if argument:
                self._clips.append(audio_part(argument))
            case "/record":
                clip = record(_wait_for_enter)
                self._clips.append(recorded_part(clip))
                print(f"{seconds(clip):.1f} s recorded.", file=sys.stderr)
            case _:
                raise Problem(COMMANDS)

    def _answer(self, question: str) -> None:
        content = [{"type": "text", "text": question}, *self._clips] if self._clips else question
        turns = [*self._turns, {"role": "user", "content": content}]
        request = {"model": self.model, "messages": turns, **_sampling(self._options)}
        answer = print_answer(self._client, request)
        self._turns = [*turns, {"role": "assistant", "content": answer}]
        self._clips = []


def _sampling(options: argparse.Namespace) -> Json:
    return {"max_tokens": options.max_tokens, "temperature": options.temperature}


def _wait_for_enter() -> None:
    print("Recording; Enter ends.", file=sys.stderr)
    with suppress(EOFError):
        input()


def lines() -> Iterator[str]:
    """What is typed or piped in, until its end."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 -- gives `input` its history
    while True:
        try:
            line = _read()
        except EOFError:
            if sys.stdin.isatty():
                print(file=sys.stderr)
            return
        yield line.strip()


def _read() -> str:
    """`input` writes its prompt to stdout, which is right only where that is a terminal, too."""
    if not sys.stdin.isatty():
        return input()
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)
    return input()
