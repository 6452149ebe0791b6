"""Runs a command, and makes an exit status and a sentence of what goes wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from openai import APIError

from cli.options import parse
from cli.problem import Problem, told, warn

INTERRUPTED = 130  # as shells say it: 128 and the number of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. Reads the command line where `arguments` are not given."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end
        return 0
    except Problem as problem:
        warn(str(problem))
        return problem.status
    except (APIError, OSError) as error:
        warn(told(error, options.url))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return status
