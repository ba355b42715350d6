"""Panel: how good is a Kronecker factorization? KFAC's and EKFAC's error by parameter."""

from __future__ import annotations

from typing import Any

import torch

from hesse.core.progress import track
from hesse.curvature import KroneckerFactored, ekfac, kfac
from hesse.linalg import diagonal
from hesse.operators import restrict
from hesse.report import curves
from hesse.report.block_errors import BlockSquares, block_squares, relative_error
from hesse.report.case import Case
from hesse.report.gauss_newton import GaussNewtonLike, expected_fisher, gauss_newton, outputs_per_sample, say_which_data
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View
from hesse.report.style import BLUE, ORANGE

_MOST_BLOCKS = 16
_MOST_OUTPUTS = 32  # up to here the factors take a backward pass for each output; beyond, one random cotangent a sample
_APPROXIMATIONS = ("kfac", "ekfac")
_REMARKS = {"exact": "exact, without factors", "unused": "unused"}


def measure(case: Case) -> Numbers:
    """Relative Frobenius errors of the blocks, by parameter, of those that hold most of the trace.

    Cost: two to three times the factors (for up to 32 outputs a sample that many backward passes each, beyond that one), and
    for each of up to 16 parameters at most 48 products with the Gauss-Newton matrix, each 1.2 to 1.7 gradients of the whole
    data.
    """
    notes = list[str]()
    G, kind = _reference(case, notes)
    factored = [
        make(case.model, case.loss, case.data, kind=kind, generator=case.generator()) for make in (kfac, ekfac)
    ]
    generator, kinds = case.generator(), factored[0].kinds
    traces = _traces(factored[0])
    measured: dict[str, BlockSquares] = {}
    for name in track(_chosen(traces), "KFAC's error by layer"):
        blocks = [restrict(K, [name]) for K in factored]
        measured[name] = block_squares(restrict(G.matrix, [name]), blocks, generator)
    say_which_data(case, notes)
    if len(measured) < len(traces):
        notes.append(f"The {len(measured)} parameters that hold most of the trace are shown, of {len(traces)}.")
    if kind == "sampled":
        notes.append("The factors are sampled: one random cotangent for each sample, whose noise is part of the error.")
    if any(not squares.is_exact for squares in measured.values()):
        notes.append("Large blocks are compared along random vectors, hence the error bars.")
    total = sum(traces.values())
    shapes = dict(zip(factored[0].in_space.names, factored[0].in_space.shapes, strict=True))
    rows = [
        {"name": name, "shape": list(shapes[name]), "kind": kinds[name], "share": traces[name] / total if total else 0.0}
        | _errors(squares.total, squares.variances) | {"exact": squares.is_exact}
        for name, squares in measured.items()
    ]
    totals = torch.stack([squares.total for squares in measured.values()]).sum(0)
    variances = torch.stack([squares.variances for squares in measured.values()]).sum(0)
    return {"matrix": G.name, "factors": kind, "rows": rows, "together": _errors(totals, variances), "notes": notes}


def _reference(case: Case, notes: list[str]) -> tuple[GaussNewtonLike, Any]:
    """The matrix that is approximated, and the kind of factors."""
    outputs = outputs_per_sample(case)
    if outputs is not None and outputs > _MOST_OUTPUTS:
        notes.append(f"The model has {outputs} outputs a sample: compared with the expected Fisher matrix.")
        return expected_fisher(case), "sampled"
    G = gauss_newton(case, notes)
    return G, "ggn" if G.is_ggn else "expected"


def _traces(K: KroneckerFactored) -> dict[str, float]:
    """What each parameter's block holds of the trace."""
    space, entries = K.in_space, diagonal(K).double()
    sizes = [torch.Size(shape).numel() for shape in space.shapes]
    return {name: float(part.sum()) for name, part in zip(space.names, entries.split(sizes), strict=True)}


def _chosen(traces: dict[str, float]) -> list[str]:
    """The names with the largest traces, in the order of the model."""
    most = set(sorted(traces, key=lambda name: -traces[name])[:_MOST_BLOCKS])
    return [name for name in traces if name in most]


def _errors(total: torch.Tensor, variances: torch.Tensor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for which, key in enumerate(_APPROXIMATIONS, start=1):
        error = relative_error(total, variances, which)
        found[key], found[f"{key}_error"] = error or (None, None)
    return found


def show(case: Case, numbers: Numbers) -> View:
    """Bars by parameter, and the table."""
    rows, together = numbers["rows"], numbers["together"]
    known = [row for row in rows if row["kfac"] is not None]
    headline = f"The {numbers['matrix']} is zero: there is nothing to approximate."
    facts: tuple[Fact, ...] = ()
    if known:
        worst = max(known, key=lambda row: row["kfac"])
        headline = (
            f"KFAC is farthest off in {worst['name']}: by {worst['kfac']:.0%} of the block, EKFAC by {worst['ekfac']:.0%}. "
            f"All blocks together: {together['kfac']:.0%} and {together['ekfac']:.0%}."
        )
        at = f"rows.{rows.index(worst)}"
        facts = (
            Fact("KFAC, all blocks", "together.kfac", "percent", "together.kfac_error", "relative Frobenius error"),
            Fact("EKFAC, all blocks", "together.ekfac", "percent", "together.ekfac_error", "relative Frobenius error"),
            Fact("KFAC, farthest off", f"{at}.kfac", "percent", f"{at}.kfac_error", worst["name"]),
        )
    columns = (
        Column("parameter", "name", "name"),
        Column("shape", "shape", "shape"),
        Column("block", "kind", "name", "kronecker: two factors; exact: the parameter's own matrix; diagonal: its diagonal"),
        Column("trace", "share", "percent", "what the block holds of the trace of all blocks"),
        Column("KFAC", "kfac", "power", "relative Frobenius error"),
        Column("KFAC ±", "kfac_error", "power", "standard error; 0 where every column was compared"),
        Column("EKFAC", "ekfac", "power", "relative Frobenius error"),
        Column("EKFAC ±", "ekfac_error", "power"),
    )
    return View(
        status="note", headline=headline, facts=facts, tables=(Table("Every block", "rows", columns),),
        drawings=(_drawing(numbers),) if known else (),
    )


def _drawing(numbers: Numbers) -> Drawing:
    rows = [row for row in numbers["rows"] if row["kfac"] is not None]
    both = [
        curves.Measured(label, [row[key] for row in rows], [row[f"{key}_error"] for row in rows], color)
        for key, label, color in zip(_APPROXIMATIONS, ("KFAC", "EKFAC"), (BLUE, ORANGE), strict=True)
    ]
    names, remarks = [row["name"] for row in rows], [_REMARKS.get(row["kind"], "") for row in rows]
    figure = curves.pairs_by_name(names, both, "error relative to the block's norm", remarks)
    exact = any(row["kind"] == "exact" for row in rows)
    kept = " Parameters without two factors have their own matrix where it is small: those are exact." if exact else ""
    caption = (
        f"How far the factors of a parameter are from its block of the {numbers['matrix']}, in the Frobenius norm. "
        f"0: the same matrix; 1: as far off as leaving the block out. Error bars: two standard errors.{kept}"
    )
    return Drawing("Error by layer", caption, figure)


PANEL = Panel("kfac", "Kronecker factors", "How well does KFAC stand in for the Gauss-Newton matrix?", measure, show)
