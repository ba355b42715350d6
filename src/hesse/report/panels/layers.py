"""Panel: where does the gradient live? Its magnitude and the empirical Fisher diagonal, by parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hesse.core import tree
from hesse.parameters import parameter_jacobian
from hesse.report import plots
from hesse.report.case import Case
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View
from hesse.report.style import BLUE, ORANGE

_MOST_BARS = 40


def measure(case: Case) -> Numbers:
    """Mean gradient and mean squared gradient of every parameter, over the samples of the batch.

    Cost: about 2 gradients where every layer has a rule; see `hesse.parameter_jacobian`.
    """
    J = parameter_jacobian(case.model, case.loss, case.batch)
    scale = case.samples / J.mass  # from the mean over samples to the gradient of the batch loss
    rows = [
        _row(name, scale * mean.detach().double().cpu(), squares.detach().double().cpu() / J.mass)
        for (name, mean), squares in zip(tree.named_leaves(J.mean()), tree.leaves(J.sum_of_squares()), strict=True)
    ]
    trace = sum(row["fisher_trace"] for row in rows)
    for row in rows:
        row["fisher_share"] = row["fisher_trace"] / trace if trace else 0.0
    notes = [
        "The empirical Fisher diagonal is the sum of the squared per-sample gradients at the true targets, over the loss's own "
        f"normalizer (here {J.mass:g})."
    ]
    if case.batches != 1:
        notes.append(f"Computed on the first batch ({case.samples} samples).")
    silent = [row["name"] for row in rows if row["fisher_trace"] == 0]
    if silent:
        notes.append(f"No gradient at all reaches {', '.join(silent[:6])}{' ...' if len(silent) > 6 else ''}.")
    return {
        "parameters": sum(row["size"] for row in rows),
        "gradient_norm": sum(row["gradient_norm"] ** 2 for row in rows) ** 0.5,
        "fisher_trace": trace,
        "rows": rows,
        "notes": notes,
    }


def _row(name: str, mean: Tensor, squares: Tensor) -> dict[str, Any]:
    size = mean.numel()
    return {
        "name": name,
        "shape": list(mean.shape),
        "size": size,
        "gradient_norm": mean.norm().item(),
        "gradient_rms": mean.norm().item() / max(size, 1) ** 0.5,
        "fisher_mean": squares.sum().item() / max(size, 1),
        "fisher_max": squares.max().item() if size else 0.0,
        "fisher_trace": squares.sum().item(),
    }


def show(case: Case, numbers: Numbers) -> View:
    """Two bar charts and a table."""
    rows = numbers["rows"]
    top = max(rows, key=lambda row: row["fisher_share"])
    part = _part(top, numbers)
    headline = f"{top['name']} holds {top['fisher_share']:.0%} of the empirical Fisher's trace, with {part} of the parameters."
    columns = (
        Column("parameter", "name", "name"),
        Column("shape", "shape", "shape"),
        Column("gradient norm", "gradient_norm", meaning="of the batch loss"),
        Column("gradient, rms", "gradient_rms", "power", "root mean square over the elements"),
        Column("Fisher, mean", "fisher_mean", "power", "mean of the diagonal over the elements"),
        Column("Fisher, max", "fisher_max", "power", "largest entry of the diagonal"),
        Column("Fisher share", "fisher_share", "percent", "of the trace of the whole model"),
    )
    facts = (
        Fact("parameters", "parameters", "count"),
        Fact("gradient norm", "gradient_norm", remark="of the batch loss"),
        Fact("empirical Fisher trace", "fisher_trace", remark="sum of the diagonal"),
    )
    return View(
        status="note", headline=headline, facts=facts, tables=(Table("Every parameter", "rows", columns),),
        drawings=_drawings(rows),
    )


def _part(row: dict[str, Any], numbers: Numbers) -> str:
    part = row["size"] / numbers["parameters"]
    return f"{part:.0%}" if part >= 0.01 else f"{part:.1g}"


def _drawings(rows: list[dict[str, Any]]) -> tuple[Drawing, ...]:
    shown = rows
    if len(rows) > _MOST_BARS:
        least = sorted((row["fisher_share"] for row in rows), reverse=True)[_MOST_BARS - 1]
        shown = [row for row in rows if row["fisher_share"] >= least][:_MOST_BARS]
    chosen = "" if shown is rows else f" The {_MOST_BARS} parameters with the largest share of the Fisher trace are shown."
    names = [row["name"] for row in shown]
    gradient = plots.bars_by_name(names, [row["gradient_rms"] for row in shown], BLUE, "gradient, rms per element")
    fisher = plots.bars_by_name(names, [row["fisher_mean"] for row in shown], ORANGE, "Fisher diagonal, mean per element")
    return (
        Drawing(
            "Gradient by parameter",
            "Root mean square of the batch gradient's elements, from input to output. Bars that fall by decades towards the "
            f"input show a vanishing gradient.{chosen}", gradient,
        ),
        Drawing(
            "Empirical Fisher by parameter",
            "Mean of the squared per-sample gradient: how sharply single samples feel an element of the parameter, even where "
            f"their pulls cancel in the batch gradient.{chosen}", fisher,
        ),
    )


PANEL = Panel("layers", "Gradient by layer", "Where in the model do gradient and information sit?", measure, show)
