"""`python -m tests.fuzz.api --seconds 60`: requests made of `/openapi.json`, right and wrong ones, by schemathesis.

Against `server.py` with the fake model. Ends with 1 where an answer was a 500, had a status, a header, a type or a body
that is not described, or was one that OpenAI's clients cannot take. Each such request is shown as a curl command, made
small.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from rich.console import Console
from rich.table import Table
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.openapi.requests import is_refused
from tests.schemas.check import Exchange
from tests.support.servers import run_server

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
NEVER = (500, 503)  # whatever is asked; both are described
FLAGS = ("--model", "fake", "--request-timeout", "1", "--max-body-bytes", "1000000", "--fetch-timeout", "2")
TIMEOUT_S = 30.0
EXAMPLES = 5  # of each operation and mode, in each round


@dataclass
class ApiFuzz:
    """Runs over all operations of a server, round after round."""

    base_url: str
    seed: int
    examples: int = EXAMPLES
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        load_all_checks()
        schema = schemathesis.openapi.from_dict(_narrowed(httpx.get(f"{self.base_url}/openapi.json").json()))
        self._operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
        assert self._operations, "the description has operations"

    def run(self, until: float, rounds: int | None = None) -> None:
        """Until a moment of time.monotonic(), or for so many rounds."""
        number = 0
        while time.monotonic() < until and number != rounds:
            random.Random(self.seed + number).shuffle(self._operations)  # time is short: each comes early once
            for operation in self._operations:
                for mode in MODES:
                    if time.monotonic() < until:
                        self._try(operation, mode, self.seed + number)
            number += 1

    def _try(self, operation: Any, mode: Any, seed: int) -> None:
        """Some requests to one operation."""

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            self._ask(case)

        try:
            with suppress(hypothesis.errors.Unsatisfiable):  # such as a wrong request to what takes none
                ask()
        except (Exception, BaseExceptionGroup) as failure:  # schemathesis' are no exceptions but groups
            told = "\n".join(map(str, getattr(failure, "exceptions", ())))
            self.failures.append(f"{mode.name.lower()} {operation.label}: {failure}\n{told}")

    def _ask(self, case: schemathesis.Case) -> None:
        response = case.call(base_url=self.base_url, timeout=TIMEOUT_S)
        self.statuses[response.status_code] += 1
        wrong = list(_wrong(case, response))
        assert not wrong, f"{response.status_code}: {'; '.join(wrong)}\n{case.as_curl_command()}"
        case.validate_response(response, checks=CHECKS)


def _narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that are refused, of which half of a request would consist, and its making be slow."""
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["properties"] = {name: each for name, each in schema["properties"].items() if not is_refused(each)}
    return document


def _wrong(case: schemathesis.Case, response: Any) -> Iterator[str]:
    """What is wrong with an answer, beside what schemathesis sees."""
    if response.status_code in NEVER:
        yield "not whatever is asked"
    headers = {name: ",".join(values) for name, values in response.headers.items()}
    exchange = Exchange(case.method, case.formatted_path, None, response.status_code, headers)
    exchange.feed(response.content)
    yield from exchange.end()


def table(fuzz: ApiFuzz) -> Table:
    rows = Table("status", "answers", title=f"seed {fuzz.seed}: {fuzz.statuses.total()} requests")
    for status, number in sorted(fuzz.statuses.items()):
        rows.add_row(str(status), str(number))
    return rows


def main() -> int:
    """The exit status: 0 where all is well."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.api", description="Requests made of the description.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the requests")
    options = parser.parse_args()
    with run_server(*FLAGS) as server:
        fuzz = ApiFuzz(server.base_url, options.seed)
        fuzz.run(time.monotonic() + options.seconds)
    console = Console()
    console.print(table(fuzz))
    for failure in fuzz.failures:
        console.print(failure, markup=False)
    return 1 if fuzz.failures else 0


if __name__ == "__main__":
    sys.exit(main())
