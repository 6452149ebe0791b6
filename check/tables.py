"""What was found, for a terminal or for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from check.golden import Comparison
from check.outcome import Status
from check.run import Report

STYLES: dict[Status, str] = {"pass": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def print_report(console: Console, report: Report) -> None:
    table = Table("check", "", "what was seen", "what to do", title=escape(report.model), show_lines=True)
    for name, outcome in report.outcomes:
        status = f"[{STYLES[outcome.status]}]{outcome.status}[/]"
        table.add_row(name, status, escape(outcome.seen), escape(outcome.advice))
    console.print(table)
    counts = [(status, sum(outcome.status == status for _, outcome in report.outcomes)) for status in STYLES]
    console.print(", ".join(f"{count} {status}" for status, count in counts if count))


def report_as_json(report: Report) -> str:
    checks = [{"check": name, **asdict(outcome)} for name, outcome in report.outcomes]
    return _json({"model": report.model, "passed": report.is_good, "checks": checks})


def print_comparisons(console: Console, comparisons: Sequence[Comparison]) -> None:
    table = Table("request", "", "recorded", "answered", show_lines=True)
    for each in comparisons:
        status = "[green]equal[/]" if each.is_equal else "[bold red]differs[/]"
        recorded = f"{each.golden.answer} ({each.golden.finish_reason})"
        table.add_row(escape(each.title), status, escape(recorded), "" if each.is_equal else escape(_answered(each)))
    console.print(table)
    console.print(f"{sum(each.is_equal for each in comparisons)} of {len(comparisons)} are equal")


def _answered(comparison: Comparison) -> str:
    return comparison.error or f"{comparison.answer} ({comparison.finish_reason})"


def comparisons_as_json(comparisons: Sequence[Comparison]) -> str:
    return _json({"equal": all(each.is_equal for each in comparisons), "requests": list(map(_compared, comparisons))})


def _compared(each: Comparison) -> dict[str, Any]:
    return {
        "request": each.title,
        "equal": each.is_equal,
        "recorded": each.golden.answer,
        "recorded_finish_reason": each.golden.finish_reason,
        "answered": each.answer,
        "finish_reason": each.finish_reason,
        "error": each.error,
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
