"""Panel: which samples pull hardest? The norms of the per-sample gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.losses import loss_by_sample
from hesse.check.replica import call_model
from hesse.parameters import parameter_jacobian
from hesse.report import plots
from hesse.report.case import Case
from hesse.report.panel import Column, Drawing, Fact, Numbers, Panel, Picture, Table, View
from hesse.report.pictures import png_of_image

_LARGEST = 12


def measure(case: Case) -> Numbers:
    """Norms of all per-sample gradients of the batch, and the samples with the largest.

    Cost: about 1 gradient where every layer has a rule; see `hesse.parameter_jacobian`.
    """
    norms = parameter_jacobian(case.model, case.loss, case.batch).norms().detach().double().cpu()
    squares = norms.square()
    total = squares.sum()
    order = norms.argsort(descending=True, stable=True)
    tenth = max(round(0.1 * len(norms)), 1)
    return {
        "samples": case.samples,
        "norms": norms.tolist(),
        "median": norms.median().item(),
        "mean": norms.mean().item(),
        "maximum": norms.max().item(),
        "top_tenth_share": (squares[order[:tenth]].sum() / total).item() if total > 0 else 0.0,
        "largest": _largest(case, order[:_LARGEST], norms),
        "notes": _notes(case),
    }


def _notes(case: Case) -> list[str]:
    notes = ["A sample's gradient is that of its own contribution to the loss, before the batch is averaged."]
    if case.batches != 1:
        which = "the first batch" if case.batches is None else f"the first of {case.batches} batches"
        notes.append(f"Computed on {which} ({case.samples} samples).")
    return notes


def _largest(case: Case, index: Tensor, norms: Tensor) -> list[dict[str, Any]]:
    squares = norms.square()
    total = squares.sum().item()
    labels, predicted, losses = case.labels, *_outcomes(case)
    rows = []
    for sample in index.tolist():
        row: dict[str, Any] = {"index": sample, "norm": norms[sample].item()}
        row["share"] = squares[sample].item() / total if total else 0.0
        if losses is not None:
            row["loss"] = losses[sample].item()
        if labels is not None:
            row["label"] = int(labels[sample])
        if predicted is not None:
            row["predicted"] = int(predicted[sample])
        rows.append(row)
    return rows


def _outcomes(case: Case) -> tuple[Tensor | None, Tensor | None]:
    """The predicted classes ``[N]`` (for class scores ``[N, C]`` with labels) and the samples' losses ``[N]``."""
    with torch.no_grad():
        output = call_model(case.model, case.batch[0])
        terms = loss_by_sample(case.loss, output, case.batch[1], case.samples, "The samples' losses are asked for.")
    scores = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1 and case.labels is not None
    return (output.argmax(1).cpu() if scores else None), terms.contributions.detach().double().cpu()


def show(case: Case, numbers: Numbers) -> View:
    """Histogram, cumulative share, table and pictures of the largest."""
    first = numbers["largest"][0] if numbers["largest"] else {}
    ratio = numbers["maximum"] / numbers["median"] if numbers["median"] else float("inf")
    share = f"the top 10% of samples carry {numbers['top_tenth_share']:.0%} of the squared norm"
    times = f"{ratio:,.0f}" if ratio < 1e4 else f"{ratio:.0e}"
    headline = f"Sample {first.get('index')} pulls hardest, {times} times the median; {share}."
    keys = first.keys()
    columns = [Column("sample", "index", "count", "index in the batch, from 0")]
    columns += [Column("label", "label", "count")] if "label" in keys else []
    columns += [Column("predicted", "predicted", "count")] if "predicted" in keys else []
    columns += [Column("gradient norm", "norm")]
    columns += [Column("loss", "loss")] if "loss" in keys else []
    columns += [Column("share", "share", "percent", "of the sum of squared norms over the batch")]
    facts = (
        Fact("median norm", "median"),
        Fact("largest norm", "maximum", remark=f"sample {first.get('index')}"),
        Fact("share of the top 10%", "top_tenth_share", "percent", remark="of the sum of squared norms"),
    )
    return View(
        status="note", headline=headline, facts=facts, tables=(Table("Largest gradients", "largest", tuple(columns)),),
        drawings=_drawings(numbers), pictures=_pictures(case, numbers),
    )


def _drawings(numbers: Numbers) -> tuple[Drawing, ...]:
    histogram = plots.log_histogram(numbers["norms"], "norm of a sample's gradient", "samples", numbers["median"], "median")
    shares = plots.cumulative_share(numbers["norms"], "samples, largest first (%)", "share of squared norm (%)")
    return (
        Drawing(
            "Distribution of the norms",
            f"Norms of the {numbers['samples']} per-sample gradients, on a logarithmic axis. A far right tail: a few hard "
            "or mislabeled samples steer the step, or clipping will bite there.", histogram,
        ),
        Drawing(
            "Who makes up the gradient",
            "Share of the sum of squared norms that the largest so many percent of samples hold. The dashed diagonal: all "
            "samples alike.", shares,
        ),
    )


def _pictures(case: Case, numbers: Numbers) -> tuple[Picture, ...]:
    images = case.batch[0]
    if not (isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] in (1, 3)):
        return ()
    pictures = []
    for row in numbers["largest"]:
        told = [f"label {row['label']}"] if "label" in row else []
        told += [f"predicted {row['predicted']}"] if "predicted" in row else []
        text = ", ".join(told) or f"norm {row['norm']:.3g}"
        pictures.append(Picture(png_of_image(images[row["index"]]), f"#{row['index']}", text))
    return tuple(pictures)


PANEL = Panel(
    "samples", "Per-sample gradients", "Which samples pull hardest on the parameters?", measure, show
)
