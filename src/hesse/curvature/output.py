"""The second derivative of a loss in the space of predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.autodiff.output_curvature import CallableCurvature, LossCurvature, loss_curvature
from hesse.core.errors import DataError, LeafError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.linalg.diagonal import diagonal_rule
from hesse.operators.base import LinearOperator, Tag

_ASKED = "output_hessian(loss, output, target) differentiates a loss twice by the predictions."


class OutputHessian(LinearOperator):
    """The second derivative of a loss by a model's output, block-diagonal over samples; made by `output_hessian`.

    Products are analytic where hesse knows the loss: a softmax over C classes takes memory proportional to its logits, never
    C x C.

    Attributes:
        curvature: the form behind it, and its divisor.
    """

    def __init__(self, curvature: LossCurvature, like: Tensor) -> None:
        self.curvature = curvature
        self.in_space = self.out_space = Space.of(like.detach())
        known_psd = not isinstance(curvature.form, CallableCurvature) and curvature.form.is_psd
        self.tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN} | ({Tag.PSD} if known_psd else set()))

    def mv(self, v: Tree) -> Tree:
        return self.curvature.form.mv(v) * self.curvature.factor

    def mm(self, V: Tree) -> Tree:
        return self.mv(V)

    def transpose(self) -> LinearOperator:
        return self


@diagonal_rule.register(OutputHessian)
def _diagonal(A: OutputHessian) -> Tensor:
    return (A.curvature.form.diagonal() * A.curvature.factor).flatten()


def output_hessian(
    loss: Callable[[Any, Any], Tensor],
    output: Tensor,
    target: Any,
    *,
    kind: Literal["observed", "expected"] = "observed",
) -> OutputHessian:
    """The Hessian of a loss by the predictions, as an operator; its `diagonal` is what second-order boosting asks for.

    Args:
        loss: ``loss(output, target)``, a scalar; with a rule for losses that hesse knows, by autodiff for any other.
        output: the predictions ``[n, ...]``.
        target: the targets.
        kind: "observed": at these targets; "expected": over targets drawn from the distribution that the loss stands for (the
            Fisher information of the predictions, never negative).

    Returns:
        A symmetric operator on tensors like `output`; `hesse.diagonal` of it has ``[output.numel()]`` elements, in the order of
        ``output.flatten()``. It carries the loss's reduction (a mean loss is divided by its normalizer).

    Raises:
        LeafError: integer predictions. NonScalarError: ``reduction="none"``. UnsupportedError: the expected one of a loss that
        is no negative log-likelihood.

    Cost: less than one gradient of the loss a product; for a callable without a rule one gradient, and its diagonal one for
    each element of a sample's output.
    """
    if not isinstance(output, Tensor) or not output.dtype.is_floating_point:
        raise LeafError(_ASKED, getattr(output, "dtype", type(output).__name__), "pass a tensor of real numbers")
    if kind not in ("observed", "expected"):
        raise DataError(_ASKED, f"kind={kind!r}", "pass 'observed' or 'expected'")
    like = output.detach()
    with torch.enable_grad():
        curvature = loss_curvature(loss, like, target, None, "hessian" if kind == "observed" else "information", _ASKED)
    return OutputHessian(curvature, like)
