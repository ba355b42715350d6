"""The generalized Gauss-Newton matrix ``Jᵀ H J`` (Schraudolph 2002).

J is the model's Jacobian, H the loss's Hessian by its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.losses import batch_loss
from hesse.autodiff.model import Model, Selection, as_model
from hesse.autodiff.model_run import ModelRun
from hesse.autodiff.output_curvature import Kind, loss_curvature, refuse_linear
from hesse.autodiff.second_order import hessian_operator
from hesse.core.errors import StructureError, UnsupportedError
from hesse.core.memory import Budget
from hesse.curvature.batch import BatchLoss, OfBatch, normalizer, open_batch, over_data, require_same_question, seed_for
from hesse.curvature.gauss_newton import GaussNewton, require_samples
from hesse.curvature.output import OutputHessian
from hesse.curvature.split import Make, Making
from hesse.operators.algebra import Congruence
from hesse.operators.base import LinearOperator
from hesse.operators.spread import asked_together

_ASKED = "ggn(model, loss, data) joins the Jacobian of the model with the Hessian of the loss."


@asked_together
def ggn(  # noqa: PLR0913 - a model, a loss, data, and how
    model: Any,
    loss: BatchLoss,
    data: Any,
    *,
    kind: Literal["exact", "sampled"] = "exact",
    samples: int = 1,
    generator: torch.Generator | None = None,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    data_check: bool = True,
    memory: Budget | None = None,
) -> LinearOperator:
    """The generalized Gauss-Newton matrix of a model and a loss, over one batch or a data set.

    Args:
        model, loss, data, params, output, data_check, memory: as for `loss_hessian`.
        kind: "exact", or "sampled": H is replaced by outer products of random cotangents with H as their mean. The sampled
            matrix is fixed by the generator's seed and the content of the samples.
        samples: how many cotangents a sample of the data, for "sampled".
        generator: source of the randomness, for "sampled".

    Returns:
        A symmetric operator on trees like the parameters; positive semi-definite where the loss is convex in the output. Of one
        batch and kind "exact" it has ``rows()``, its factor.

    Raises:
        UnsupportedError: a loss that is linear in the output (``nll_loss``, ``kl_div``, ``l1_loss``), whose matrix is zero.
        SymmetryError: the sampled matrix of a loss that is not convex in the output. Others as `loss_hessian`.

    Cost: one forward pass with its graph kept; a product takes the tangents along this graph and one backward pass (0.8 to 1.4
    gradients), the first one for a model and a shape two passes more, which check it. The exact diagonal takes one backward
    pass without weight gradients for each output of a sample (for C outputs about 0.75 C gradients), a sampled one just one.
    """
    if kind not in ("exact", "sampled"):
        raise StructureError("ggn takes kind='exact' or 'sampled'.", repr(kind), "pass one of these")
    resolved = as_model(model, params=params, output=output)
    refuse_linear(loss, _ASKED)
    require_same_question(resolved, loss, data, kind=kind, samples=samples)
    if kind == "exact":
        make: Make = lambda batch: of_batch(resolved, loss, batch, "hessian", _ASKED)  # noqa: E731
    else:
        how: tuple[Kind, int, int] = ("hessian", require_samples(samples), seed_for(data, generator))
        make = lambda batch: sampled_of_batch(resolved, loss, batch, how, _ASKED)  # noqa: E731
    return over_data(Making(make, resolved, loss, memory, _ASKED), data, data_check)


def of_batch(model: Model, loss: BatchLoss, batch: Any, kind: Kind, asked: str) -> GaussNewton:
    """The matrix of one batch with the loss's Hessian, or with its Fisher information, by the output."""
    inputs, targets, count = open_batch(model, batch, asked)
    run = ModelRun(model, inputs, count, asked)
    value = run.value
    if isinstance(value, Tensor):
        middle: LinearOperator = OutputHessian(loss_curvature(loss, value.detach(), targets, model, kind, asked), value)
        followed = _followed(loss, value, targets, model, kind, asked) if value.requires_grad else None
    else:
        middle, followed = hessian_operator(lambda out: batch_loss(loss, out, targets, model, asked), value), None
    return GaussNewton(run, middle, normalizer(loss, value, targets, count, asked), (inputs, targets), followed)


def _followed(loss: BatchLoss, value: Tensor, targets: Any, model: Model, kind: Kind, asked: str) -> LinearOperator:
    """The loss's Hessian, differentiable by what the output hangs on.

    Raises:
        UnsupportedError: an expected Fisher matrix, which is not.
    """
    if kind == "information":
        raise UnsupportedError(
            asked, "inputs (or something else that the model reads) that require grad", "detach them, or use ggn"
        )
    return hessian_operator(lambda out: batch_loss(loss, out, targets, model, asked), value)


def sampled_of_batch(model: Model, loss: BatchLoss, batch: Any, how: tuple[Kind, int, int], asked: str) -> OfBatch:
    """The matrix of one batch with outer products of random cotangents; `how`: of which form, how many, the seed."""
    kind, samples, seed = how
    exact = of_batch(model, loss, batch, kind, asked)
    R = exact.seeded_rows(samples, seed, keep=True)
    scaled = Congruence(R) * (1.0 / R.mass if R.mass else 0.0)
    return OfBatch(scaled, lambda: (exact.mass, exact.additive), lambda: R.held_bytes, exact.reads, batch)
