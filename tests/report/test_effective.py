"""Effective dimensions of known matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.operators import Dense, Tag
from hesse.report.effective import effective_dimensions

SYMMETRIC = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN})


def matrix(values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    A = Q @ torch.diag(values) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize("dim", [20, 600])
def test_negative_eigenvalues_are_refused(dim: int) -> None:
    values = torch.linspace(-3, 30, dim, dtype=torch.float64)
    with pytest.raises(SymmetryError, match="convex in the model's output"):
        effective_dimensions(Dense(matrix(values), tags=SYMMETRIC), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dim", [20, 600])
def test_what_is_known_to_be_psd_may_be_rounded_below_zero(dim: int) -> None:
    values = torch.linspace(0, 30, dim, dtype=torch.float64)
    values[0] = -1e-4
    A = Dense(matrix(values), tags=SYMMETRIC | {Tag.PSD})
    curve = effective_dimensions(A, torch.Generator().manual_seed(0))
    values = values.clamp_min(0)
    exact = torch.stack([(values / (values + damping)).sum() for damping in curve.dampings])
    assert curve.is_exact == (dim == 20)
    assert bool(((curve.values - exact).abs() <= 4 * curve.errors + 1e-9 * exact).all())
    assert bool((curve.errors <= 0.2 * exact).all())
