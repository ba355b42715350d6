"""Short types meet long ones without an error, and what is written to keeps its type."""

from __future__ import annotations

import torch

from hesse.autodiff.promote import PromoteFloats


def test_closed_over_weights_are_promoted() -> None:
    weight, x = torch.randn(3, 2), torch.randn(4, 3, dtype=torch.float64)
    with PromoteFloats():
        y = torch.nn.functional.linear(x, weight.T) + (x @ weight)
    assert y.dtype == torch.float64 and weight.dtype == torch.float32
    torch.testing.assert_close(y, 2 * x @ weight.double(), rtol=1e-14, atol=1e-14)


def test_targets_of_writing_stay() -> None:
    buffer, x = torch.zeros(3), torch.ones(3, dtype=torch.float64)
    with PromoteFloats():
        buffer.add_(x)
        buffer[0] = x[0] * 5
        assert (buffer * 2).dtype == torch.float32
    assert buffer.tolist() == [5.0, 1.0, 1.0]
