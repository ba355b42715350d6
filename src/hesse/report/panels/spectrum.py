"""Panel: the spectral densities of the Hessian and of the Gauss-Newton matrix, one over the other."""

from __future__ import annotations

import math
from itertools import zip_longest

from hesse.core.errors import HesseError
from hesse.curvature import loss_hessian
from hesse.linalg import Estimate
from hesse.operators import LinearOperator
from hesse.report import curves, sketch
from hesse.report.case import Case
from hesse.report.densities import (
    bandwidth_of,
    common_grid,
    density_of,
    grid_near_zero,
    numbers_of,
    outer_eigenvalues,
    squares_of,
    trace_of,
)
from hesse.report.gauss_newton import GaussNewtonLike, gauss_newton, say_which_data
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View
from hesse.report.style import BLUE, ORANGE
from hesse.report.writing import write

_FLOOR = 0.03  # of a single eigenvalue's peak
_COLUMNS = 64  # of a sketch


def measure(case: Case) -> Numbers:
    """Densities by stochastic Lanczos quadrature, outer eigenvalues, traces, Frobenius norms; all of it for both matrices.

    Cost: of each of the two matrices some 450 to 600 products (at most 1050 and the exact diagonal; up to 512 parameters: five
    times as many as parameters), and of their difference 48; a product is 1.2 to 4 gradients of the whole data.
    """
    notes, generator = list[str](), case.generator()
    H = loss_hessian(case.model, case.loss, case.data)
    G = _partner(case, notes)
    matrices: dict[str, LinearOperator] = {"hessian": H} if G is None else {"hessian": H, "ggn": G.matrix}
    outer = {key: outer_eigenvalues(A, generator) for key, A in matrices.items()}
    found = {key: density_of(A, outer[key], generator) for key, A in matrices.items()}
    bandwidth = bandwidth_of(outer.values(), found.values())
    grid, near = common_grid(found.values(), bandwidth), grid_near_zero(bandwidth)
    squares = {key: squares_of(A, generator) for key, A in matrices.items()}
    numbers: Numbers = {"dimension": H.shape[0], "partner": None if G is None else G.name, "bandwidth": bandwidth}
    numbers |= {"short": None if G is None else G.short, "grid": grid.tolist(), "grid_near_zero": near.tolist()}
    for key, A in matrices.items():
        numbers[key] = {
            "density": found[key].heights(grid, bandwidth),
            "density_near_zero": found[key].heights(near, bandwidth),
            "exact": found[key].is_exact, "products": found[key].products, "smallest": outer[key].smallest,
            "trace": numbers_of(trace_of(A, generator)), "squared_norm": numbers_of(squares[key]),
        }
    numbers["eigenvalues"] = [
        {"rank": rank + 1, "hessian": h[0], "hessian_residual": h[1], "ggn": g[0], "ggn_residual": g[1]}
        for rank, (h, g) in enumerate(
            zip_longest(outer["hessian"].rows(), outer["ggn"].rows() if G else [], fillvalue=(None, None))
        )
    ]
    numbers["negative"] = numbers_of(found["hessian"].below(-bandwidth)) | {"below": -bandwidth}
    numbers["explained"] = None if G is None else _explained(squares["hessian"], squares_of(H - G.matrix, generator))
    say_which_data(case, notes)
    return numbers | {"notes": notes + _remarks(numbers)}


def _partner(case: Case, notes: list[str]) -> GaussNewtonLike | None:
    try:
        return gauss_newton(case, notes)
    except HesseError as error:
        notes.append(f"The Hessian alone: {error.found}.")
        return None


def _explained(squares: Estimate, rest: Estimate) -> dict[str, float] | None:
    """One minus the squared relative distance of the two matrices, and its standard error."""
    total, left = float(squares), float(rest)
    if not total > 0:
        return None
    error = math.hypot(rest.standard_error / total, left * squares.standard_error / total**2)
    return {"value": 1 - left / total, "standard_error": error, "relative_difference": math.sqrt(max(left, 0.0) / total)}


def _remarks(numbers: Numbers) -> list[str]:
    """How the curves came about."""
    width = write(numbers["bandwidth"], "power")
    how = f"Eigenvalues closer together than the bandwidth {width} add up to one peak"
    if numbers["hessian"]["exact"]:
        return [f"{how}. All eigenvalues were computed."]
    products = numbers["hessian"]["products"]
    return [f"{how}. Estimated from random vectors by Lanczos quadrature with {products} products of the Hessian."]


def show(case: Case, numbers: Numbers) -> View:
    """The densities over each other, the largest eigenvalues side by side."""
    short, explained, negative = numbers["short"], numbers["explained"], numbers["negative"]
    below = f"{write(round(negative['value']), 'count')} of {write(numbers['dimension'], 'count')} eigenvalues"
    headline = f"About {below} lie below {write(negative['below'], 'power')}."
    if numbers["hessian"]["exact"]:
        headline = f"{below} lie below {write(negative['below'], 'power')}."
    if explained:
        headline = f"The {numbers['partner']} explains {_percent(explained['value'])} of the Hessian. " + headline
    facts = [
        Fact("Hessian trace", "hessian.trace.value", error="hessian.trace.standard_error"),
        Fact("largest eigenvalue", "eigenvalues.0.hessian", error="eigenvalues.0.hessian_residual"),
        Fact("negative eigenvalues", "negative.value", error="negative.standard_error",
             remark=f"below {write(negative['below'], 'power')}; the lowest is {write(numbers['hessian']['smallest'])}"),
    ]
    columns = [
        Column("rank", "rank", "count"),
        Column("Hessian", "hessian"),
        Column("residual", "hessian_residual", "power", "the eigenvalue lies within this distance"),
    ]
    if short:
        facts[1:1] = [Fact(f"{short} trace", "ggn.trace.value", error="ggn.trace.standard_error")]
        columns += [Column(short, "ggn"), Column(f"{short} residual", "ggn_residual", "power")]
    if explained:
        facts[:0] = [
            Fact(f"explained by the {short}", "explained.value", "percent", error="explained.standard_error",
                 remark="1 − ‖H − G‖² / ‖H‖², Frobenius")
        ]
    return View(
        status="note", headline=headline, facts=tuple(facts),
        tables=(Table("Largest eigenvalues", "eigenvalues", tuple(columns)),), drawings=_drawings(numbers),
        sketches=_sketches(numbers),
    )


def _percent(share: float) -> str:
    if share < 0:
        return "nothing"
    return f"{share:.1%}" if share < 0.995 else f"{share:.2%}"


def _series(numbers: Numbers) -> list[tuple[str, str, str]]:
    """Key, label and color of the matrices that were measured."""
    found = [("hessian", "Hessian", BLUE)]
    return [*found, ("ggn", numbers["partner"], ORANGE)] if numbers["partner"] else found


def _drawings(numbers: Numbers) -> tuple[Drawing, ...]:
    rows = numbers["eigenvalues"]
    whole, near = (
        curves.densities(
            numbers[f"grid{part}"],
            [
                curves.Measured(label, numbers[k][f"density{part}"]["height"], numbers[k][f"density{part}"]["error"], color)
                for k, label, color in _series(numbers)
            ],
            _FLOOR, "eigenvalue", "number of eigenvalues",
        )
        for part in ("", "_near_zero")
    )
    both = [
        curves.Measured(label, [row[k] for row in rows], [row[f"{k}_residual"] for row in rows], color)
        for k, label, color in _series(numbers)
    ]
    band = "" if numbers["hessian"]["exact"] else " The bands are two standard errors wide to either side."
    caption = (
        "How many eigenvalues lie where: a peak of height 1 is one eigenvalue. A tall peak at zero: most directions are flat. "
        f"Single peaks on the right: the few directions in which the loss is sharp.{band}"
    )
    near_caption = "The same, enlarged. In directions left of zero the loss curves downwards."
    if numbers["short"] == "GGN":
        near_caption += " The Gauss-Newton matrix of a convex loss has none there: what is seen is its blurred peak at zero."
    beside = (
        "Where the bars of a rank agree, the Gauss-Newton matrix is as good as the Hessian along the sharpest directions. "
        if numbers["short"] == "GGN" else ""
    )
    return (
        Drawing("Spectral density", caption, whole),
        Drawing("Around zero", near_caption, near),
        Drawing(
            "Largest eigenvalues", f"{beside}Error bars are residuals.", curves.pairs_by_rank(both, "rank", "eigenvalue")
        ),
    )


def _sketches(numbers: Numbers) -> tuple[str, ...]:
    top = max(max(numbers[key]["density"]["height"]) for key, _, _ in _series(numbers))
    ends = (write(numbers["grid"][0], "power"), write(numbers["grid"][-1], "power"))
    drawn = []
    for key, label, _ in _series(numbers):
        columns = sketch.at_columns(numbers[key]["density"]["height"], _COLUMNS)
        lines = sketch.under_axis(sketch.log_sketch(columns, _FLOOR, max(top, 1.0)), *ends)
        drawn.append("\n".join([f"{label}: number of eigenvalues, logarithmic", *lines]))
    return tuple(drawn)


PANEL = Panel("spectrum", "Spectral density", "How is curvature spread, and how much of it is Gauss-Newton?", measure, show)
