"""The generalized Gauss-Newton matrix ``Jᵀ H J`` (Schraudolph 2002).

J is the model's Jacobian, H the loss's Hessian by its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.linearize import linearize_again
from hesse.autodiff.losses import batch_loss
from hesse.autodiff.model import Model, Selection, as_model
from hesse.autodiff.second_order import hessian_operator
from hesse.curvature.batch import BatchLoss, OfBatch, normalizer, open_batch, over_data
from hesse.operators.algebra import Congruence
from hesse.operators.base import LinearOperator

_ASKED = "ggn(model, loss, data) joins the Jacobian of the model with the Hessian of the loss."


def ggn(
    model: Any, loss: BatchLoss, data: Any, *, params: Selection = None, output: Callable[[Any], Tensor] | None = None
) -> LinearOperator:
    """The generalized Gauss-Newton matrix of a model and a loss, over one batch or a data set.

    Args:
        model, loss, data, params, output: as for `loss_hessian`.

    Returns:
        A symmetric operator on trees like the parameters; positive semi-definite where the loss is convex in the output.

    Raises:
        As `loss_hessian`.

    Cost: one forward pass with its graph kept; a product is one forward pass in forward mode and one backward pass (about
    1.2 to 1.7 gradients), the first one for a model and a shape two passes more, which check it.
    """
    resolved = as_model(model, params=params, output=output)
    return over_data(lambda batch: _of_batch(resolved, loss, batch), data, _ASKED)


def _of_batch(model: Model, loss: BatchLoss, batch: Any) -> OfBatch:
    inputs, targets, count = open_batch(model, batch, _ASKED)
    with deterministic(model, _ASKED):
        value, J = linearize_again(lambda params: model.call(params, inputs), model.params, model.key)
    H = hessian_operator(lambda out: batch_loss(loss, out, targets, model, _ASKED), value)
    return OfBatch(Congruence(J, H), normalizer(loss, value, targets, count, _ASKED))
