"""Samples run alone: the exact path for programs whose graph changes with the batch, and the row that a check compares with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.deliver import Captured, Collector
from hesse.autodiff.forward import Forward, run_samples
from hesse.autodiff.refusals import typed_errors
from hesse.core.errors import MixedSamplesError, UnsupportedError
from hesse.rules.forms import Dense


def capture_one_by_one(forward: Forward, cotangent: Tensor, reason: str, asked: str) -> Captured:
    """The exact path for programs whose graph changes with the batch: every sample is run alone.

    Raises:
        MixedSamplesError: the samples' outputs, or the sum of their rows, are not those of the batch.
        UnsupportedError: the model draws random numbers.

    Cost: n forward and backward passes on one sample each, and a backward pass on the batch.
    """
    if forward.drew_random_numbers:
        raise UnsupportedError(
            asked,
            f"{reason}, so that samples have to be run one by one, and the model draws random numbers",
            "call model.eval(), or make the model's operations the same for every batch size",
        )
    collector = Collector({name: [] for name in forward.leaves})
    rows: dict[str, list[Tensor]] = {name: [] for name in forward.leaves}
    shares = cotangent.reshape(forward.count, -1)
    for sample in range(forward.count):
        alone = run_samples(forward, torch.tensor([sample]), asked, attached=forward.attached)
        if not same_output(alone.output, 0, 1, forward.output, sample, forward.count, forward.walk.rounding()):
            raise MixedSamplesError(
                asked,
                f"{reason}, and the output of sample {sample} depends on the other samples of the batch",
                "use operations on each sample only (model.eval() for normalization), or loss_hessian and ggn",
            )
        for name, grad in plain_row(alone, shares[sample].reshape(alone.output.shape)).items():
            rows[name].append(grad)
    whole = plain_row(forward, cotangent)
    scale = max((float(grad.norm()) for grad in whole.values()), default=0.0)
    for name, parts in rows.items():
        if not close(torch.stack(parts).sum(0), whole[name], scale, forward.walk.rounding()):
            raise MixedSamplesError(
                asked,
                f"{reason}, and the gradient of the batch by '{name}' is not the sum of the samples' own",
                "use operations on each sample only (model.eval() for normalization), or loss_hessian and ggn",
            )
        collector.put(name, Dense(torch.stack(parts)), "sample by sample")
    return collector.finish()


def same_output(
    first: Tensor, place: int, count: int, second: Tensor, other_place: int, other_count: int, eps: float = 0.0
) -> bool:
    """Whether a sample of one output equals a sample of another (up to rounding)."""
    if first.numel() * other_count != second.numel() * count:
        return False
    a, b = first.detach().reshape(count, -1)[place], second.detach().reshape(other_count, -1)[other_place]
    return close(a, b, eps=eps)


def close(first: Tensor, second: Tensor, scale: float = 0.0, eps: float = 0.0) -> bool:
    """Whether two results of the same arithmetic in another order agree.

    Args:
        first, second: the results.
        scale: the size of what they belong to; a difference of 1e-3 of the bound at that size is agreement, too.
        eps: the coarsest machine epsilon on the way; at least the results' own.
    """
    first, second = first.detach(), second.detach()
    eps = max(eps, torch.finfo(first.dtype).eps, torch.finfo(second.dtype).eps)
    size = max(float(first.norm()), float(second.norm()), 1e-3 * scale)
    return bool(float((first - second).norm()) <= 4 * eps**0.5 * size) or bool(torch.equal(first, second))


def plain_row(forward: Forward, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter for one cotangent of the output, by plain autograd."""
    leaves = list(forward.leaves.values())
    if not forward.output.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in forward.leaves.items()}
    options: dict[str, Any] = {"retain_graph": True, "create_graph": forward.attached and torch.is_grad_enabled()}
    with typed_errors():
        grads = torch.autograd.grad(forward.output, leaves, cotangent, allow_unused=True, materialize_grads=True, **options)
    return {name: grad.to_dense() if grad.is_sparse else grad for name, grad in zip(forward.leaves, grads, strict=True)}
