"""The results as Markdown."""

from __future__ import annotations

from typing import Any

MIB = 2**20
LEAST_BUDGET = 2**23
"""Bytes: below, it decides which pages of its libraries a process has touched before."""
SAME = 1e-4
"""How far a result under a budget may be from that without one, relative to its norm; computed in float32 mostly."""

_DRAWN = (0.5, "an estimate, from other random vectors where fewer fit")
_CLOSE = (5e-3, "directions of eigenvalues that are close to each other, in float32 or to the tolerance asked for")
LOOSER: dict[str, tuple[float, str]] = {
    **dict.fromkeys(("operator_spectrum", "flat_spectrum", "flat_diagonal_xdiag"), _DRAWN),
    **dict.fromkeys(("ekfac", "ekfac_ggn", "ekfac_empirical_reduce", "flat_eigsh"), _CLOSE),
}
"""Quantities that may be further off, how far, and why."""


def render(report: dict[str, Any]) -> str:
    """One row a quantity: what it took without a budget, and growth over budget for each budget."""
    machine = report["machine"]
    head = f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, one thread of torch."
    parts = report["parts"]
    titles = " | ".join(f"1/{part} of it" for part in parts)
    lines = [head, "", f"| quantity | no budget | {titles} | at the least named |", "|---|---|" + "---|" * len(parts) + "---|"]
    lines += [_row(result, parts) for result in report["results"]]
    return "\n".join([*lines, "", _agreement(report)])


def others(report: dict[str, Any]) -> dict[str, float]:
    """The quantities whose results under a budget are other ones than without, and by how much at most."""
    return {name: worst for name, worst in _differences(report).items() if not worst <= LOOSER.get(name, (SAME, ""))[0]}


def _differences(report: dict[str, Any]) -> dict[str, float]:
    """The largest difference of each quantity that was computed under a budget; NaN where one is."""
    found: dict[str, float] = {}
    for result in report["results"]:
        seen = [b["difference"] for b in result["budgets"] if b["status"] == "done"]
        if seen:
            found[result["name"]] = next((d for d in seen if d != d), max(seen))
    return found


def _agreement(report: dict[str, Any]) -> str:
    """What the comparison with the results without a budget has shown."""
    found, wrong = _differences(report), others(report)
    if wrong:
        return f"Results differ by more than {SAME:.0e}: " + ", ".join(f"{name} ({d:.1e})" for name, d in wrong.items()) + "."
    if not found:
        return "Nothing was computed under a budget."
    reasons: dict[str, list[str]] = {}
    for name in sorted(found.keys() & LOOSER.keys()):
        reasons.setdefault(LOOSER[name][1], []).append(f"{name} ({found.pop(name):.1e})")
    worst = max(found, key=lambda name: found[name], default="")
    lines = [f"The largest relative difference from a result without a budget: {found[worst]:.1e} ({worst})."] if worst else []
    return "\n".join(lines + [f"{', '.join(names)}: {reason}." for reason, names in reasons.items()])


def _row(result: dict[str, Any], parts: list[int]) -> str:
    free = result["free"]
    if "growth" not in free:
        return f"| {result['name']} | {free['status']} |" + " |" * (len(parts) + 1)
    asked = [max(free["growth"] // part, LEAST_BUDGET) for part in parts]
    cells = [next((_cell(b, free) for b in result["budgets"] if b["budget"] == budget), "") for budget in asked]
    others = [_cell(b, free) + f" of {b['budget'] / MIB:.0f} MiB" for b in result["budgets"] if b["budget"] not in asked]
    return f"| {result['name']} | {free['growth'] / MIB:.0f} MiB | {' | '.join(cells)} | {', '.join(others)} |"


def _cell(found: dict[str, Any], free: dict[str, Any]) -> str:
    if found["status"] == "refused":
        return f"refused ({found['least'] / MIB:.0f} MiB)"
    if found["status"] != "done":
        return found["status"]
    slower = found["seconds"] / max(free["seconds"], 1e-9)
    return f"{found['growth'] / found['budget']:.2f} ({slower:.1f}x time)"
