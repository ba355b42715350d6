"""Panel: how curved is the loss? Hessian trace and eigenvalues, and the tangent kernel of the samples."""

from __future__ import annotations

import warnings

from hesse.curvature import loss_hessian
from hesse.linalg import eigsh, trace
from hesse.report import plots
from hesse.report.case import Case
from hesse.report.kernel import draw_kernel, measure_kernel
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View

_EIGENVALUES = 8
_EIGEN_RTOL = 1e-3
_TRACE_RTOL = 0.05
_TRACE_PRODUCTS = 128
_EXACT_DIM = 512  # up to here the exact trace costs little more


def measure(case: Case) -> Numbers:
    """Trace, outer eigenvalues and tangent kernel.

    Cost: up to 128 Hessian products for the trace (fewer once its standard error is 5%; up to 512 parameters: at most as
    many as parameters), some 40 to 200 for the eigenvalues, each 1.2 to 4 gradients of the whole data, and a backward
    pass of up to 60 samples for each of up to 10 outputs for the kernel.
    """
    H = loss_hessian(case.model, case.loss, case.data)
    generator, notes = case.generator(), list[str]()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        most = H.shape[0] if H.shape[0] <= _EXACT_DIM else _TRACE_PRODUCTS
        total = trace(H, rtol=_TRACE_RTOL, max_products=most, generator=generator, on_failure="return")
    if total.standard_error > _TRACE_RTOL * abs(float(total)):
        notes.append(f"The trace's standard error is over {_TRACE_RTOL:.0%} after {total.products} products.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = min(_EIGENVALUES, H.shape[0])
        pairs = eigsh(H, count, which="magnitude", rtol=_EIGEN_RTOL, generator=generator, on_failure="return")
    notes += [str(warning.message).splitlines()[0] for warning in caught if issubclass(warning.category, RuntimeWarning)]
    order = pairs.values.argsort(descending=True)
    values, residuals = pairs.values[order].double().cpu(), pairs.residuals[order].double().cpu()
    if case.batches != 1:
        many = "all batches" if case.batches is None else f"all {case.batches} batches"
        notes.append(f"The Hessian is that of the loss over {many}; the kernel is that of samples of the first batch.")
    return {
        "dimension": H.shape[0],
        "trace": {"value": float(total), "standard_error": total.standard_error, "products": total.products},
        "largest_eigenvalue": values.max().item(),
        "smallest_shown_eigenvalue": values.min().item(),
        "eigenvalue_products": pairs.products,
        "eigenvalues": [
            {"rank": rank + 1, "value": value, "residual": residual}
            for rank, (value, residual) in enumerate(zip(values.tolist(), residuals.tolist(), strict=True))
        ],
        "kernel": measure_kernel(case, notes),
        "notes": notes,
    }


def show(case: Case, numbers: Numbers) -> View:
    """Eigenvalue plot, heat map, table."""
    kernel = numbers["kernel"]
    largest = numbers["largest_eigenvalue"]
    share = largest / numbers["trace"]["value"] if numbers["trace"]["value"] else 0.0
    headline = f"Sharpness (largest eigenvalue) {largest:.4g}"
    headline += f", {share:.0%} of the trace." if 0 < share <= 1 else "."
    facts = [
        Fact("Hessian trace", "trace.value", error="trace.standard_error", remark=f"{numbers['trace']['products']} products"),
        Fact("largest eigenvalue", "largest_eigenvalue", error="eigenvalues.0.residual", remark="the sharpness"),
    ]
    if kernel and kernel["cosine_same_class"] is not None and kernel["cosine_other_class"] is not None:
        facts.append(Fact("kernel, same class", "kernel.cosine_same_class", remark="mean cosine of two samples"))
        facts.append(Fact("kernel, other class", "kernel.cosine_other_class", remark="mean cosine of two samples"))
    columns = (
        Column("rank", "rank", "count"),
        Column("eigenvalue", "value"),
        Column("residual", "residual", "power", "the eigenvalue lies within this distance"),
    )
    return View(
        status="note", headline=headline, facts=tuple(facts),
        tables=(Table("Outer eigenvalues of the Hessian", "eigenvalues", columns),), drawings=_drawings(numbers),
    )


def _drawings(numbers: Numbers) -> tuple[Drawing, ...]:
    rows, kernel = numbers["eigenvalues"], numbers["kernel"]
    spectrum = plots.stems([row["value"] for row in rows], [row["residual"] for row in rows], "rank", "eigenvalue")
    drawings = [
        Drawing(
            "Outer eigenvalues",
            f"The {len(rows)} eigenvalues of largest magnitude among {numbers['dimension']:,}, with their residuals as error "
            "bars. A negative one is a direction in which the loss still curves downwards.", spectrum,
        )
    ]
    if kernel:
        drawings.append(draw_kernel(kernel))
    return tuple(drawings)


PANEL = Panel("curvature", "Curvature", "How sharp is the minimum, and which samples move together?", measure, show)
