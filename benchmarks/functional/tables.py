"""The three tables as Markdown. Wrong results show no time."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.functional.rows import COLUMNS, OUTCOMES, TITLES
from benchmarks.tables import UNSTEADY

Results = dict[tuple[str, str], dict[str, Any]]  # by row and column


def render(report: dict[str, Any]) -> str:
    """The whole generated part of the page."""
    machine = report["machine"]
    head = (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {report['torch']}; float32, {report['mode']} run, "
        f"load average at its start {machine['load']:.1f}."
    )
    notes: list[str] = []
    parts = [head]
    for table in report["tables"]:
        results = {(r["quantity"], r["library"]): r for r in table["results"]}
        parts += {"micro": _micro, "steps": _steps, "suite": _suite}[table["model"]](results, table, notes)
    parts += ["\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))] if notes else []
    return "\n\n".join(parts)


def _micro(results: Results, table: dict[str, Any], notes: list[str]) -> list[str]:
    title = f"### Small derivatives: microseconds a call, {_threads(table)}"
    warm = _table("", results, table, lambda r, unit: _with_notes(_microseconds, r, unit, notes))
    return [title, warm, *_cold(results, table)]


def _steps(results: Results, table: dict[str, Any], notes: list[str]) -> list[str]:
    title = f"### Training steps: time in units of the hand-written step, {_threads(table)}"
    warm = _table("microseconds by hand", results, table, lambda r, unit: _with_notes(_ratio, r, unit, notes))
    return [title, warm, *_cold(results, table)]


def _cold(results: Results, table: dict[str, Any]) -> list[str]:
    if not table["cold"]:
        return []
    return ["First call, seconds:", _table("", results, table, lambda r, _: f"{r['cold']:.2g}" if r["status"] == "ok" else "-")]


def _table(corner: str, results: Results, table: dict[str, Any], cell: Callable[..., str]) -> str:
    """Rows of the table's quantities; with `corner`, a column that tells the unit."""
    columns = [c for c in COLUMNS[table["model"]] if any(column == c for _, column in results)]
    titles = [COLUMNS[table["model"]][c] for c in columns]
    lines = ["| | " + (f"{corner} | " if corner else "") + " | ".join(titles) + " |"]
    lines.append("|---|" + "---|" * (len(columns) + bool(corner)))
    for row in table["quantities"]:
        found = [results.get((row, column), {"status": "absent"}) for column in columns]
        timed = [r["unit_seconds"] for r in found if r["status"] == "ok"]
        unit = statistics.median(timed) if timed else 0.0
        cells = [cell(r, unit) for r in found]
        first = [_digits(unit * 1e6)] if corner else []
        lines.append(f"| {TITLES[row]} | " + " | ".join([*first, *cells]) + " |")
    return "\n".join(lines)


def _microseconds(result: dict[str, Any], unit: float) -> str:
    return _steadied(_digits(result["ratio"] * unit * 1e6), result)


def _ratio(result: dict[str, Any], _: float) -> str:
    return _steadied(f"{result['ratio']:.2f}", result)


def _steadied(text: str, result: dict[str, Any]) -> str:
    low, high = result["ratio_quartiles"]
    return f"~{text}" if high - low > UNSTEADY * result["ratio"] else text


def _with_notes(show: Callable[..., str], result: dict[str, Any], unit: float, notes: list[str]) -> str:
    """What a cell shows, and the numbers of the remarks on it."""
    status = result["status"]
    if status == "absent":
        return "-"
    text = show(result, unit) if status == "ok" else {"failed": "fails", "wrong": "wrong"}[status]
    numbers: list[int] = []
    for note in result["notes"] if status == "ok" else [result["reason"]]:
        if note not in notes:
            notes.append(note)
        numbers.append(notes.index(note) + 1)
    return text + (f" ({', '.join(map(str, numbers))})" if numbers else "")


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _threads(table: dict[str, Any]) -> str:
    return "one thread" if table["threads"] == 1 else f"{table['threads']} threads"


def _suite(results: Results, table: dict[str, Any], notes: list[str]) -> list[str]:
    """Counts: a row for each order of derivative and column of the report, a column for each outcome."""
    orders = {q.split(":")[1]: None for q in table["quantities"]}
    columns = [c for c in COLUMNS["suite"] if any(column == c for _, column in results)]
    lines = ["| | | " + " | ".join(OUTCOMES.values()) + " |", "|---|---|" + "---|" * len(OUTCOMES)]
    for order, column in itertools.product(orders, columns):
        found = [r["status"] for (q, c), r in results.items() if c == column and q.endswith(f":{order}")]
        counts = [str(found.count(status)) for status in OUTCOMES]
        lines.append(f"| {TITLES[order]} | {COLUMNS['suite'][column]} | " + " | ".join(counts) + " |")
    programs = sum(1 for q in table["quantities"] if q.endswith(":first"))
    return [f"### {programs} derivative programs", "\n".join(lines)]
