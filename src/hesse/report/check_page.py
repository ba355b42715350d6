"""The page of `hesse check`, and the same in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from hesse.check import CheckReport, Comparison, Finding
from hesse.report.checking import Checked, Part
from hesse.report.page import render, write_page
from hesse.report.writing import write, write_seconds

_MARKS = {"ok": ("✓", "good", "green"), "wrong": ("✗", "bad", "bold red"), "undecided": ("?", "refused", "yellow"),
          "refused": ("!", "refused", "yellow")}  # fmt: skip
_WORDS = {"ok": "Confirmed.", "wrong": "Wrong:", "undecided": "Undecided.", "refused": "Refused."}
_MOST_FINDINGS = 40


def write_check(checked: Checked, folder: str | Path) -> tuple[Path, Path]:
    """Write ``check.html`` and ``check.json`` into a folder, which is made if need be.

    Returns:
        both paths.
    """
    page = render("check.html", about=checked.about, command="check", kind="derivative check",
                  sections=[_section(number, part) for number, part in enumerate(checked.parts)])  # fmt: skip
    return write_page(folder, "check", page, {"about": checked.about, "parts": [_facts(part) for part in checked.parts]})


def print_check(checked: Checked, console: Console) -> None:
    """Each part in the terminal: the verdict, what is wrong, how to see it without hesse, and what was compared."""
    for part in checked.parts:
        mark, _, color = _MARKS[part.verdict]
        console.print(Text(f"{mark} {part.title}: {headline(part)}", style=color))
        if part.report is None:
            console.print(Text(f"  {part.error}", style="dim"))
            continue
        for _, same in _grouped(part.report.findings[:_MOST_FINDINGS]):
            console.print(Text(f"  {same[0]}"))
            for finding in same[1:]:
                console.print(Text(f"    and at {finding.index}: {finding.value:.6g}, expected {finding.expected:.6g}"))
        if part.report.reproducer:
            console.print(Syntax(part.report.reproducer, "python", theme="ansi_dark", background_color="default"))
        console.print(_table(part.report))
        for note in part.report.notes:
            console.print(Text(f"  • {note}", style="dim"))


def headline(part: Part) -> str:
    """The outcome of a part in one sentence or two."""
    if part.report is None:
        return f"{_WORDS['refused']} {getattr(part.error, 'asked', '')}"
    report, word = part.report, _WORDS[part.verdict]
    kinds = len({row.check for row in report.compared})
    tested = f"{kinds} {'kind' if kinds == 1 else 'kinds'} of comparison, {report.evaluations} evaluations"
    if report.findings:
        first = report.findings[0]
        others = len(_grouped(report.findings)) - 1
        more = f" And {others} more." if others else ""
        leaf = f" of {first.leaf}" if first.leaf else ""
        return f"{word} {first.check}{leaf}, {first.diagnosis}.{more} {tested}."
    return f"{word} {tested}."


def _grouped(findings: Sequence[Finding]) -> list[tuple[Finding, list[Finding]]]:
    """Findings that say the same of several elements, under the first of them."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.check, finding.leaf, finding.diagnosis), []).append(finding)
    return [(group[0], group) for group in groups.values()]


def _table(report: CheckReport) -> Table:
    table = Table(title_justify="left")
    for column in ("compared", "leaf", "count", "worst", "error bar"):
        table.add_column(column, justify="left" if column in ("compared", "leaf") else "right", overflow="fold")
    for row in _worst_first(report.compared)[:_MOST_FINDINGS]:
        table.add_row(Text(f"{_MARKS[row.verdict][0]} {row.check}"), row.leaf, write(row.count, "count"), _size(row.error),
                      _size(row.error_bar))  # fmt: skip
    return table


def _worst_first(rows: tuple[Comparison, ...]) -> list[Comparison]:
    order = {"wrong": 0, "undecided": 1, "ok": 2}
    return sorted(rows, key=lambda row: order[row.verdict])


def _size(value: float) -> str:
    return "0" if value == 0 else f"{value:.1g}" if math.isfinite(value) else "∞"


def _section(number: int, part: Part) -> dict[str, Any]:
    report = part.report
    mark, status, _ = _MARKS[part.verdict]
    rows = [] if report is None else _worst_first(report.compared)
    return {
        "key": f"part-{number}",
        "title": part.title,
        "question": part.question,
        "mark": mark,
        "status": status,
        "headline": headline(part),
        "cost": f"{report.evaluations} evaluations · {write_seconds(part.seconds)}" if report else write_seconds(part.seconds),
        "error": part.error,
        "findings": [] if report is None else _grouped(report.findings[:_MOST_FINDINGS]),
        "hidden": 0 if report is None else max(0, len(report.findings) - _MOST_FINDINGS),
        "reproducer": "" if report is None else report.reproducer,
        "rows": [(row, _size(row.error), _size(row.error_bar)) for row in rows],
        "notes": () if report is None else report.notes,
    }


def _facts(part: Part) -> dict[str, Any]:
    facts: dict[str, Any] = {"title": part.title, "verdict": part.verdict, "headline": headline(part), "seconds": part.seconds}
    if part.report is None:
        error = part.error
        return {**facts, "error": {"kind": type(error).__name__, "message": str(error)}}
    report = part.report
    return {
        **facts,
        "level": report.level,
        "evaluations": report.evaluations,
        "findings": [vars(finding) for finding in report.findings],
        "compared": [vars(row) for row in report.compared],
        "notes": list(report.notes),
        "reproducer": report.reproducer,
    }
