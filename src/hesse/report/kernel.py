"""The tangent kernel of some samples: which samples move together, and whether classes do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import as_model
from hesse.check.replica import Model, call_model
from hesse.core.errors import HesseError
from hesse.core.random import rademacher
from hesse.core.tree import Tree
from hesse.parameters import parameter_jacobian
from hesse.report import plots
from hesse.report.case import Case
from hesse.report.panel import Drawing

_SAMPLES = 60
_OUTPUTS = 10  # up to so many outputs each has its backward pass; more are combined at random


def measure_kernel(case: Case, notes: list[str]) -> dict[str, Any] | None:
    """The kernel averaged over the outputs, of samples sorted by label; None, with a note, if the model has none.

    The average of more than 10 outputs is estimated from 10 random signed sums of them, whose kernels have it as their
    mean (Hutchinson 1989 on the outputs).

    Cost: a backward pass of up to 60 samples for each of up to 10 outputs, and their inner products.
    """
    output = call_model(case.model, case.batch[0])
    if not (isinstance(output, Tensor) and output.ndim in (1, 2) and output.shape[0] == case.samples):
        notes.append("No tangent kernel: it is drawn for outputs of shape [N] or [N, C].")
        return None
    outputs = output.shape[1] if output.ndim == 2 else 1
    model = case.model
    if outputs > _OUTPUTS:
        signs = rademacher((outputs, _OUTPUTS), output.dtype, output.device, case.generator())
        model = _combined(case.model, signs / _OUTPUTS**0.5)
        notes.append(f"The kernel's average over {outputs} outputs is estimated from {_OUTPUTS} random signed sums of them.")
    index, batch = case.some_samples(_SAMPLES)
    try:
        gram = parameter_jacobian(model, None, batch).gram().detach()
    except HesseError as error:
        notes.append(f"No tangent kernel: {error.asked} {error.found}.")
        return None
    matrix = (gram if gram.ndim == 2 else gram.diagonal(dim1=1, dim2=3).sum(-1) / outputs).double().cpu()
    labels = None if case.labels is None else case.labels[index]
    if labels is not None:
        order = labels.argsort(stable=True)
        index, labels, matrix = index[order], labels[order], matrix[order][:, order]
    if len(index) < case.samples:
        notes.append(f"The kernel is that of {len(index)} samples, spread evenly over the batch.")
    return {
        "samples": index.tolist(),
        "labels": None if labels is None else labels.tolist(),
        "matrix": matrix.tolist(),
        "outputs": outputs,
        "largest_share": _largest_share(matrix),
        **_blocks(matrix, labels),
    }


def _combined(model: Model, weights: Tensor) -> Model:
    """The model followed by a fixed linear map ``[C, k]`` of its outputs."""
    resolved = as_model(model)

    def f(params: Tree, *inputs: Any, **named: Any) -> Tensor:
        given = named if named else inputs if len(inputs) != 1 else inputs[0]
        return resolved.call(params, given) @ weights

    return f, resolved.params


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


def draw_kernel(kernel: dict[str, Any]) -> Drawing:
    """The kernel's cosines as a heat map."""
    angle = cosines(torch.tensor(kernel["matrix"], dtype=torch.float64))
    return Drawing("Tangent kernel", _caption(kernel), plots.heat_map(angle.tolist(), kernel["labels"]))


def _caption(kernel: dict[str, Any]) -> str:
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
