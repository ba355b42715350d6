"""The boundary method: named kinds of convolutions against the dense pseudo-inverse; what it drops, says and refuses.

`test_every_configuration` sweeps over drawn ones.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.convolutions import boundary
from hesse.convolutions.factory import convolution
from hesse.convolutions.operator import Convolution
from hesse.convolutions.systems import Augmented, Direct
from hesse.core.errors import MemoryBudgetError
from tests.convolutions.test_augmented import matrix_of

REAL, COMPLEX = torch.float64, torch.complex128
EPS = torch.finfo(REAL).eps


def randn(*shape: int, dtype: torch.dtype = REAL) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def repeated(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight[-1] = weight[0]
    return weight


CASES: dict[str, tuple[Tensor, tuple[int, ...], dict[str, Any], type]] = {
    "square": (randn(3, 3, 3, 3), (3, 8, 7), {"padding": 1}, Direct),
    "tall": (randn(5, 3, 3, 3), (3, 8, 7), {"padding": 1}, Augmented),
    "wide": (randn(3, 5, 3, 3), (5, 8, 7), {"padding": 1}, Augmented),
    "valid": (randn(3, 3, 3, 3), (3, 8, 7), {}, Augmented),
    "stride": (randn(7, 2, 3, 3), (2, 9, 7), {"padding": 1, "stride": 2}, Augmented),
    "reflect square": (randn(2, 2, 3, 3), (2, 6, 7), {"padding": 1, "padding_mode": "reflect"}, Direct),
    "replicate wide": (randn(3, 5, 3), (5, 14), {"padding": 2, "padding_mode": "replicate"}, Augmented),
    "reflect tall, groups": (randn(6, 2, 3), (4, 13), {"padding": 1, "padding_mode": "reflect", "groups": 2}, Augmented),
    "complex": (randn(4, 3, 3, dtype=COMPLEX), (3, 11), {"padding": (1,), "dilation": 2}, Augmented),
    "repeated filters": (repeated(randn(3, 5, 3, 3)), (5, 6, 7), {"padding": 1}, Augmented),
    "box": (torch.ones(1, 1, 3, 3, dtype=REAL), (1, 11, 14), {"padding": 1}, Augmented),
    "3-D": (randn(3, 2, 2, 3, 2), (2, 4, 5, 3), {"padding": 1}, Augmented),
}


@pytest.mark.parametrize("name", CASES)
def test_the_pseudo_inverse_is_that_of_the_matrix(name: str) -> None:
    weight, size, options, system = CASES[name]
    A = convolution(weight, size, **options)
    found = boundary.make(A)
    assert type(found._system) is system
    M = matrix_of(A)
    values = torch.linalg.svdvals(M)
    kept = int((values > max(M.shape) * EPS * values[0]).sum())
    condition = float(values[0] / values[kept - 1])
    assert found.truncated == min(M.shape) - kept
    assert found.condition() == pytest.approx(condition, rel=0.02)
    assert found.norm() == pytest.approx(float(values[0]), rel=1e-6)
    for adjoint in (False, True):
        P = torch.linalg.pinv(M)
        P = P.mH if adjoint else P
        y = (A.in_space if adjoint else A.out_space).normal(3, generator=torch.Generator().manual_seed(5))
        known = y.flatten(1) @ P.mT
        x = found.apply(y, adjoint=adjoint)
        error = torch.linalg.vector_norm(x.value.flatten(1) - known) / torch.linalg.vector_norm(known)
        assert float(error) <= 100 * condition * EPS


@pytest.mark.parametrize("rtol", [0.3, 0.1, 1e-3])
def test_small_singular_values_are_dropped_at_a_global_tolerance(rtol: float) -> None:
    weight = randn(1, 1, 3, 3) + 0.4
    A = convolution(weight, (1, 17, 16), padding=1)
    M = matrix_of(A)
    values = torch.linalg.svdvals(M)
    kept = int((values > rtol * values[0]).sum())
    assert 0 < kept < len(values)
    found = boundary.make(A, rtol=rtol)
    assert found.truncated == len(values) - kept
    assert found.gap == pytest.approx(float(values[kept - 1] / values[kept]), rel=1e-6)
    y = A.out_space.normal(2, generator=torch.Generator().manual_seed(1))
    known = y.flatten(1) @ torch.linalg.pinv(M, rtol=rtol).mT
    error = torch.linalg.vector_norm(found.apply(y).value.flatten(1) - known) / torch.linalg.vector_norm(known)
    separation = 1 - float(values[kept] / values[kept - 1])  # without a gap the subspaces themselves are ill-conditioned
    assert float(error) <= 100 * EPS / (rtol * separation)


def test_exponentially_small_singular_values() -> None:
    """A kernel whose determinant winds: nothing but singular values tell its condition; the system is not the direct one."""
    A = convolution(torch.tensor([[[1.0, 3.0, 0.0]]], dtype=REAL).flip(-1), (1, 40), padding=1)
    M = matrix_of(A)
    values = torch.linalg.svdvals(M)
    found = boundary.make(A)
    assert found.truncated == int((values <= 40 * EPS * values[0]).sum())


def test_zero_operators() -> None:
    for weight in (torch.zeros(2, 3, 3, dtype=REAL), torch.zeros(2, 3, 3, dtype=COMPLEX)):
        A = convolution(weight, (3, 8))
        found = boundary.make(A)
        assert found.truncated == min(A.shape)
        assert (found.norm(), found.condition(), found.gap) == (0.0, 1.0, math.inf)
        assert not bool(found.apply(A.out_space.normal(2)).value.any())
        assert found.apply(A.in_space.normal(2), adjoint=True).value.shape == (2, *A.geometry.out_shape)


def test_scales_far_from_one() -> None:
    """Tolerances are relative to the norm."""
    A = convolution(randn(3, 2, 3), (2, 12), padding=1)
    y = A.out_space.normal(1)
    plain = boundary.make(A).apply(y).value
    for scale in (1e-120, 1e120):
        scaled = boundary.make(Convolution(A.weight * scale, A.geometry)).apply(y).value
        assert torch.allclose(scaled * scale, plain, rtol=1e-12, atol=0)


def test_single_precision_is_factored_in_double() -> None:
    A = convolution(randn(3, 3, 3, 3).float(), (3, 8, 7), padding=1)
    y = A.out_space.normal(1)
    known = y.double().flatten(1) @ torch.linalg.pinv(matrix_of(Convolution(A.weight.double(), A.geometry))).mT
    x = boundary.make(A).apply(y).value
    assert x.dtype == torch.float32
    assert float(torch.linalg.vector_norm(x.flatten(1) - known) / torch.linalg.vector_norm(known)) < 1e-6


def test_a_boundary_beyond_the_budget_is_refused_with_its_size() -> None:
    A = convolution(randn(3, 3, 3, 3), (3, 40, 40), padding=1)
    with pytest.raises(MemoryBudgetError, match=r"243 unknowns\.\n.*GiB for Convolution"):
        boundary.make(A, memory=10**6)
    assert boundary.boundary_size(A) == 3 * (2 * 40 + 1)


def test_no_images() -> None:
    A = convolution(randn(3, 2, 3), (2, 12), padding=1)
    assert boundary.make(A).apply(A.out_space.zeros(0)).value.shape == (0, 2, 12)


def test_small_singular_vectors_keep_to_the_budget() -> None:
    A = convolution(torch.full((1, 1, 3, 3), 1 / 9, dtype=REAL), (1, 26, 26), padding=1)
    rank = int(torch.linalg.matrix_rank(matrix_of(A), rtol=1e-12))
    with pytest.raises(MemoryBudgetError, match="small singular vectors") as caught:
        boundary.make(A, memory="1.3MiB")
    found = boundary.make(A, memory=caught.value.least)
    assert found is not None and found.truncated == min(A.shape) - rank > 40
