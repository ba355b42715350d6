"""What the curvature of a loss has to be: from plain autograd in float64, and from enumerated or integrated targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.rules.losses import OutputCurvature

TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def hessian(loss: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    """``[N, N]`` of a summed loss by all N elements of its output."""
    found = torch.autograd.functional.hessian(lambda out: loss(out).sum(), output)
    assert isinstance(found, Tensor)
    return found.reshape(output.numel(), output.numel())


def outer_of_gradient(loss: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    """``[N, N]``: the gradient of a summed loss times itself."""
    leaf = output.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return torch.outer(gradient.flatten(), gradient.flatten())


def assert_is(form: OutputCurvature, expected: Tensor) -> None:
    """Products, diagonal and (where they exist) roots of a form are those of a matrix ``[N, N]``."""
    size = form.shape.numel()
    many = torch.eye(size, dtype=expected.dtype).reshape(1, size, 1, *form.shape)
    torch.testing.assert_close(form.mv(many).reshape(size, size), expected, **TIGHT)
    torch.testing.assert_close(form.mv(many[0, 1 % size, 0]).flatten(), expected[1 % size], **TIGHT)
    torch.testing.assert_close(form.diagonal().flatten(), expected.diagonal(), **TIGHT)
    assert form.diagonal().shape == form.shape
    least = torch.linalg.eigvalsh(expected).min()
    assert form.is_psd == bool(least > -1e-12 * (1 + expected.abs().max()))
    if form.is_psd:
        torch.testing.assert_close(from_roots(form), expected, **TIGHT)


def from_roots(form: OutputCurvature) -> Tensor:
    """``[N, N]``: the sum of the roots' outer products, taken within every sample."""
    n = form.shape[0]
    blocks = torch.zeros(n, form.shape[1:].numel(), form.shape[1:].numel(), dtype=form.dtype)
    for k in range(form.count):
        root = form.root(k)
        assert root.shape == form.shape and root.dtype == form.dtype
        blocks += root.reshape(n, -1, 1) * root.reshape(n, 1, -1)
    return torch.block_diag(*blocks)


def uniform_of(seed: int, dtype: torch.dtype = torch.float64) -> Callable[[Sequence[int]], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.rand(tuple(shape), generator=generator, dtype=dtype)


def assert_samples_average_to(form: OutputCurvature, expected: Tensor, seed: int) -> None:
    """The mean of ``s s^T`` over a form of many equal samples is one sample's matrix ``[c, c]``, within 5 standard errors.

    A sample and the next one are independent: their products average to 0.
    """
    drawn = form.sample(uniform_of(seed)).reshape(form.shape[0], -1)
    assert drawn.dtype == form.dtype
    for other, mean in ((drawn, expected), (drawn.roll(1, 0), torch.zeros_like(expected))):
        products = drawn.unsqueeze(2) * other.unsqueeze(1)
        error = products.std(0) / len(products) ** 0.5
        off = (products.mean(0) - mean).abs()
        assert bool((off <= 5 * error + 1e-12).all()), f"off by {float((off / (error + 1e-12)).max()):.1f} standard errors"
