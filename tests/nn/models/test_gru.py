"""`RecurrentGRUNetwork` against `torch.nn.GRU` and against its formulas, one gate and one sample at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.core.errors import StructureError
from hesse.nn.models import RecurrentGRUNetwork

from .common import F64, check_part, filled, gradients, normal

close = torch.testing.assert_close


def by_formula(params: dict[str, Tensor], x: Tensor, h: Tensor) -> Tensor:
    """Cho et al.: the reset gate before the product; one matrix [W_ih W_hh] for the pair (x, h)."""
    w_r, w_z, w_n = torch.cat([params["weight_ih"], params["weight_hh"]], 1).chunk(3)
    b_r, b_z, b_n = params["bias"].chunk(3)
    rows = []
    for n in range(len(x)):
        state, outputs = h[n], []
        for step in x[n]:
            pair = torch.cat([step, state])
            r, z = 1 / (1 + torch.exp(-(w_r @ pair + b_r))), 1 / (1 + torch.exp(-(w_z @ pair + b_z)))
            v = torch.tanh(w_n @ torch.cat([step, r * state]) + b_n)
            state = (1 - z) * v + z * state
            outputs.append(state)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def test_reset_before() -> None:
    f, params = RecurrentGRUNetwork(3, 5, output_type="all", dtype=F64)
    params, x, h = filled(params), normal(4, 6, 3), normal(4, 5, seed=9)
    close(f(params, x, {"h": h})[0], by_formula(params, x, h), rtol=1e-12, atol=1e-12)
    expected = gradients(by_formula, params, x, h)
    for a, b in zip(gradients(f, params, x, {"h": h}), expected, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)


def test_reset_after_is_the_unit_of_torch() -> None:
    f, params = RecurrentGRUNetwork(3, 5, output_type="all", reset="after", dtype=F64)
    params, x, h = filled(params), normal(4, 6, 3), normal(4, 5, seed=9)
    other = nn.GRU(3, 5, batch_first=True, dtype=F64)
    with torch.no_grad():
        other.weight_ih_l0.copy_(params["weight_ih"])
        other.weight_hh_l0.copy_(params["weight_hh"])
        other.bias_ih_l0.copy_(params["bias"])
        other.bias_hh_l0.zero_()
        other.bias_hh_l0[10:].copy_(params["bias_hh"])
    y, state = f(params, x, {"h": h})
    expected, last = other(x, h.unsqueeze(0))
    close(y, expected, rtol=1e-12, atol=1e-12)
    close(state["h"], last[0], rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    wanted = [other.weight_ih_l0, other.weight_hh_l0, other.bias_ih_l0, other.bias_hh_l0]
    theirs = list(torch.autograd.grad((expected * weights).sum(), wanted))
    theirs[3] = theirs[3][10:]
    for a, b in zip(gradients(f, params, x, {"h": h}), theirs, strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)
    check_part(f, params, x)


def test_messages() -> None:
    wrong: Any = "never"
    with pytest.raises(StructureError, match="'never'"):
        RecurrentGRUNetwork(3, 5, reset=wrong)
