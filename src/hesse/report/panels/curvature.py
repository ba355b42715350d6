"""Panel: how curved is the loss? Hessian trace and eigenvalues, and the tangent kernel of the samples."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from hesse.check.replica import call_model
from hesse.core.errors import HesseError
from hesse.core.memory import current_budget
from hesse.curvature import loss_hessian
from hesse.linalg import eigsh, trace
from hesse.parameters import parameter_jacobian
from hesse.report import plots
from hesse.report.case import Case
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Table, View

_EIGENVALUES = 8
_EIGEN_RTOL = 1e-3
_TRACE_RTOL = 0.05
_TRACE_PRODUCTS = 400
_KERNEL_SAMPLES = 60
_KERNEL_PART = 8  # the kernel may take this part of the memory budget


def measure(case: Case) -> Numbers:
    """Trace, outer eigenvalues and tangent kernel.

    Cost: up to 400 Hessian products for the trace (until its standard error is 5 %), some 40 to 200 for the eigenvalues,
    each 1.2 to 4 gradients of the whole data, and one pass for every class of up to 60 samples for the kernel.
    """
    notes: list[str] = []
    H = loss_hessian(case.model, case.loss, case.data)
    generator = case.generator()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        total = trace(
            H, rtol=_TRACE_RTOL, max_products=_TRACE_PRODUCTS, generator=generator, on_failure="return"
        )
        count = min(_EIGENVALUES, H.shape[0])
        pairs = eigsh(H, count, which="magnitude", rtol=_EIGEN_RTOL, generator=generator, on_failure="return")
    notes += [str(warning.message).splitlines()[0] for warning in caught if issubclass(warning.category, RuntimeWarning)]
    order = pairs.values.argsort(descending=True)
    values, residuals = pairs.values[order].double().cpu(), pairs.residuals[order].double().cpu()
    if case.batches != 1:
        many = "all batches" if case.batches is None else f"all {case.batches} batches"
        notes.append(f"The Hessian is that of the loss over {many}; the kernel is that of samples of the first batch.")
    kernel = _kernel(case, notes)
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
        "kernel": kernel,
        "notes": notes,
    }


def _kernel(case: Case, notes: list[str]) -> dict[str, Any] | None:
    """The tangent kernel of some samples, averaged over the outputs, sorted by label; None where it has none."""
    output = call_model(case.model, case.batch[0])
    if not (isinstance(output, Tensor) and output.ndim in (1, 2) and output.shape[0] == case.samples):
        notes.append("No tangent kernel: it is drawn for outputs of shape [N] or [N, C].")
        return None
    classes = output.shape[1] if output.ndim == 2 else 1
    budget = current_budget(case.settings.memory, output.device) // _KERNEL_PART
    fits = int((budget / output.element_size()) ** 0.5) // classes
    index, batch = case.some_samples(max(min(_KERNEL_SAMPLES, fits), 1))
    labels = None if case.labels is None else case.labels[index]
    try:
        gram = parameter_jacobian(case.model, None, batch).gram().detach()
    except HesseError as error:
        notes.append(f"No tangent kernel: {error.asked} {error.found}.")
        return None
    matrix = (gram if gram.ndim == 2 else gram.diagonal(dim1=1, dim2=3).sum(-1) / classes).double().cpu()
    if labels is not None:
        by_label = labels.argsort(stable=True)
        index, labels, matrix = index[by_label], labels[by_label], matrix[by_label][:, by_label]
    if len(index) < case.samples:
        notes.append(f"The kernel is that of {len(index)} samples, spread evenly over the batch.")
    return {
        "samples": index.tolist(),
        "labels": None if labels is None else labels.tolist(),
        "matrix": matrix.tolist(),
        "outputs": classes,
        "largest_share": _largest_share(matrix),
        **_blocks(matrix, labels),
    }


def _largest_share(matrix: Tensor) -> float:
    values = torch.linalg.eigvalsh(matrix)
    return (values[-1] / values.sum()).item() if values.sum() > 0 else 0.0


def cosines(matrix: Tensor) -> Tensor:
    """A kernel with every sample scaled to length one (a sample without any gradient stays zero)."""
    lengths = matrix.diagonal().clamp(min=0).sqrt()
    lengths[lengths == 0] = 1.0
    return matrix / lengths[:, None] / lengths[None, :]


def _blocks(matrix: Tensor, labels: Tensor | None) -> dict[str, float | None]:
    """Mean cosine of two different samples of one class, and of two classes."""
    same = different = None
    if labels is not None:
        alike = labels[:, None] == labels[None, :]
        others = ~torch.eye(len(labels), dtype=torch.bool)
        angle = cosines(matrix)
        same = angle[alike & others].mean().item() if bool((alike & others).any()) else None
        different = angle[~alike].mean().item() if bool((~alike).any()) else None
    return {"cosine_same_class": same, "cosine_other_class": different}


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
        angle = cosines(torch.tensor(kernel["matrix"], dtype=torch.float64))
        drawings.append(Drawing("Tangent kernel", _kernel_caption(kernel), plots.heat_map(angle.tolist(), kernel["labels"])))
    return tuple(drawings)


def _kernel_caption(kernel: dict[str, Any]) -> str:
    averaged = f", averaged over the {kernel['outputs']} outputs" if kernel["outputs"] > 1 else ""
    caption = f"Cosine of the output gradients of two samples{averaged}."
    same, other = kernel["cosine_same_class"], kernel["cosine_other_class"]
    if kernel["labels"] is None:
        return caption + " Samples in the order of the batch."
    caption += " Samples are sorted by label; lines part the classes."
    if same is None or other is None:
        return caption
    if same - other > 0.05:
        verdict = "the blocks on the diagonal stand out: the model treats a class as a group"
    else:
        verdict = "no class blocks stand out: a step on one class moves the others about as much"
    return f"{caption} Mean {same:.2f} within a class and {other:.2f} across classes: {verdict}."


PANEL = Panel("curvature", "Curvature", "How sharp is the minimum, and which samples move together?", measure, show)
