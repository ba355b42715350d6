"""The tables as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.convolutions.aims import Found, aims
from benchmarks.convolutions.cases import CASES, QUICK, TITLES, Case
from benchmarks.sparse.tables import duration, factor

Result = dict[str, Any]


def render(report: dict[str, Any]) -> str:
    """The whole generated part of the page."""
    machine = report["machine"]
    head = (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {report['torch']}, SciPy {report['scipy']}, deepinv {report['deepinv']}; "
        f"{report['threads']} thread(s), {report['mode']} run, load average at its start {machine['load']:.1f}."
    )
    cases = QUICK if report["mode"] == "quick" else CASES
    parts = [head]
    for name, case in cases.items():
        results = [result for result in report["results"] if result["case"] == name]
        if results:
            parts += [f"### {case.title}", _table(case, results), *_known(results)]
    parts += _aims(report["results"]) if report["mode"] == "full" else []
    reasons = [f"- {cases[r['case']].title}, {TITLES[r['way']]}: {r['reason']}" for r in report["results"] if "reason" in r]
    return "\n\n".join([*parts, *(["\n".join(reasons)] if reasons else [])])


def _table(case: Case, results: list[Result]) -> str:
    if case.padding_mode == "circular":
        heads = ["", "once", f"{case.batch} pictures", "the convolution", "ratio", "relative error", "backward error"]
        fields = [_seconds("prepare"), _seconds("solve"), _seconds("forward"), _ratio, _error("error"), _error("backward")]
    else:
        error = "away from dense" if case.rtol else "relative error"
        heads = ["", "once", "first solution", "further ones", "steps", error, "residual", "backward error", "memory"]
        errors = [_error(field) for field in ("error", "residual", "backward")]
        fields = [*(_seconds(field) for field in ("prepare", "first", "solve")), _steps, *errors, _memory]
    rows = []
    for result in results:
        cells = [cell(result) for cell in fields] if result["status"] == "ok" else ["fails", *["-"] * (len(fields) - 1)]
        rows.append(f"| {TITLES[result['way']]} | " + " | ".join(cells) + " |")
    return "\n".join(["| " + " | ".join(heads) + " |", "|---|" + "--:|" * len(fields), *rows])


def _seconds(field: str) -> Any:
    return lambda result: duration(result[field]) if result.get(field, 0) > 1e-4 else "-"


def _error(field: str) -> Any:
    return lambda result: f"{result[field]:.1e}" if field in result else "-"


def _steps(result: Result) -> str:
    steps = result.get("steps", "-")
    return f"{steps:,}" if isinstance(steps, int) else steps


def _ratio(result: Result) -> str:
    return factor(result["ratio"])


def _memory(result: Result) -> str:
    return f"{(result['peak'] - result['before']) / 2**30:.2f} GiB"


def _known(results: list[Result]) -> list[str]:
    """What hesse says about the kernel."""
    lines = []
    for result in results:
        if "condition" in result:
            dropped = f" {result['truncated']} singular values are dropped." if result.get("truncated") else ""
            once = (
                f" One solve with the factors, not refined: {duration(result['once_seconds'])}."
                if "once_seconds" in result
                else ""
            )
            lines.append(
                f"{TITLES[result['way']]} (method `{result['method']}`): condition {result['condition']:.1e}, "
                f"found in {duration(result['condition_seconds'])}.{dropped}{once}"
            )
    return lines


def _aims(results: list[Result]) -> list[str]:
    found, rows = Found(results), []
    for aim in aims():
        value = aim.value(found)
        if value is not None:
            rows.append(f"| {aim.title} | {aim.wanted} | {aim.show(value)} | {'reached' if aim.reached(value) else 'missed'} |")
    return ["### Aims", "\n".join(["| aim | wanted | found | |", "|---|--:|--:|---|", *rows])] if rows else []
