"""Panel: are the derivatives right? Reverse mode against float64 differences, parameter by parameter."""

from __future__ import annotations

from hesse.check import check_parameters, difference_curve
from hesse.report import plots
from hesse.report.case import Case
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View
from hesse.report.style import BLUE, MUTED, ORANGE

_SAMPLES = (4, 16)  # at least, at most
_WORK = 320  # samples times parameter tensors that are worth the wait
_DIRECTIONS = 2


def measure(case: Case) -> Numbers:
    """Check every parameter along random directions.

    Cost: see `hesse.check.parameters.check_parameters`, on 4 to 16 samples, the fewer the more parameters.
    """
    least, most = _SAMPLES
    index, batch = case.some_samples(min(max(_WORK // case.tensors, least), most))
    found = check_parameters(case.model, case.loss, batch, directions=_DIRECTIONS, generator=case.generator())
    notes = []
    if len(index) < case.samples:
        notes.append(f"Checked on {len(index)} of the {case.samples} samples, spread evenly over the batch.")
    kinks = [row.name for row in found.rows if row.kink]
    if kinks:
        notes.append(f"The loss has a kink (ReLU, max-pooling) at or near this point along {_some(kinks)}: checked beside it.")
    undecided = [row.name for row in found.rows if row.verdict == "undecided"]
    if undecided:
        notes.append(
            f"Differences are too rough to decide on {_some(undecided)}: the error bar is over 1% of the gradient. "
            "A model that computes partly in float32 is the usual reason."
        )
    dtype = str(found.own_dtype).removeprefix("torch.")
    worst = max(found.rows, key=lambda row: (row.verdict == "wrong", row.error)).name
    curve = difference_curve(case.model, case.loss, batch, worst, generator=case.generator())
    return {
        "ok": found.ok,
        "own_dtype": dtype,
        "directions": found.directions,
        "samples": len(index),
        "parameters": len(found.rows),
        "confirmed": sum(row.ok for row in found.rows),
        "wrong": sum(row.verdict == "wrong" for row in found.rows),
        "worst_error": max(row.error for row in found.rows),
        "worst_own_dtype_error": max(row.own_dtype_error for row in found.rows),
        "rows": [
            {
                "name": row.name, "shape": list(row.shape), "gradient_norm": row.gradient_norm, "error": row.error,
                "error_bar": row.error_bar, "own_dtype_error": row.own_dtype_error, "verdict": row.verdict, "kink": row.kink,
            }
            for row in found.rows
        ],
        "curve": {"name": worst, "steps": [h for h, _ in curve], "disagreements": [error for _, error in curve]},
        "notes": notes,
    }


def show(case: Case, numbers: Numbers) -> View:
    """A dot plot by parameter and the table behind it."""
    dtype = numbers["own_dtype"]
    total, wrong = numbers["parameters"], numbers["wrong"]
    undecided = total - numbers["confirmed"] - wrong
    if wrong:
        names = [row["name"] for row in numbers["rows"] if row["verdict"] == "wrong"]
        headline = f"{wrong} of {total} parameter tensors have a wrong derivative: {_some(names)}."
    elif undecided:
        headline = f"{numbers['confirmed']} of {total} parameter tensors confirmed, {undecided} undecided."
    else:
        headline = f"All {total} parameter tensors confirmed against float64 differences."
    columns = (
        Column("parameter", "name", "name"),
        Column("shape", "shape", "shape"),
        Column("verdict", "verdict", "verdict"),
        Column("gradient norm", "gradient_norm"),
        Column("disagreement", "error", "power", "reverse mode against differences, relative to the gradient's norm"),
        Column("error bar", "error_bar", "power", "uncertainty of the differences, on the same scale"),
        Column(f"{dtype} error", "own_dtype_error", "power", f"distance of the {dtype} gradient from the float64 one"),
    )
    facts = (
        Fact("confirmed", "confirmed", "count", remark=f"of {total} parameter tensors"),
        Fact("largest disagreement", "worst_error", "power", remark="relative to the gradient's norm"),
        Fact(f"largest {dtype} error", "worst_own_dtype_error", "power", remark="against the float64 gradient"),
    )
    return View(
        status="bad" if wrong else "note" if undecided else "good", headline=headline, facts=facts,
        tables=(Table("Every parameter", "rows", columns),), drawings=(_dots(numbers), _curve(numbers)),
    )


def _dots(numbers: Numbers) -> Drawing:
    rows, dtype = numbers["rows"], numbers["own_dtype"]
    figure = plots.dots_by_name(
        [row["name"] for row in rows],
        [
            plots.Series("disagreement", [row["error"] for row in rows], BLUE, "o"),
            plots.Series("error bar", [row["error_bar"] for row in rows], MUTED, "|"),
            plots.Series(f"{dtype} rounding", [row["own_dtype_error"] for row in rows], ORANGE, "D"),
        ],
        "error relative to the gradient's norm",
    )
    caption = (
        "Disagreement of reverse mode with differences (dots) far left of 1, at or below the error bar of the differences "
        f"(ticks), confirms the derivative. Diamonds: what computing the gradient in {dtype} costs in accuracy."
    )
    return Drawing("Reverse mode against differences", caption, figure)


def _curve(numbers: Numbers) -> Drawing:
    curve = numbers["curve"]
    figure = plots.falling_curve(curve["steps"], curve["disagreements"], "step relative to the parameter", "disagreement")
    caption = (
        f"Plain central differences along a random direction of {curve['name']}, the parameter with the largest disagreement. "
        "For a right derivative the curve falls with the square of the step until rounding takes over on the left (plateaus "
        "on the way are kinks, as of ReLU); for a wrong one it stays up."
    )
    return Drawing("How differences close in", caption, figure)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


PANEL = Panel("check", "Derivatives checked", "Is the gradient that training uses right?", measure, show)
