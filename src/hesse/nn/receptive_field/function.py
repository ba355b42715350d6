"""Which way a receptive-field convolution is computed, and the node that it leaves in a graph."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.recording import inside_functorch
from hesse.nn.receptive_field.backward import gradient
from hesse.nn.receptive_field.composite import composite
from hesse.nn.receptive_field.forward import evaluate
from hesse.nn.receptive_field.kernel import Kernel
from hesse.nn.receptive_field.pull import Pull, in_batches
from hesse.nn.receptive_field.reductions import is_delicate
from hesse.nn.receptive_field.separable import as_convolution
from hesse.operators.sparse import is_dual


def convolve(kernel: Kernel, x: Tensor, weight: Tensor, *, closes_over_variables: bool) -> Tensor:
    """The value of a receptive-field convolution, differentiable to any order.

    Args:
        kernel: what to compute.
        x: padded, ``[N, in_channels, *padded]``.
        weight: ``[*weight_shape, out_channels, channels of a group, *kernel]``.
        closes_over_variables: whether fn or reduce uses other tensors that are to be differentiated by, backwards or
            forwards: all terms are then kept.

    Returns:
        ``[N, out_channels, *out]``.

    Raises:
        MemoryBudgetError: the output and a block of one term do not fit into the budget.
    """
    convolution = as_convolution(kernel, x, weight)
    if convolution is not None:
        return convolution
    grows = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if torch.compiler.is_compiling() or inside_functorch() or closes_over_variables or is_dual(x) or is_dual(weight):
        return composite(kernel, x, weight, recompute=False)
    if kernel.reduction is None:
        return composite(kernel, x, weight, recompute=True)
    return _ReceptiveField.apply(kernel, x, weight) if grows else evaluate(kernel, x, weight)  # pyright: ignore[reportReturnType]


class _ReceptiveField(torch.autograd.Function):
    """Forward and first backward pass in blocks; passes that are differentiated again go through whole windows."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, x: Tensor, weight: Tensor) -> Tensor:
        out = evaluate(kernel, x, weight)
        ctx.kernel = kernel
        ctx.save_for_backward(x, weight, *([out] if kernel.reduce in ("prod", "logsumexp") else []))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, *out = ctx.saved_tensors
        kernel, needed = ctx.kernel, ctx.needs_input_grad[1:]
        batched = in_batches([g])
        if batched or torch.is_grad_enabled() or (out and is_delicate(kernel.reduce, out[0])):
            pull = Pull(partial(_value, kernel, not batched), needed)
            gradients = iter(pull(x, weight, g))
            return None, *(next(gradients) if need else None for need in needed)
        return None, *gradient(kernel, x, weight, out[0] if out else None, g, needed)


def _value(kernel: Kernel, recompute: bool, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return (composite(kernel, x, weight, recompute=recompute),)
