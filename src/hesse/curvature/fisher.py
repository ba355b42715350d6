"""The empirical Fisher: the mean of outer products of per-sample gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.model import Model, Selection, as_model, split_batch
from hesse.autodiff.roots import Asked, capture_rows
from hesse.core.errors import StructureError
from hesse.curvature.batch import BatchLoss, OfBatch, over_data
from hesse.operators.algebra import Congruence
from hesse.operators.base import LinearOperator
from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "fisher(model, loss, data, kind='empirical') adds up outer products of per-sample gradients."


def fisher(
    model: Any,
    loss: BatchLoss,
    data: Any,
    *,
    kind: Literal["empirical"],
    labels: Literal["true", "predicted"] = "true",
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
) -> LinearOperator:
    """The empirical Fisher matrix ``Jᵀ J / mass``, J the per-sample gradients, over one batch or a data set.

    It is *not* the Fisher information unless the labels are drawn from the model (Kunstner, Balles, Hennig 2019).

    Args:
        model, loss, data, params, output: as for `loss_hessian`; row n of J is the gradient of sample n's unreduced loss.
        kind: "empirical".
        labels: "true": those of the data; "predicted": the class with the largest output, for outputs ``[N, C]``.

    Returns:
        A symmetric positive semi-definite operator on trees like the parameters; its diagonal is
        ``parameter_jacobian(...).sum_of_squares() / mass``.

    Raises:
        As `parameter_jacobian`.

    Cost: one forward pass and one backward pass without weight gradients; then less than one gradient a product.
    """
    if kind != "empirical" or labels not in ("true", "predicted"):
        raise StructureError(
            "fisher takes kind='empirical' and labels='true' or 'predicted'.", f"{kind!r}, {labels!r}", "pass one of these"
        )
    resolved = as_model(model, params=params, output=output)
    return over_data(lambda batch: _of_batch(resolved, loss, batch, labels), data, _ASKED)


def _of_batch(model: Model, loss: BatchLoss, batch: Any, labels: str) -> OfBatch:
    inputs, targets = split_batch(batch, _ASKED)
    with deterministic(model, _ASKED):
        if labels == "predicted":
            with torch.no_grad():
                targets = model.call(model.params, inputs).argmax(1)
        rows = capture_rows(model, loss, (inputs, targets), Asked(_ASKED))
    J = ParameterJacobian.of(rows, model.params)
    return OfBatch(Congruence(J) * (1.0 / J.mass if J.mass else 0.0), lambda: (J.mass, J.additive))
