"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.compiled.cases import OPERATORS
from benchmarks.compiled.rows import OURS, PEER, QUANTITIES

COLUMNS = [
    "model", "product", "one gradient", "direct, in gradients", "replay faster", "native faster", "to record", "to compile",
    "products until replay pays", "until native pays",
]  # fmt: skip
ROWS = [
    "model", "quantity", "one gradient", "direct, in gradients", "replay", "native", "vmap(grad)", "vmap(grad), torch.compile",
    "to record", "to compile", "torch.compile takes", "calls until replay pays", "until native pays",
]  # fmt: skip


def render(report: dict[str, Any]) -> str:
    """All tables that were measured."""
    parts = []
    if "products" in report:
        parts += ["### Products of kept graphs", products_table(report["products"])]
    if "rows" in report:
        parts += ["### Per-sample quantities", rows_table(report["rows"])]
    return "\n\n".join(parts)


def _head(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
        f"torch {report['torch']}; float32, one thread, medians of processor time, load average at the start "
        f"{machine['load']:.1f}."
    )


def _title(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def products_table(report: dict[str, Any]) -> str:
    """Products of kept graphs."""
    lines = [
        _head(report),
        "",
        *_title(COLUMNS),
    ]
    for name, kinds in report["cases"].items():
        for kind, r in kinds.items():
            gains = [f"{r['direct'] / r[way]:.1f}x" for way in ("replay", "native")]
            took = f"{r['replay_seconds'] * 1e3:.0f} ms", f"{r['native_seconds']:.1f} s"
            units = f"{r['gradient'] * 1e6:.0f} µs", f"{r['direct'] / r['gradient']:.2f}"
            cells = [name, OPERATORS[kind], *units, *gains, *took, pays(r, "replay"), pays(r, "native")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pays(result: dict[str, float], way: str) -> str:
    """How many products, or calls, win back what recording and compiling took."""
    if way not in result:
        return "-"
    gain = result["direct"] - result[way]
    if result["direct"] < 1.05 * result[way]:
        return "never"
    count = result[f"{way}_seconds"] / gain
    return f"{count:.0f}" if count < 100 else f"{round(count, -2):,.0f}" if count >= 1000 else f"{round(count, -1):.0f}"


def _took(result: dict[str, float], way: str, scale: float, unit: str, digits: int) -> str:
    seconds = result.get(f"{way}_seconds")
    return "-" if seconds is None else f"{scale * seconds:.{digits}f} {unit}"


def rows_table(report: dict[str, Any]) -> str:
    """Per-sample quantities: times in gradients of the same model and batch."""
    lines, failures = [_head(report), "", *_title(ROWS)], []
    for name, kinds in report["cases"].items():
        for kind, r in kinds.items():
            unit = r["gradient"]
            times = [f"{r[way] / unit:.2f}" if way in r else "fails" for way in ("direct", "replay", "native", *PEER)]
            failures += [r[f"{way}_fails"] for way in (*OURS, *PEER) if f"{way}_fails" in r]
            took = [_took(r, "replay", 1e3, "ms", 0), _took(r, "native", 1, "s", 1)]
            peer = _took(r, "compiled_vmap", 1, "s", 1)
            cells = [name, QUANTITIES[kind], f"{unit * 1e6:.0f} µs", *times, *took, peer, pays(r, "replay"), pays(r, "native")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\n*fails*: {reason}" for reason in dict.fromkeys(failures)]
    return "\n".join(lines)
