"""The counts of planted bugs as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.checks.sets import Case
from benchmarks.checks.ways import TITLES

SET_TITLES = {"open": "the open set", "frozen": "the frozen set", "unseen": "the unseen set"}


def render(report: dict[str, Any]) -> str:
    """Everything that is between the markers of the page."""
    machine = report["machine"]
    results = [r | {"case": Case.parse(r["quantity"])} for r in report["results"]]
    ways = [way for way in TITLES if any(r["library"] == way for r in results)]
    parts = [
        f"{report['date']}; PyTorch {report['torch']}, {machine['processor']}, one thread; seconds are medians per program.",
        *(_overview(name, results, ways) for name in SET_TITLES if any(r["case"].set == name for r in results)),
        _by_kind(results, ways),
        _times(report.get("times", {})),
    ]
    return "\n\n".join(part for part in parts if part)


def counts(results: Sequence[dict[str, Any]]) -> Counter[str]:
    """Of the results of one checker: bugs and twins, found, told apart (found, the twin passed), false alarms, ends.

    A crash or a run out of time is no finding. On a sound twin it is no false alarm either, but the bug is not told apart.
    """
    found: Counter[str] = Counter()
    passed = {_pair(r) for r in results if not r["case"].planted and r["status"] == "passed"}
    for r in results:
        planted, status = r["case"].planted, r["status"]
        found["bugs" if planted else "twins"] += 1
        found[status] += 1
        if planted and status == "complaint":
            found["found"] += 1
            found["apart"] += _pair(r) in passed
        if not planted and status == "complaint":
            found["alarms"] += 1
    return found


def _pair(result: dict[str, Any]) -> tuple[str, str, str]:
    case = result["case"]
    return case.set, case.bug, case.dtype


def _overview(name: str, results: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    own = [r for r in results if r["case"].set == name]
    dtypes = [d for d in ("float64", "float32") if any(r["case"].dtype == d for r in own)]
    bugs = {r["case"].bug for r in own}
    kinds = {r["case"].kind for r in own}
    titles = [f"{d}: {what}" for d in dtypes for what in ("bugs found", "false alarms", "told apart", "crash, time out")]
    lines = [
        f"### Of {SET_TITLES[name]}: {len(bugs)} bugs of {len(kinds)} kinds",
        "",
        f"| checker | {' | '.join([*titles, 'seconds'])} |",
        f"| --- |{' ---: |' * (len(titles) + 1)}",
    ]
    for way in ways:
        cells: list[str] = []
        for dtype in dtypes:
            c = counts([r for r in own if r["library"] == way and r["case"].dtype == dtype])
            cells += [_share(c["found"], c["bugs"]), _share(c["alarms"], c["twins"]), _share(c["apart"], c["bugs"])]
            cells.append(f"{c['crash']}, {c['timeout']}")
        seconds = sorted(r["seconds"] for r in own if r["library"] == way)
        cells.append(f"{seconds[len(seconds) // 2]:.2g}" if seconds else "-")
        lines.append(f"| {TITLES[way]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "-"


def _by_kind(results: Sequence[dict[str, Any]], ways: Sequence[str]) -> str:
    planted = Counter(r["case"].kind for r in results if r["library"] == ways[0] and r["case"].planted) if ways else Counter()
    lines = [
        "### By kind, all sets and dtypes: bugs told apart from their sound twins",
        "",
        f"| kind | bugs | {' | '.join(TITLES[way] for way in ways)} |",
        f"| --- |{' ---: |' * (len(ways) + 1)}",
    ]
    for kind in sorted(planted):
        cells = [counts([r for r in results if r["library"] == way and r["case"].kind == kind])["apart"] for way in ways]
        lines.append(f"| {kind} | {planted[kind]} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _times(times: dict[str, Any]) -> str:
    if not times:
        return ""
    rows = [f"| {name} | {seconds:.3g} |" for name, seconds in times.items()]
    return "\n".join(["### Time of a check", "", "| check | seconds |", "| --- | ---: |", *rows])


def missed(report: dict[str, Any], ways: Sequence[str], name: str = "open") -> str:
    """For each of these checkers: the bugs of a set that it misses, and the sound twins that it complains of."""
    lines: list[str] = []
    for way in ways:
        own = [r | {"case": Case.parse(r["quantity"])} for r in report["results"] if r["library"] == way]
        own = [r for r in own if r["case"].set == name]
        if not own:
            continue
        wrong = [r for r in own if r["status"] != ("complaint" if r["case"].planted else "passed")]
        c = counts(own)
        lines += ["", f"## {TITLES[way]}: {c['found']} of {c['bugs']} found, {c['alarms']} of {c['twins']} twins alarm", ""]
        for planted, title in ((False, "sound twins that do not pass"), (True, "bugs not found")):
            lines.append(f"{title}:")
            chosen = [r for r in wrong if r["case"].planted == planted]
            lines += [
                f"- {r['case'].kind}: {r['quantity']}: {r['status']} {r['reason']} ({r['seconds']:.1f} s)" for r in chosen
            ]
            lines.append("")
    return "\n".join(lines)
