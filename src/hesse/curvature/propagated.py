"""The propagated diagonal of Becker and LeCun: an approximation of the Hessian's diagonal at the price of a gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.autodiff.determinism import deterministic
from hesse.autodiff.forward import run_forward
from hesse.autodiff.losses import batch_loss, loss_by_sample
from hesse.autodiff.model import Model, Selection, as_model, check_inputs, sample_count, split_batch
from hesse.autodiff.propagation import propagate
from hesse.autodiff.second_order import HessianOperator, hessian_operator
from hesse.core import random, tree
from hesse.core.batching import slices
from hesse.core.errors import StructureError
from hesse.core.tree import Tree
from hesse.rules.losses import known_loss

_ASKED = "propagated_diagonal(model, loss, batch) passes second derivatives back through the model, diagonals only."
_ELEMENTS_AT_ONCE = 2**22

Loss = Callable[[Any, Any], Tensor]


def propagated_diagonal(
    model: Any,
    loss: Loss,
    batch: Any,
    *,
    params: Selection = None,
    output: Callable[[Any], Tensor] | None = None,
    curvature: Literal["gauss-newton", "full"] = "gauss-newton",
) -> Tree:
    """An *approximation* of the diagonal of a loss's Hessian by the parameters, propagated back from layer to layer.

    The recursion of Becker and LeCun ("Improving the convergence of back-propagation learning with second order methods",
    1988), which optimal brain damage (LeCun, Denker, Solla 1990) and Torch7's ``hessian.lua`` use. It starts from the exact
    diagonal by the model's output, and keeps diagonals only: a linear layer passes its squared weights, an elementwise function
    the square of its derivative (whatever elementwise functions follow each other count as one), what moves data moves it; a
    weight takes the sum over samples and positions of what arrives, times its squared input.

    It equals the diagonal of the Gauss-Newton matrix for the last two linear layers of a chain, if the loss is a sum over the
    elements of the output and each weight is used once a sample; for other losses (cross entropy) for the last one. Deeper down
    off-diagonal elements are lost, and where paths join (residuals, tied weights, the positions of a convolution) their cross
    terms. ``diagonal(ggn(...))`` is exact.

    Args:
        model: an `nn.Module`, or ``(f, params)`` with ``f(params, *inputs)``.
        loss: ``loss(output, target)``, a scalar, a sum or mean over samples. For L1 losses, whose second derivative is zero,
            "gauss-newton" takes the convention of ``hessian.lua``: 1 (over the normalizer) where the output differs from the
            target, 0 elsewhere.
        batch: ``(inputs, targets)``.
        params: names of the parameters to differentiate by, or a predicate ``(name, tensor) -> bool``.
        output: picks the tensor out of what the model returns.
        curvature: "gauss-newton": never negative for convex losses. "full": adds what the second derivatives of elementwise
            functions contribute (LeCun, Bottou, Orr, Müller, "Efficient backprop", 1998, section 9.2); may be negative.

    Returns:
        A tree like the parameters.

    Raises:
        UnsupportedError: an op of the model has no rule, by name (normalization by the data themselves, softmax, fused
        recurrent layers). StructureError: an unknown curvature. NondeterministicError: the model draws random numbers. Others
        as `loss_hessian`.

    Cost: about one gradient ("full": about three), and for a loss without a rule that is not a sum over the elements of the
    output, one product with its Hessian by the output for each element of a sample's output.
    """
    if curvature not in ("gauss-newton", "full"):
        raise StructureError("curvature is 'gauss-newton' or 'full'.", repr(curvature), "pass one of these")
    resolved = as_model(model, params=params, output=output)
    inputs, targets = split_batch(batch, _ASKED)
    count = sample_count(inputs, targets, _ASKED)
    check_inputs(resolved, inputs, _ASKED)
    with deterministic(resolved, _ASKED):
        forward = run_forward(resolved, inputs, count, _ASKED)
    given = forward.output.detach()
    is_full = curvature == "full"
    slope = hessian_operator(lambda out: batch_loss(loss, out, targets, resolved, _ASKED), given).gradient if is_full else None
    diagonal = _output_diagonal(loss, given, targets, count, resolved, is_full)
    found = propagate(forward, diagonal, slope, _ASKED)
    return tree.flatten(resolved.params)[1].unflatten(found.values())


def _output_diagonal(loss: Loss, output: Tensor, targets: Any, count: int, model: Model, is_full: bool) -> Tensor:
    """Second derivatives of the batch loss by each element of the output."""
    with torch.enable_grad():
        batch_loss(loss, output, targets, model, _ASKED)
    base = loss.func if isinstance(loss, functools.partial) else loss
    rule = known_loss(loss) if isinstance(targets, Tensor) else None
    if rule is not None and not is_full and (isinstance(base, nn.L1Loss) or base is F.l1_loss):
        return (output != targets).to(output.dtype) / rule.mass(output, targets)
    if rule is not None and rule.curvature is not None:
        mass = rule.mass(output, targets)
        return rule.curvature(output, targets).diagonal() * (1 / mass if mass else 0.0)

    def whole(out: Tensor) -> Tensor:
        parts = loss_by_sample(loss, out, targets, count, _ASKED)
        return parts.contributions.sum() / parts.mass

    return _diagonal_by_samples(hessian_operator(whole, output), output, count)


def _diagonal_by_samples(H: HessianOperator, output: Tensor, count: int) -> Tensor:
    """The diagonal of a Hessian that is block-diagonal over samples: at once if it is diagonal, else an element at a time."""
    guess = H @ torch.ones_like(output)
    probe = random.normal(output.shape, output.dtype, output.device, random.make_generator())
    product = H @ probe
    slack = 64 * torch.finfo(output.dtype).eps * float(product.norm())
    if float((product - guess * probe).norm()) <= slack:
        return guess
    rows = output.numel() // count
    result = output.new_zeros(count, rows)
    for part in slices(rows, max(_ELEMENTS_AT_ONCE // output.numel(), 1), "second derivatives by the output"):
        units = output.new_zeros(part.stop - part.start, count, rows)
        units.diagonal(part.start, 0, 2).fill_(1)
        products = H @ units.reshape(-1, *output.shape)
        result[:, part] = products.reshape(units.shape)[:, :, part].diagonal(0, 0, 2)
    return result.reshape(output.shape)
