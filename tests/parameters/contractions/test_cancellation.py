"""Rows whose positions cancel: their norms are small, not a root of a negative number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hesse
from tests.parameters.special import Free


def _cancelling(dtype: torch.dtype) -> hesse.ParameterJacobian:
    """Rows of a weight that a shift of all positions does not change, on equal positions: zeros up to rounding."""
    model = Free(
        lambda s, x: ((lambda h: h - h.mean(1, keepdim=True))(s.a(x)) + s.b(x[:, :1])).flatten(1),
        a=nn.Linear(64, 64),
        b=nn.Linear(64, 64),
    )
    x = torch.randn(50, 1, 64, dtype=dtype).expand(50, 3, 64).contiguous()
    batch: tuple[Tensor, Tensor] = (x, torch.randn(50, 192, dtype=dtype))
    return hesse.parameter_jacobian(model.to(dtype), nn.MSELoss(reduction="sum"), batch, params=["a.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_norms_are_numbers(dtype: torch.dtype) -> None:
    J = _cancelling(dtype)
    assert bool(J.norms().isfinite().all())
    assert bool(J.clipped_sum(1.0)["a.weight"].isfinite().all())


def test_norms_are_as_small_as_the_rows() -> None:
    J = _cancelling(torch.float64)
    scale = float(J.dense().norm(dim=1).max())
    assert float(J.norms().nan_to_num(1.0).max()) < 100 * scale
