"""Second derivatives: what refuses them on purpose, and jumps of the gradient near by."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hesse.check import check_derivatives

from ..planted import draw


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y.clone())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y.clone())
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


def test_a_backward_pass_marked_as_differentiable_once() -> None:
    report = check_derivatives(Once.apply, draw(3, 4))
    assert report.ok, str(report)
    assert any("once_differentiable" in note for note in report.notes)


def test_the_same_without_the_mark() -> None:
    report = check_derivatives(Cut.apply, draw(3, 4))
    assert report.findings[0].check == "second order"


def test_jumps_of_the_gradient_near_by() -> None:
    """Piecewise linear with many pieces: its second derivative is zero, and every longer step crosses a jump."""

    def pieces(x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) - torch.linspace(-3, 3, 1000, dtype=x.dtype)).abs().mean(-1)

    for seed in range(6):
        report = check_derivatives(pieces, draw(3, 4, seed=seed), generator=torch.Generator().manual_seed(seed))
        assert report.ok, str(report)


class Masked(torch.autograd.Function):
    """The mean over a mask in float32, which a scalar cotangent in float64 does not promote."""

    @staticmethod
    def forward(ctx, x, mask):
        ctx.save_for_backward(mask)
        return (x * mask).sum() / mask.sum()

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved_tensors
        return g * mask / mask.sum(), None


def test_constants_in_float32_where_terms_cancel() -> None:
    for seed in (0, 33):
        g = torch.Generator().manual_seed(seed)
        x, target, noise = (torch.randn(4, 6, generator=g) for _ in range(3))
        mask = (noise > -0.5).float()
        report = check_derivatives(lambda x, t=target, m=mask: Masked.apply((x - t).square(), m), x)
        assert report.ok, str(report)
