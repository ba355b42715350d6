"""Three tables as Markdown: faults by phase, harmless programs, costs; and what was missed, by name."""

from __future__ import annotations

from typing import Any

from benchmarks.nonfinite import steps
from benchmarks.nonfinite.sets import BENIGN, FAULTS, FROZEN
from benchmarks.nonfinite.ways import TITLES
from benchmarks.tables import UNSTEADY

Result = dict[str, Any]
OUTCOMES = {"right": "right line", "wrong": "wrong line", "silent": "not found", "failed": "fails"}
PHASES = ("data", "forward", "backward", "double backward", "optimizer")


def render(report: dict[str, Any]) -> str:
    """The whole generated part of the page."""
    machine = report["machine"]
    head = (
        f"{report['date']}; {machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"Python {machine['python']}, torch {report['torch']}; one thread, load average at its start {machine['load']:.1f}."
    )
    parts = [head]
    for table in report["tables"]:
        parts += {"faults": _faults, "benign": _benign, "costs": _costs}[table["model"]](table)
    return "\n\n".join(parts)


def _faults(table: dict[str, Any]) -> list[str]:
    rows = {"all": lambda name: True, "of these: frozen": lambda name: name in FROZEN}
    rows |= {f"cause in: {phase}": lambda name, phase=phase: FAULTS[name].phases[0] == phase for phase in PHASES}
    counts = [f"{len(table['quantities'])} faults", "Right line, of the faults of each kind:"]
    head, rule = _heads(table, "faults")
    lines = [head, rule]
    for title, chosen in rows.items():
        names = [name for name in table["quantities"] if chosen(name)]
        if names:
            cells = [_share(table, way, names) for way in _ways(table)]
            lines.append(f"| {title} | {len(names)} | " + " | ".join(cells) + " |")
    outcomes = ["| | " + " | ".join(OUTCOMES.values()) + " |", "|---|" + "---:|" * len(OUTCOMES)]
    for way in _ways(table):
        found = [r["status"] for r in table["results"] if r["library"] == way]
        outcomes.append(f"| {TITLES[way]} | " + " | ".join(str(found.count(status)) for status in OUTCOMES) + " |")
    missed = [_missed(table, way) for way in _ways(table) if way != "anomaly"]
    return [f"### {counts[0]}", counts[1], "\n".join(lines), "All outcomes:", "\n".join(outcomes), *filter(None, missed)]


def _share(table: dict[str, Any], way: str, names: list[str]) -> str:
    found = [r["status"] for r in table["results"] if r["library"] == way and r["quantity"] in names]
    right = found.count("right")
    return f"{right} ({100 * right / len(names):.0f} %)"


def _missed(table: dict[str, Any], way: str) -> str:
    """The faults whose line was not named, with what was said instead."""
    entries = [
        f"- `{r['quantity']}` ({FAULTS[r['quantity']].about}): {OUTCOMES[r['status']]}"
        for r in table["results"]
        if r["library"] == way and r["status"] != "right"
    ]
    return "\n".join([f"Not right, {TITLES[way]}:", "", *entries]) if entries else ""


def _benign(table: dict[str, Any]) -> list[str]:
    lines = ["| | no alarm | false alarm | fails |", "|---|---:|---:|---:|"]
    entries = []
    for way in _ways(table):
        found = [r for r in table["results"] if r["library"] == way]
        counts = [sum(r["status"] == status for r in found) for status in ("silent", "alarm", "failed")]
        lines.append(f"| {TITLES[way]} | " + " | ".join(map(str, counts)) + " |")
        entries += [
            f"- {TITLES[way]}: `{r['quantity']}` ({BENIGN[r['quantity']].about})" for r in found if r["status"] != "silent"
        ]
    unread = sum(name in FROZEN for name in table["quantities"])
    title = f"### {len(table['quantities'])} harmless programs, {unread} of them frozen"
    return [title, "\n".join(lines), *(["\n".join(["Alarms and failures:", "", *entries])] if entries else [])]


def _costs(table: dict[str, Any]) -> list[str]:
    results = {(r["quantity"], r["library"]): r for r in table["results"]}
    head = "| | plain step, ms | " + " | ".join(TITLES[way] for way in _ways(table)) + " |"
    lines = [head, "|---|---:|" + "---:|" * len(_ways(table))]
    for name in table["quantities"]:
        found = [results[name, way] for way in _ways(table)]
        plain = [r["gradient_seconds"] for r in found if r["status"] == "ok"]
        first = f"{1e3 * sorted(plain)[len(plain) // 2]:.1f}" if plain else "-"
        lines.append(f"| {steps.TITLES[name]} | {first} | " + " | ".join(map(_ratio, found)) + " |")
    return ["### Time of a step, in units of the plain step", "\n".join(lines)]


def _ratio(result: Result) -> str:
    if result["status"] != "ok":
        return "fails"
    low, high = result["ratio_quartiles"]
    return ("~" if high - low > UNSTEADY * result["ratio"] else "") + f"{result['ratio']:.2f}"


def _heads(table: dict[str, Any], counted: str) -> tuple[str, str]:
    ways = _ways(table)
    return f"| | {counted} | " + " | ".join(TITLES[way] for way in ways) + " |", "|---|---:|" + "---:|" * len(ways)


def _ways(table: dict[str, Any]) -> list[str]:
    return [way for way in TITLES if any(r["library"] == way for r in table["results"])]
