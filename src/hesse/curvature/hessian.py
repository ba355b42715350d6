"""The Hessian of a model's loss by its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.losses import batch_loss
from hesse.autodiff.model import Model, Selection, as_model
from hesse.autodiff.piecewise import is_piecewise_linear
from hesse.autodiff.second_order import HessianOperator, record_scalar
from hesse.core import tree
from hesse.core.errors import HesseError
from hesse.core.guard import PARAMETERS
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.curvature.batch import BatchLoss, OfBatch, normalizer, open_batch, over_data, require_same_question
from hesse.curvature.gauss_newton import GaussNewton
from hesse.curvature.ggn import of_batch
from hesse.curvature.split import Making
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.trace import trace_rule
from hesse.operators.base import LinearOperator
from hesse.operators.spread import asked_together

_ASKED = "loss_hessian(model, loss, data) differentiates the loss of a batch twice by the parameters."


@asked_together
def loss_hessian(
    model: Any,
    loss: BatchLoss,
    data: Any,
    *,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    data_check: bool = True,
    memory: Budget | None = None,
) -> LinearOperator:
    """The Hessian of a loss with respect to a model's parameters, over one batch or a data set.

    Args:
        model: an `nn.Module`, or ``(f, params)`` with ``f(params, *inputs)``.
        loss: ``loss(output, target)``, a scalar.
        data: one batch ``(inputs, targets)``, or an iterable of batches that can be read again (a DataLoader). Batches are
            weighted by their loss's own normalizer, so that uneven batches, class weights and ignored targets give the
            full-batch Hessian.
        params: names of the parameters to differentiate by, or a predicate ``(name, tensor) -> bool``.
        output: picks the tensor out of what the model returns.
        data_check: for data sets: refuse a pass whose samples differ from those of the first one, in whatever order they come
            (of a list, changes are seen where PyTorch counts them, not those written to a tensor through NumPy); False for
            losses or data that are random on purpose.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB"). A batch that does not fit is worked on in
            slices, as a data set is; up to half may hold graphs of batches and slices, which later products use again.

    Returns:
        A symmetric operator on trees like the parameters.

    Raises:
        NonScalarError: the loss is no scalar. DetachedError: the graph was cut, with the line. NondeterministicError: the
        model draws random numbers. OneShotDataError: a generator. MemoryBudgetError: two samples do not fit, or the batch does
        not and its samples influence each other. Others as `parameter_jacobian`.

    Cost: one batch: one gradient with its graph kept, then 1.2 to 2.2 gradients a product. A data set: the same for every batch
    whose graph is kept (its `repr` says how many), 2.2 to 3.9 gradients a product for any other. A budget below
    1024 times the bytes of batch and parameters adds products on about a tenth of a batch, which measure what they take.
    """
    resolved = as_model(model, params=params, output=output)
    require_same_question(resolved, loss, data)
    make = lambda batch: hessian_of_batch(resolved, loss, batch, _ASKED)  # noqa: E731
    return over_data(Making(make, resolved, loss, memory, _ASKED), data, data_check)


def hessian_of_batch(model: Model, loss: BatchLoss, batch: Any, asked: str) -> LossHessian:
    """The Hessian of one batch's loss."""
    inputs, targets, count = open_batch(model, batch, asked)
    outputs: list[Any] = []

    def objective(params: Tree) -> Tensor:
        result = model.call(params, inputs)
        outputs[:] = [tree.map_tree(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result)]
        return batch_loss(loss, result, targets, model, asked)

    with deterministic(model, asked):
        recording = record_scalar(objective, model.params, asked)
    find = normalizer(loss, outputs[0], targets, count, asked)
    return LossHessian(HessianOperator(recording), find, lambda: of_batch(model, loss, batch, "hessian", asked), (model, batch))


class LossHessian(OfBatch):
    """The Hessian of one batch's loss.

    Its diagonal is that of the Gauss-Newton matrix where the model's output is piecewise linear in each parameter (a ReLU
    network); otherwise it takes a product for each parameter.
    """

    def __init__(
        self,
        hessian: HessianOperator,
        normalizer: Callable[[], tuple[float, bool]],
        gauss_newton: Callable[[], GaussNewton],
        of: tuple[Model, Any],
    ) -> None:
        super().__init__(hessian, normalizer, lambda: hessian.graph_bytes, of[0].reads, of[1])
        self._gauss_newton, self._hessian = gauss_newton, hessian

    @property
    def gradient(self) -> Tree:
        """The gradient of the loss, a tree like the parameters."""
        self._guard.check(*PARAMETERS)
        return self._hessian.gradient

    def same_diagonal(self) -> GaussNewton | None:
        """The Gauss-Newton matrix, if its diagonal is that of the Hessian.

        Cost: a forward pass.
        """
        self._guard.check(*PARAMETERS)
        try:
            matrix = self._gauss_newton()
        except HesseError:
            return None
        run = matrix.run.forward
        return matrix if run is not None and is_piecewise_linear(run.walk) else None


@diagonal_rule.register(LossHessian)
def _diagonal(A: LossHessian) -> Tensor | None:
    same = A.same_diagonal()
    return None if same is None else diagonal_rule(same)


@trace_rule.register(LossHessian)
def _trace(A: LossHessian) -> complex | None:
    same = A.same_diagonal()
    return None if same is None else trace_rule(same)
