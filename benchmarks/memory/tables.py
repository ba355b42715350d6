"""The results as Markdown."""

from __future__ import annotations

from typing import Any

MIB = 2**20


def render(report: dict[str, Any]) -> str:
    """One row a quantity: what it took without a budget, and growth over budget for each budget."""
    machine = report["machine"]
    head = f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, one thread of torch."
    parts = report["parts"]
    titles = " | ".join(f"1/{part} of it" for part in parts)
    lines = [head, "", f"| quantity | no budget | {titles} | at the least named |", "|---|---|" + "---|" * len(parts) + "---|"]
    lines += [_row(result, parts) for result in report["results"]]
    return "\n".join(lines)


def _row(result: dict[str, Any], parts: list[int]) -> str:
    free = result["free"]
    if "growth" not in free:
        return f"| {result['name']} | {free['status']} |" + " |" * (len(parts) + 1)
    asked = [max(free["growth"] // part, 2**22) for part in parts]
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
