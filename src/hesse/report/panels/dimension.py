"""Panel: how many directions does the data determine? The effective dimension as a function of the damping."""

from __future__ import annotations

from hesse.report import curves, sketch
from hesse.report.case import Case
from hesse.report.effective import effective_dimensions
from hesse.report.gauss_newton import gauss_newton, say_which_data
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View
from hesse.report.style import BLUE
from hesse.report.writing import write, write_with_error

_WIDE = 4  # columns of a sketch for each damping


def measure(case: Case) -> Numbers:
    """Effective dimensions of the Gauss-Newton matrix over five or six decades of damping.

    Cost: up to 512 parameters as many products with the Gauss-Newton matrix as parameters; beyond, 600 at most; a product is
    1.2 to 1.7 gradients of the whole data.
    """
    notes = list[str]()
    G = gauss_newton(case, notes)
    curve = effective_dimensions(G.matrix, case.generator())
    say_which_data(case, notes)
    if curve.is_exact:
        notes.append("From all eigenvalues.")
    else:
        notes.append(f"Estimated by Lanczos quadrature from {curve.products} products.")
    rows = [
        {"damping": damping, "value": value, "standard_error": error, "share": value / G.matrix.shape[0]}
        for damping, value, error in zip(curve.dampings.tolist(), curve.values.tolist(), curve.errors.tolist(), strict=True)
    ]
    return {
        "dimension": G.matrix.shape[0], "matrix": G.name, "short": G.short, "products": curve.products, "exact": curve.is_exact,
        "middle": len(rows) // 2, "rows": rows, "notes": notes,
    }


def show(case: Case, numbers: Numbers) -> View:
    """The curve and its table."""
    rows, dimension = numbers["rows"], write(numbers["dimension"], "count")
    middle, last = rows[numbers["middle"]], len(rows) - 1
    headline = (
        f"With a damping of {write(middle['damping'], 'power')} the data determine {_rounded(middle['value'])} of {dimension} "
        "directions of the parameters."
    )
    facts = tuple(
        Fact(f"at damping {write(rows[i]['damping'], 'power')}", f"rows.{i}.value", error=f"rows.{i}.standard_error",
             remark=remark)
        for i, remark in ((numbers["middle"], f"of {dimension}"), (last, f"of {dimension}"))
    )
    columns = (
        Column("damping", "damping", "power"),
        Column("effective dimension", "value"),
        Column("standard error", "standard_error", "power"),
        Column("share", "share", "percent", "of all parameters"),
    )
    return View(
        status="note", headline=headline, facts=facts, tables=(Table("Effective dimension", "rows", columns),),
        drawings=(_drawing(numbers),), sketches=(_sketch(numbers),),
    )


def _rounded(value: float) -> str:
    return write(round(value), "count") if value >= 10 else f"{value:.1f}"


def _drawing(numbers: Numbers) -> Drawing:
    rows = numbers["rows"]
    values = curves.Measured("", [row["value"] for row in rows], [row["standard_error"] for row in rows], BLUE)
    figure = curves.log_curve(
        [row["damping"] for row in rows], values, numbers["dimension"],
        f"all {write(numbers['dimension'], 'count')} parameters", ("damping", "effective dimension"),
    )
    bars = "" if numbers["exact"] else " Error bars: two standard errors."
    caption = (
        f"The number of eigenvalues of the {numbers['matrix']} that stand above a damping, counted softly: in so many "
        "directions the data outweigh a prior, a weight decay or a trust region of this strength; all others stay where the "
        f"damping holds them.{bars}"
    )
    return Drawing("Effective dimension", caption, figure)


def _sketch(numbers: Numbers) -> str:
    rows = list(reversed(numbers["rows"]))
    columns = [row["value"] for row in rows for _ in range(_WIDE)]
    positive = [value for value in columns if value > 0] or [1.0]
    lines = sketch.log_sketch(columns, min(positive) / 2, max(positive))
    ends = (write(rows[0]["damping"], "power"), write(rows[-1]["damping"], "power"))
    title = f"effective dimension over the damping, logarithmic; at the left {_with_error(rows[0])}"
    return "\n".join([title, *sketch.under_axis(lines, *ends)])


def _with_error(row: Numbers) -> str:
    return write_with_error(row["value"], row["standard_error"])


PANEL = Panel("dimension", "Effective dimension", "In how many directions do the data say anything?", measure, show)
