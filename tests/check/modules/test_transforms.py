"""The adjoint identity at kinks, and where everything cancels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.check.module import check_module

from ..planted import draw


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_modes_that_take_other_sides_of_a_kink(dtype: torch.dtype) -> None:
    report = check_module(nn.PReLU(dtype=dtype), torch.tensor([0.0, 1.0, -1.0], dtype=dtype), level="full")
    assert report.ok, report
    assert any("adjoint identity: a kink" in note for note in report.notes)


class ForwardOff(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x @ w.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.mT @ x

    @staticmethod
    def jvp(ctx, v, dw):
        x, w = ctx.saved_tensors
        return v @ w.mT + 1.01 * x @ dw.mT


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3))

    def forward(self, x):
        return ForwardOff.apply(x, self.weight)


def test_a_wrong_forward_mode_is_found() -> None:
    assert "adjoint identity" in {f.check for f in check_module(Wrong(), draw(4, 3), level="full").findings}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_that_cancel(dtype: torch.dtype) -> None:
    x = draw(3, 4, dtype=dtype)
    assert check_module(nn.CosineSimilarity(), x, x.clone(), level="full").ok
