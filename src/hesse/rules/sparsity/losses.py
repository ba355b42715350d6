"""Losses, and their derivatives."""

from __future__ import annotations

import torch

from hesse.rules.sparsity.forms import Call, Grouped, Link, Same, everything, places, shared, sparsity_rules

_POINTWISE = (
    "mse_loss",
    "huber_loss",
    "smooth_l1_loss",
    "binary_cross_entropy",
    "soft_margin_loss",
    "binary_cross_entropy_with_logits",
)
_NONE = 0


@sparsity_rules.register(*_POINTWISE)
def pointwise_loss(call: Call) -> list[Link]:
    """Element by element, or all of it summed."""
    if call.given.get("reduction", 1) == _NONE:
        return [(0, t, Same()) for t in call.operands]
    return everything(call)


@sparsity_rules.register(*(f"{name}_backward" for name in _POINTWISE))
def pointwise_loss_backward(call: Call) -> list[Link]:
    """Element by element, the gradient that arrives being one number or as many."""
    return [(0, t, Same()) for t in call.operands]


@sparsity_rules.register("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss", "multilabel_margin_loss_forward")
def class_loss(call: Call) -> list[Link]:
    """A loss on its row of scores, or all of them summed."""
    x, y = call["self"], call.outputs[0]
    if y.ndim == 0 or call.given.get("reduction", 1) != _NONE or x.ndim < 2:
        return everything(call)
    kept = [axis for axis in range(x.ndim) if axis != 1]
    return [(0, x, Grouped(shared(x.shape, kept), torch.arange(y.numel()).view(y.shape)))]


@sparsity_rules.register("nll_loss_backward", "nll_loss2d_backward")
def class_loss_backward(call: Call) -> list[Link]:
    """A score's derivative on the gradient of its row."""
    grad, y = call["grad_output"], call.outputs[0]
    if not grad.ndim:
        return [(0, grad, Grouped(torch.zeros((), dtype=torch.int64), torch.zeros(y.shape, dtype=torch.int64)))]
    return [(0, grad, Grouped(places(grad), shared(y.shape, [axis for axis in range(y.ndim) if axis != 1])))]
