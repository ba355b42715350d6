"""The page of `hesse check`, and the same in the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hesse.check import CheckReport, Comparison, Finding
from hesse.core.errors import HesseError
from hesse.report.checking import Checked, Part
from hesse.report.page import render, write_page
from hesse.report.writing import write, write_seconds

_MARKS = {"ok": ("✓", "good", "green"), "wrong": ("✗", "bad", "bold red"), "undecided": ("?", "refused", "yellow"),
          "refused": ("!", "refused", "yellow")}  # fmt: skip
_WORDS = {"ok": "Confirmed.", "wrong": "Wrong:", "undecided": "Undecided.", "refused": "Refused."}
_MOST_FINDINGS = 40
_MOST_ROWS = 16  # of the table in the terminal


def write_check(checked: Checked, folder: str | Path) -> list[Path]:
    """Write ``check.html`` and ``check.json`` into a folder, which is made if need be; for each part in which something is
    wrong also ``reproduce.py``, ``reproduce-2.py``, ..., programs that show the first finding.

    Returns:
        the paths.
    """
    names = _programs(checked)
    sections = [_section(number, part, name) for number, (part, name) in enumerate(zip(checked.parts, names, strict=True))]
    page = render("check.html", about=checked.about, command="check", kind="derivative check", sections=sections)
    facts = {"about": checked.about, "parts": [_facts(part) for part in checked.parts]}
    written = [*write_page(folder, "check", page, facts)]
    for part, name in zip(checked.parts, names, strict=True):
        if name:
            written.append(Path(folder) / name)
            written[-1].write_text(part.code, encoding="utf-8")
    return written


def _programs(checked: Checked) -> list[str]:
    """The name of each part's program; empty for those without one."""
    names, number = [], 0
    for part in checked.parts:
        number += bool(part.code)
        names.append("" if not part.code else "reproduce.py" if number == 1 else f"reproduce-{number}.py")
    return names


def print_check(checked: Checked, console: Console) -> None:
    """Each part in the terminal: the verdict, what is wrong, which program shows it, and what was compared."""
    for part, program in zip(checked.parts, _programs(checked), strict=True):
        mark, _, color = _MARKS[part.verdict]
        console.print(Text(f"{mark} {part.title}: {headline(part)}", style=color))
        if part.report is None:
            console.print(Text(_refusal(part.error), style="dim"))
            continue
        for _, same in _grouped(part.report.findings[:_MOST_FINDINGS]):
            console.print(Text(f"  {same[0]}"))
            for finding in same[1:]:
                console.print(Text(f"    and at {finding.index}: {finding.value:.6g}, expected {finding.expected:.6g}"))
        if program:
            console.print(Text(f"  the program {program} shows it", style="bold"))
        console.print(_table(part.report))
        if (rest := len(part.report.compared) - _MOST_ROWS) > 0:
            verdicts = Counter(row.verdict for row in _worst_first(part.report.compared)[_MOST_ROWS:])
            words = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
            console.print(Text(f"  and {rest} more rows ({words}), in check.html and check.json", style="dim"))
        for note in part.report.notes:
            console.print(Text(f"  • {note}", style="dim"))


def _refusal(error: HesseError | None) -> str:
    """What the headline of a refusal leaves out."""
    return f"  found: {error.found}\n  remedy: {error.remedy}" if error is not None and error.found else f"  {error}"


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
    for row in _worst_first(report.compared)[:_MOST_ROWS]:
        table.add_row(Text(f"{_MARKS[row.verdict][0]} {row.check}"), row.leaf, write(row.count, "count"), _size(row.error),
                      _size(row.error_bar))  # fmt: skip
    return table


def _worst_first(rows: tuple[Comparison, ...]) -> list[Comparison]:
    order = {"wrong": 0, "undecided": 1, "ok": 2}
    return sorted(rows, key=lambda row: (order[row.verdict], -row.error if math.isfinite(row.error) else -math.inf))


def _size(value: float) -> str:
    return "0" if value == 0 else f"{value:.1g}" if math.isfinite(value) else "∞"


def _section(number: int, part: Part, program: str) -> dict[str, Any]:
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
        "code": part.code,
        "program": program,
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
        "reproducer": part.code,
    }
