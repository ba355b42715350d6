"""Fisher matrices, named by what they are: expected, sampled, empirical, observed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.model import Model, Selection, as_model, is_one_batch, split_batch
from hesse.autodiff.output_curvature import require_distribution
from hesse.autodiff.roots import Asked, capture_rows
from hesse.core.errors import DataError, StructureError
from hesse.core.memory import Budget
from hesse.curvature.batch import BatchLoss, OfBatch, over_data, require_same_question, seed_for
from hesse.curvature.gauss_newton import require_samples
from hesse.curvature.ggn import of_batch, sampled_of_batch
from hesse.curvature.hessian import hessian_of_batch
from hesse.curvature.split import Make, Making
from hesse.operators.algebra import Congruence
from hesse.operators.base import LinearOperator
from hesse.operators.spread import asked_together
from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "fisher(model, loss, data) measures how the model's distribution of targets changes with the parameters."
_KINDS = ("expected", "sampled", "empirical", "observed")
FisherKind = Literal["expected", "sampled", "empirical", "observed"]
Labels = Literal["true", "predicted"] | Tensor


@asked_together
def fisher(  # noqa: PLR0913 - a model, a loss, data, and which of the four
    model: Any,
    loss: BatchLoss,
    data: Any,
    *,
    kind: FisherKind = "expected",
    labels: Labels = "true",
    samples: int = 1,
    generator: torch.Generator | None = None,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    data_check: bool = True,
    memory: Budget | None = None,
) -> LinearOperator:
    """A Fisher matrix of a model whose loss is a negative log-likelihood, over one batch or a data set.

    Four matrices go by this name (Kunstner, Balles, Hennig 2019; Martens 2020). With g the gradient of one sample's loss:

    - "expected": the mean of g gᵀ over targets drawn from the model, the Fisher information ("type 2"). For losses in their
      natural parameters (cross entropy and BCE of logits, MSE, Poisson of logs) it is the GGN.
    - "sampled": the same, with `samples` random cotangents a sample in place of the mean. Fixed by the seed and the data.
    - "empirical": g gᵀ at the given labels, *not* the Fisher information unless the labels are drawn from the model.
    - "observed": the Hessian of the loss; its expectation over targets drawn from the model is the Fisher information.

    Args:
        model, loss, data, params, output, data_check, memory: as for `loss_hessian`. The loss's own weights (class weights at
            the true labels, ignored targets, label smoothing's total) stay as weights of the samples.
        kind: which matrix.
        labels: for "empirical": "true": those of the data; "predicted": the class with the largest output, for outputs
            ``[N, C]``; a tensor: these, for one batch.
        samples: for "sampled": how many cotangents a sample.
        generator: for "sampled": source of the randomness.

    Returns:
        A symmetric operator on trees like the parameters, positive semi-definite but for "observed". Of "empirical", the
        diagonal is ``parameter_jacobian(...).sum_of_squares() / mass``.

    Raises:
        StructureError: another kind, or labels that do not fit. UnsupportedError: the expected or sampled Fisher of a loss that
        stands for no distribution of targets. Others as `loss_hessian` and `parameter_jacobian`.

    Cost: "expected": as `ggn`. "empirical", "sampled": one forward pass, one backward pass without weight gradients (a sampled
    cotangent each); then less than one gradient a product. "observed": as `loss_hessian`.
    """
    if kind not in _KINDS:
        raise StructureError("fisher takes one of four kinds.", repr(kind), f"pass one of {', '.join(map(repr, _KINDS))}")
    check_labels(labels, data, kind)
    if kind != "empirical":
        require_distribution(loss, kind, _ASKED)
    resolved = as_model(model, params=params, output=output)
    require_same_question(resolved, loss, data, kind=kind, samples=samples, labels=labels)
    data, labels = _labeled(data, labels)
    sampled = (require_samples(samples), seed_for(data, generator)) if kind == "sampled" else None
    make = _make_of(kind, resolved, loss, sampled, labels)
    return over_data(Making(make, resolved, loss, memory, _ASKED), data, data_check)


def _make_of(kind: str, model: Model, loss: BatchLoss, sampled: tuple[int, int] | None, labels: Labels) -> Make:
    """What turns a batch into its matrix; `sampled`: how many cotangents, and the seed, of that kind."""
    if sampled is not None:
        return lambda batch: sampled_of_batch(model, loss, batch, ("information", *sampled), _ASKED)
    if kind == "observed":
        return lambda batch: hessian_of_batch(model, loss, batch, _ASKED)
    if kind == "expected":
        return lambda batch: of_batch(model, loss, batch, "information", _ASKED)
    return lambda batch: _empirical(model, loss, batch, labels)


def _labeled(data: Any, labels: Labels) -> tuple[Any, Labels]:
    """A tensor of labels in the place of the targets, so that slices of the batch have their own."""
    return ((split_batch(data, _ASKED)[0], labels), "true") if isinstance(labels, Tensor) else (data, labels)


def check_labels(labels: Any, data: Any, kind: str) -> None:
    """Refuse labels that do not fit the data, or belong to another kind."""
    if isinstance(labels, Tensor) and kind == "empirical":
        if not is_one_batch(data):
            raise DataError(_ASKED, "a tensor of labels for a data set", "put the labels into the batches: labels='true'")
    elif isinstance(labels, Tensor) or labels not in ("true", "predicted"):
        raise StructureError("labels= is 'true', 'predicted' or a tensor.", repr(labels), "pass one of these")
    elif kind != "empirical" and labels != "true":
        raise StructureError("Labels belong to the empirical Fisher.", f"labels= with kind={kind!r}", "pass kind='empirical'")


def empirical_rows(model: Model, loss: BatchLoss, batch: Any, labels: Labels, *, keep: bool = True) -> ParameterJacobian:
    """The per-sample gradients of one batch, at the labels wanted."""
    inputs, targets = split_batch(batch, _ASKED)
    with deterministic(model, _ASKED):
        if isinstance(labels, Tensor):
            targets = labels
        elif labels == "predicted":
            with torch.no_grad():
                targets = _predicted(model.call(model.params, inputs), targets, loss)
        rows = capture_rows(model, loss, (inputs, targets), Asked(_ASKED, keep=keep))
    return ParameterJacobian.of(rows, model.params)


def _predicted(output: Any, targets: Any, loss: Any) -> Tensor:
    """The classes with the largest outputs; targets that the loss ignores stay what they are."""
    if not isinstance(output, Tensor) or output.ndim < 2:
        found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise DataError(
            "Predicted labels are the classes with the largest outputs [N, C].", found, "pass labels='true', or a tensor"
        )
    found = output.argmax(1)
    ignored = getattr(loss, "keywords", {}).get("ignore_index", getattr(loss, "ignore_index", -100))
    if isinstance(targets, Tensor) and targets.shape == found.shape and not targets.dtype.is_floating_point:
        found = torch.where(targets == ignored, targets, found)
    return found


def _empirical(model: Model, loss: BatchLoss, batch: Any, labels: Labels) -> OfBatch:
    J = empirical_rows(model, loss, batch, labels)
    scaled = Congruence(J) * (1.0 / J.mass if J.mass else 0.0)
    return OfBatch(scaled, lambda: (J.mass, J.additive), lambda: J.held_bytes, model.reads, batch)
