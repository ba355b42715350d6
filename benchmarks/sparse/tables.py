"""The tables as Markdown. Wrong results show no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.sparse.aims import aims
from benchmarks.sparse.cases import CASES
from benchmarks.sparse.found import Found, Key
from benchmarks.tables import UNSTEADY

Cell = Callable[[Found, Key], str]  # what stands in a column for a case and a size


def render(report: dict[str, Any]) -> str:
    """The whole generated part of the page."""
    machine, found = report["machine"], Found(report["results"])
    head = (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {report['torch']}, {report['asdex'].replace('==', ' ')}; float64, "
        f"{report['threads']} thread(s), {report['mode']} run, load average at its start {machine['load']:.1f}."
    )
    parts = [head]
    for title, columns in TABLES.items():
        parts += _table(title, columns, found)
    parts += _memory(found)
    parts += _aims(found) if report["mode"] == "full" else []
    reasons = found.reasons()
    return "\n\n".join([*parts, *(["\n".join(f"- {reason}" for reason in reasons)] if reasons else [])])


def _table(title: str, columns: dict[str, Cell], found: Found) -> list[str]:
    rows = []
    for key in found.keys:
        cells = [cell(found, key) for cell in columns.values()]
        if any(cells):
            rows.append(f"| {CASES[key[0]].title} | {key[1]:,} | " + " | ".join(cell or "-" for cell in cells) + " |")
    if not rows:
        return []
    heads = ["| | unknowns | " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) + 1)]
    return [f"### {title}", "\n".join([*heads, *rows])]


def _time(way: str, what: str) -> Cell:
    """The time, with a "~" where rounds lie far apart."""

    def cell(found: Found, key: Key) -> str:
        result = found.get(key, way, what)
        if result is None:
            return ""
        if result["status"] != "ok":
            return {"slow": result.get("reason", ""), "wrong": "wrong"}.get(result["status"], "fails")
        unsteady = result.get("most", 0) - result.get("least", 0) > UNSTEADY * result["seconds"]
        return ("~" if unsteady else "") + duration(result["seconds"])

    return cell


def _ratio(above: tuple[str, str], below: tuple[str, str]) -> Cell:
    def cell(found: Found, key: Key) -> str:
        ratio = found.ratio(key, above, below)
        return "" if ratio is None else factor(ratio)

    return cell


def _count(way: str, field: str) -> Cell:
    def cell(found: Found, key: Key) -> str:
        result = found.get(key, way, "color")
        return f"{result[field]:,}" if result and field in result else ""

    return cell


def _bound(found: Found, key: Key) -> str:
    return _count("hesse", "bound")(found, key) if CASES[key[0]].of == "jacobian" else ""


def _best_dense(found: Found, key: Key) -> str:
    ratios = [found.ratio(key, (way, "dense"), ("hesse", "prepared")) for way in ("reverse", "forward", "jax")]
    known = [ratio for ratio in ratios if ratio is not None]
    return factor(min(known)) if known else ""


TABLES: dict[str, dict[str, Cell]] = {
    "Detection": {
        "hesse": _time("hesse", "detect"),
        "asdex": _time("asdex", "detect"),
        "asdex / hesse": _ratio(("asdex", "detect"), ("hesse", "detect")),
    },
    "Coloring": {
        "entries": _count("hesse", "entries"),
        "hesse": _time("hesse", "color"),
        "asdex": _time("asdex", "color"),
        "colors, hesse": _count("hesse", "colors"),
        "colors, asdex": _count("asdex", "colors"),
        "longest row": _bound,
    },
    "First call": {
        "hesse": _time("hesse", "first"),
        "hesse, native": _time("native", "first"),
        "asdex, jitted": _time("asdex", "first"),
        "jacrev": _time("reverse", "dense"),
        "asdex / hesse": _ratio(("asdex", "first"), ("hesse", "first")),
        "jacrev / hesse": _ratio(("reverse", "dense"), ("hesse", "first")),
    },
    "Prepared call": {
        "the function": _time("hesse", "function"),
        "hesse": _time("hesse", "prepared"),
        "hesse, native": _time("native", "prepared"),
        "asdex, jitted": _time("asdex", "prepared"),
        "hesse / function": _ratio(("hesse", "prepared"), ("hesse", "function")),
        "hesse / asdex": _ratio(("hesse", "prepared"), ("asdex", "prepared")),
        "native / asdex": _ratio(("native", "prepared"), ("asdex", "prepared")),
    },
    "Against dense derivatives": {
        "hesse, prepared": _time("hesse", "prepared"),
        "jacrev": _time("reverse", "dense"),
        "jacfwd": _time("forward", "dense"),
        "JAX, jitted": _time("jax", "dense"),
        "jacrev / hesse": _ratio(("reverse", "dense"), ("hesse", "prepared")),
        "best dense / hesse": _best_dense,
    },
}


def _memory(found: Found) -> list[str]:
    rows = []
    for key in found.keys:
        for way in ("hesse", "asdex"):
            result = found.get(key, way, "whole")
            if result and result["status"] == "ok":
                sizes = f"{result['before'] / 2**30:.2f} GiB | {result['peak'] / 2**30:.2f} GiB"
                rows.append(f"| {CASES[key[0]].title} | {key[1]:,} | {way} | {duration(result['seconds'])} | {sizes} |")
    heads = ["| | unknowns | | from the function to its matrix | memory before | at its peak |", "|---|--:|---|--:|--:|--:|"]
    return ["### End to end, in a process of its own", "\n".join([*heads, *rows])] if rows else []


def _aims(found: Found) -> list[str]:
    """What was aimed at beside what was found; how many aims this run says nothing about."""
    rows, left = [], 0
    for aim in aims():
        value = aim.value(found)
        if value is None:
            left += 1
        else:
            rows.append(f"| {aim.title} | {aim.wanted} | {aim.show(value)} | {'reached' if aim.reached(value) else 'missed'} |")
    if not rows:
        return []
    table = "\n".join(["| aim | wanted | found | |", "|---|--:|--:|---|", *rows])
    return ["### Aims", table, *([f"{left} more could not be measured in this run."] if left else [])]


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds * 1e6)} µs"


def factor(ratio: float) -> str:
    """Three digits, with a comma in thousands."""
    return f"{ratio:,.0f}" if ratio >= 100 else digits(ratio)


def digits(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
