"""The command line. A command has options of its own; where none is named, a question is asked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence

from cli.ask import ask
from cli.chat import chat
from cli.check import check
from cli.models import models
from cli.server import base_url
from cli.transcribe import transcribe
from cli.transcript import FORMATS

URL = "http://127.0.0.1:8000/v1"
EXAMPLES = """examples:
  client.py talk.mp3 "Who speaks here?"         one question; `ask` may be left out
  client.py chat --audio talk.mp3               more of them
  client.py transcribe talks/ --format srt      subtitles beside all that is in a folder
  client.py transcribe - < talk.mp3 | less      a transcript of what comes in

Answers go to stdout, everything else to stderr. OPENAI_BASE_URL and OPENAI_API_KEY are heeded, as by OpenAI's SDK.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is asked for, with the function that does it in `run`. Ends the process where it is no command."""
    parser = _parser()
    connection = _connection(argparse.ArgumentParser(parser.prog, add_help=False, allow_abbrev=False))
    _, rest = connection.parse_known_args(arguments)
    if rest and rest[0] not in (*COMMANDS, "-h", "--help"):
        arguments = ["ask", *arguments]
    return parser.parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    about = "Ask, chat with and transcribe by an audio-language model behind the OpenAI API."
    parser = argparse.ArgumentParser(
        "client.py", description=about, epilog=EXAMPLES, formatter_class=plain, allow_abbrev=False
    )
    _connection(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (run, summary, add_options) in COMMANDS.items():
        about = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=about, allow_abbrev=False)
        command.set_defaults(run=run)
        add_options(command)
        _connection(command, again=True)
    return parser


def _connection(parser: argparse.ArgumentParser, again: bool = False) -> argparse.ArgumentParser:
    """Which server; before or behind the command. `again`: without defaults, which would win over what stood before."""

    def default(value: str | None) -> str | None:
        return argparse.SUPPRESS if again else value

    url, key = os.environ.get("OPENAI_BASE_URL") or URL, os.environ.get("OPENAI_API_KEY") or "none"
    shown = base_url(url).replace("%", "%%")
    group = parser.add_argument_group("the server")
    group.add_argument("--url", type=base_url, default=default(url), help=f"its address ({shown})")
    group.add_argument("--api-key", metavar="KEY", default=default(key), help="better in OPENAI_API_KEY")
    group.add_argument("--model", metavar="NAME", default=default(None), help="by default the first that it serves")
    return parser


def _ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audio", help="a file, or an http(s) URL that the server fetches")
    parser.add_argument("question", nargs="?", default="What is said here?", help="by default: %(default)s")
    parser.add_argument("--no-stream", action="store_true", help="wait for the whole answer")
    _sampling(parser)


def _chat(parser: argparse.ArgumentParser) -> None:
    help_ = "a clip for the first question: a file, or a URL that the server fetches; may be given several times"
    parser.add_argument("--audio", action="append", default=[], metavar="FILE", help=help_)
    _sampling(parser)


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of an answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest word")


def _transcribe(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "talk.mp3 becomes talk.txt beside it (or talk.srt and so on), but talk.mp3.txt where there is a talk.wav. Below"
        " --out, transcripts lie as the files do below the working directory, or below / if they are elsewhere. What"
        " exists is skipped: run it again to go on. One file without --format and --out is printed, as is that of -."
        " Ends with 1 if something failed."
    )
    what = "files, folders (what looks like audio in them), patterns in quotes (**: any folders), or - for stdin"
    parser.add_argument("inputs", nargs="+", metavar="FILE", help=what)
    parser.add_argument("--format", choices=FORMATS, help="text, if not given")
    parser.add_argument("--out", metavar="FOLDER", help="where transcripts go; -: one to stdout")
    parser.add_argument("--again", action="store_true", help="also do what is done already")
    parser.add_argument("--jobs", type=_count, default=4, metavar="N", help="files at the same time (%(default)s)")
    parser.add_argument("--language", metavar="CODE", help="what is spoken, such as en; by default the model finds out")
    parser.add_argument("--prompt", metavar="TEXT", help="what helps with names and spelling")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of files; give 1 or more")
    return int(text)


def _models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="all that the server tells of them")


def _check(parser: argparse.ArgumentParser) -> None:
    help_ = "for each step (%(default)g)"
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help=help_)


Command = tuple[Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]]
COMMANDS: dict[str, Command] = {
    "ask": (ask, "ask one question about one clip", _ask),
    "chat": (chat, "ask one question after the other, from the terminal or a pipe", _chat),
    "transcribe": (transcribe, "write down what is said in files and folders", _transcribe),
    "models": (models, "tell what is served, and what audio it takes", _models),
    "check": (check, "look whether the server is well; ends with 1 if it is not", _check),
}
