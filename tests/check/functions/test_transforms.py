"""Mapped axes: what raises in a rule of torch is noted, what raises in one of the function's own is found."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hesse.check import check_derivatives

from ..planted import draw


def warp(leaves: tuple[Tensor, Tensor]) -> Tensor:
    x, theta = leaves
    return F.grid_sample(x, F.affine_grid(theta, [1, 2, 4, 4], align_corners=False), align_corners=False)


def test_a_rule_of_torch_that_takes_the_first_axis_only() -> None:
    theta = torch.eye(2, 3)[None] + 0.1 * draw(1, 2, 3, seed=1, dtype=torch.float32)
    report = check_derivatives(warp, (draw(1, 2, 4, 5, dtype=torch.float32), theta), level="full")
    assert report.ok, str(report)
    assert any("no vmap over the last axis" in note for note in report.notes)


class First(torch.autograd.Function):
    """The sine of twice a vector; its rule refuses other axes than the first."""

    generate_vmap_rule: ClassVar[bool] = False

    @staticmethod
    def forward(x):
        return (2 * x).sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * (2 * x).cos()

    @staticmethod
    def vmap(info, in_dims, x):
        if in_dims[0] != 0:
            raise RuntimeError("only the first axis")
        return First.apply(x), 0


def test_a_rule_of_a_function_that_takes_the_first_axis_only() -> None:
    report = check_derivatives(First.apply, draw(4, 3), level="full")
    assert [finding.check for finding in report.findings] == ["value under vmap over the last axis"]
    assert "raises RuntimeError: only the first axis" in report.findings[0].diagnosis
