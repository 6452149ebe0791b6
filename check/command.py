"""The command line: `python -m models.check X` checks an adapter, `--golden FILE` records its answers instead, and with
`--against URL` a server is asked them again. What is not said here is taken from the server's own settings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import openai
from pydantic import ValidationError
from rich.console import Console

from check.golden import record, replay
from check.run import Options, check, loaded
from check.tables import comparisons_as_json, print_comparisons, print_report, report_as_json
from config import Settings, configure_logging
from errors import EardrumError

DESCRIPTION = "Does an adapter keep the server's promises? Ends with 1 where it does not, 2 where it cannot be told."
SETTINGS = (
    "device",
    "dtype",
    "attn_implementation",
    "adapter",
    "quantization",
    "revision",
    "cards_dir",
)  # the server's, under the same names
WIDTH = 120  # characters, where no terminal tells


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. Reads the command line where `arguments` are not given."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.model is None and not (options.golden and options.against):
        parser.error("name what to check, or --golden FILE and --against URL")
    if options.max_new_tokens < 2:
        parser.error("--max-new-tokens: an answer of 2 tokens is the shortest that can be cut")
    if options.against and not options.golden:
        parser.error("--against goes with --golden FILE")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    try:
        return _run(options, console)
    except (OSError, ValueError, RuntimeError, EardrumError, openai.OpenAIError) as error:
        where = f" ({options.against})" if isinstance(error, openai.OpenAIError) else ""
        sys.stderr.write(f"models.check: {error}{where}\n")
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m models.check", description=DESCRIPTION)
    parser.add_argument("model", nargs="?", help=Settings.model_fields["model"].description)
    for name in SETTINGS:
        parser.add_argument(_flag(name), help=Settings.model_fields[name].description)
    parser.add_argument("--trust-remote-code", action="store_true", default=None, help="run a checkpoint's own code")
    parser.add_argument("--audio", type=Path, metavar="FILE", help="speech to hear; sweeps and noise where not given")
    parser.add_argument("--max-new-tokens", type=int, default=Options.max_tokens, help="of each answer (%(default)s)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="record requests and answers, or replay them")
    parser.add_argument("--against", metavar="URL", help="replay FILE there: an OpenAI base address, with /v1")
    parser.add_argument("--model-name", help="what the server calls its model; its first where not given")
    parser.add_argument("--api-key", default="none", help="the server's")
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _run(options: argparse.Namespace, console: Console) -> int:
    if options.golden is None:
        return _check(options, console)
    if options.model is not None:
        subject, _ = loaded(_settings(options), _options(options))
        count = record(subject, options.golden)
        if not count:
            raise ValueError("the model refuses all that was asked, so nothing is recorded")
        sys.stderr.write(f"{count} requests recorded in {options.golden}\n")
    return _replay(options, console) if options.against else 0


def _settings(options: argparse.Namespace) -> Settings:
    """Raises `ValueError`."""
    given = {name: getattr(options, name) for name in ("model", *SETTINGS, "trust_remote_code")}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise ValueError("; ".join(f"{_flag(str(e['loc'][0]))}: {e['msg']}" for e in error.errors())) from None
    configure_logging(settings.log_level)
    return settings


def _options(options: argparse.Namespace) -> Options:
    return Options(options.audio, options.max_new_tokens)


def _check(options: argparse.Namespace, console: Console) -> int:
    with Console(stderr=True).status("") as progress:
        report = check(_settings(options), _options(options), progress.update)
    if options.json:
        sys.stdout.write(report_as_json(report) + "\n")
    else:
        print_report(console, report)
    return 0 if report.is_good else 1


def _replay(options: argparse.Namespace, console: Console) -> int:
    comparisons = replay(options.golden, options.against, options.api_key, options.model_name)
    if options.json:
        sys.stdout.write(comparisons_as_json(comparisons) + "\n")
    else:
        print_comparisons(console, comparisons)
    return 0 if all(each.is_equal for each in comparisons) else 1
