"""Results as Markdown: a table a model, a row a quantity, a column a library. Wrong results show no time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.quantities import MODEL_TITLES, TITLES

LIBRARIES = {
    "hesse": "hesse",
    "torch_func": "torch.func",
    "curvlinops": "curvlinops",
    "backpack": "BackPACK",
    "opacus": "Opacus",
}
UNSTEADY = 0.25  # where the quartiles of the rounds differ by more than this part, the figure gets a "~"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def render(report: dict[str, Any]) -> str:
    """The whole generated part of the page."""
    machine = report["machine"]
    head = (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}; {report['threads']} thread(s) of torch, float32, {report['mode']} run, "
        f"load average at its start {machine['load']:.1f}."
    )
    versions = ", ".join(
        f"{LIBRARIES[name]} {about['version']}" for name, about in report["libraries"].items() if "version" in about
    )
    parts = [head + (f" Versions: {versions}." if versions else "")]
    reasons: list[str] = []
    parts += [_table(report, model, reasons) for model in report["models"]]
    if reasons:
        parts.append("\n".join(f"- ({_letter(k)}) {reason}" for k, reason in enumerate(reasons)))
    if report.get("import_time"):
        parts.append(_import_time(report["import_time"]))
    return "\n\n".join(parts)


def write_between_markers(page: Path, text: str) -> None:
    """Replace the generated part of `page`."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def _table(report: dict[str, Any], model: str, reasons: list[str]) -> str:
    results = {(r["library"], r["quantity"]): r for r in report["results"] if r["model"] == model}
    offered = {quantity for (_, quantity), result in results.items() if result["status"] != "absent"}
    quantities = [q for q in TITLES if q in offered]
    names = [n for n in LIBRARIES if any(n == name and r["status"] != "absent" for (name, _), r in results.items())]
    lines = [f"### {MODEL_TITLES[model]}", "", _unit_line(list(results.values())), ""]
    lines.append("| gradients (peak memory) | " + " | ".join(LIBRARIES[n] for n in names) + " |")
    lines.append("|---|" + "---|" * len(names))
    for quantity in quantities:
        row = [results.get((name, quantity), {"status": "absent"}) for name in names]
        best = min((r["ratio"] for r in row if r["status"] == "ok"), default=None)
        cells = [_cell(r, best, reasons, name) for r, name in zip(row, names, strict=True)]
        lines.append(f"| {TITLES[quantity]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _unit_line(results: Sequence[dict[str, Any]]) -> str:
    timed = [r for r in results if r["status"] == "ok"]
    if not timed:
        return "Nothing could be timed."
    unit = statistics.median(r["gradient_seconds"] for r in timed)
    memory = [r["gradient_memory"] for r in timed if r["gradient_memory"] is not None]
    grows = f" and grows the process by {_mib(statistics.median(memory))}" if memory else ""
    return f"One gradient takes {unit * 1e3:.3g} ms{grows} (medians over all cells of this table)."


def _cell(result: dict[str, Any], best: float | None, reasons: list[str], name: str) -> str:
    status = result["status"]
    if status == "absent":
        return "-"
    if status == "ok":
        ratio = f"{result['ratio']:.2f}" if result["ratio"] < 10 else f"{result['ratio']:.0f}"
        ratio = f"**{ratio}**" if result["ratio"] == best else ratio
        ratio = f"~{ratio}" if _unsteady(result) else ratio
        return ratio if result["memory"] is None else f"{ratio} ({_mib(result['memory'])})"
    if status == "wrong":
        return f"wrong: relative error {result['error']:.1g}"
    reason = f"{LIBRARIES[name]}: {result['reason']}"
    if reason not in reasons:
        reasons.append(reason)
    return f"{status} ({_letter(reasons.index(reason))})"


def _unsteady(result: dict[str, Any]) -> bool:
    low, high = result["ratio_quartiles"]
    return high - low > UNSTEADY * result["ratio"]


def _letter(k: int) -> str:
    return chr(ord("a") + k) if k < 26 else f"a{k}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB"


def _import_time(times: dict[str, float]) -> str:
    return (
        f"### Import\n\n`import hesse` takes {times['hesse'] * 1e3:.0f} ms "
        f"beyond the {times['torch'] * 1e3:.0f} ms of `import torch` "
        f"(medians over {times['repeats']:.0f} fresh processes)."
    )
