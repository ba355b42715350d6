"""The tables of the coverage page."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hesse.core.errors import HesseError
from hesse.rules.layers import layer_rules
from tools.coverage_page import layers, programs, sequences
from tools.coverage_page.case import NO_FORM, Case, Found, measure
from tools.coverage_page.refusals import REFUSALS, raised

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "coverage.md"
MARKER = "<!-- measured: {} -->"
FORMS = ("Contract", "Lookup", "Dense")
FAMILIES: dict[str, list[Case]] = {
    "Matrix products": layers.PRODUCTS,
    "Convolutions": layers.CONVOLUTIONS,
    "Tables": layers.TABLES,
    "Normalization": layers.NORMALIZATIONS,
    "Elementwise": layers.ELEMENTWISE,
    "Attention": sequences.ATTENTION,
    "Recurrent layers": sequences.RECURRENT,
    "Weights that are functions of parameters": programs.WEIGHTS,
    "Programs": programs.PROGRAMS,
}
ELSEWHERE = {"FusedRmsNormBackward0"}
"""Nodes that exist on a GPU only, whose rules are therefore not run here."""


def written(text: str) -> str:
    """The page with its tables measured anew."""
    found = {family: [measure(case) for case in cases] for family, cases in FAMILIES.items()}
    tables = {
        "layers": "\n\n".join(f"### {family}\n\n{family_table(rows)}" for family, rows in found.items()),
        "rules": rules_table([one for rows in found.values() for one in rows]),
        "refusals": refusals_table(),
    }
    for name, table in tables.items():
        start, end = MARKER.format(name), MARKER.format("end")
        before, rest = text.split(start)
        text = f"{before}{start}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}"
    return text


def without_numbers(text: str) -> str:
    """The page without what may differ from machine to machine: errors, values, and the sample that is told."""
    text = re.sub(r"\| *(0|\d+e[+-]\d+) *\|$", "| # |", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d+|\bsample \d+", "#", text)


def family_table(found: Sequence[Found]) -> str:
    """Layer and options, ops in which its weights meet data, paths, error."""
    rows = ["| layer, options | where weights meet data | path | error |", "|---|---|---|---|"]
    for one in found:
        ops = ", ".join(f"`{re.sub(r'Backward[0-9]*$', '', node)}`" for node in one.forms)
        rows.append(f"| {one.label} | {ops} | {summary(one.paths)} | {one.error:.0e} |".replace(" 0e+00 |", " 0 |"))
    return "\n".join(rows)


def summary(paths: Mapping[str, str]) -> str:
    """The path of all parameters, or who takes which."""
    by_path: dict[str, list[str]] = {}
    for name, path in paths.items():
        by_path.setdefault(path, []).append(name)
    if len(by_path) == 1:
        return next(iter(by_path))
    return "; ".join(f"{path}: {', '.join(f'`{name}`' for name in names)}" for path, names in by_path.items())


def rules_table(found: Sequence[Found]) -> str:
    """Node, op, forms that its rule returned, and cases that the rule left to the masked path."""
    rows = ["| autograd node | op | forms | left to the masked path | file |", "|---|---|---|---|---|"]
    keys: dict[object, list[str]] = {}
    for node in sorted(map(str, layer_rules)):
        keys.setdefault(layer_rules.lookup(node), []).append(node)
    for rule, nodes in sorted(keys.items(), key=lambda item: (item[0].__module__, item[1])):
        seen = {form for one in found for node in nodes for form in one.forms.get(node, ())}
        missing = [node for node in nodes if node not in ELSEWHERE and not any(one.forms.get(node) for one in found)]
        assert not missing, f"no case asks the rule of {', '.join(missing)}: add one"
        left = [one.label for one in found if any(one.forms.get(node) in (set(), {NO_FORM}) for node in nodes)]
        forms = ", ".join(f"`{form}`" for form in FORMS if form in seen) or "on a GPU only"
        file = rule.__module__.removeprefix("hesse.rules.").replace(".", "/") + ".py"
        names = ", ".join(f"`{node}`" for node in nodes)
        rows.append(f"| {names} | {covered(rule)} | {forms} | {'; '.join(left)} | `{file}` |")
    return "\n".join(rows)


def covered(rule: object) -> str:
    """The first paragraph of a rule's docstring, in Markdown."""
    text = inspect.getdoc(rule) or inspect.getdoc(sys.modules[rule.__module__]) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|").rstrip(".")


def refusals_table() -> str:
    """What is refused, the class of the error, what it found, and the remedy."""
    rows = ["| example | error | found | remedy |", "|---|---|---|---|"]
    for refusal in REFUSALS:
        error = raised(refusal)
        if isinstance(error, HesseError):
            kind, found, remedy = f"`{type(error).__name__}`", error.found, error.remedy
        else:
            kind, found, remedy = f"`{type(error).__name__}`, PyTorch's own", str(error), ""
        rows.append(f"| {refusal.label} | {kind} | {told(found)} | {told(remedy)} |")
    return "\n".join(rows)


def told(text: str) -> str:
    """An error's words in a cell: without line numbers of this tool, and with no character that Markdown reads."""
    text = re.sub(r" at \S+\.py:\d+ \(.*?\)(?= while|$)", " at FILE:LINE (the line itself)", " ".join(text.split()))
    return re.sub(r"([|<>*_`\[\]])", r"\\\1", text)
