"""Refinement: what it converges to, in how many steps, and without which vectors."""

from __future__ import annotations

import pytest
import torch

from hesse.convolutions.factory import convolution
from hesse.convolutions.operator import Convolution
from hesse.convolutions.square import SquareSystem, inverted_symbol
from hesse.convolutions.systems import Augmented, Direct, project
from tests.convolutions.test_augmented import matrix_of

REAL, COMPLEX = torch.float64, torch.complex128


def drawn(out: int, into: int, dtype: torch.dtype) -> tuple[Convolution, torch.Tensor]:
    weight = torch.randn(out, into, 3, dtype=dtype, generator=torch.Generator().manual_seed(out + 10 * into))
    A = convolution(weight, (into, 14), padding=1)
    weight = weight / torch.linalg.matrix_norm(matrix_of(A), 2)
    A = Convolution(weight, A.geometry)
    return A, matrix_of(A)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize(("out", "into"), [(4, 2), (2, 4)])
@pytest.mark.parametrize("adjoint", [False, True])
def test_the_regularization_is_refined_away(out: int, into: int, adjoint: bool, dtype: torch.dtype) -> None:
    A, M = drawn(out, into, dtype)
    P = torch.linalg.pinv(M)
    P = P.mH if adjoint else P
    y = (A.in_space if adjoint else A.out_space).normal(2, generator=torch.Generator().manual_seed(1))
    known = y.flatten(1) @ P.mT
    least = float(torch.linalg.svdvals(M)[-1])
    steps = []
    for d in (0.2 * least, 0.01 * least):
        found = Augmented(A, d).solve(y, adjoint, A.in_space.zeros(0) if out > into else A.out_space.zeros(0))
        assert float(torch.linalg.vector_norm(found.value.flatten(1) - known)) <= 1e-12 * float(torch.linalg.vector_norm(known))
        steps.append(found.steps)
    assert steps[1] < steps[0] <= 12


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize(("out", "into"), [(4, 2), (2, 4)])
def test_vectors_that_count_as_zero(out: int, into: int, adjoint: bool) -> None:
    """The pseudo-inverse without the three smallest singular values."""
    A, M = drawn(out, into, REAL)
    U, values, Vh = torch.linalg.svd(M, full_matrices=False)
    shorter = Vh[-3:].reshape(3, *A.geometry.in_shape) if out > into else U[:, -3:].mT.reshape(3, *A.geometry.out_shape)
    P = torch.linalg.pinv(M, rtol=float((values[-3] + values[-4]) / 2 / values[0]))
    P = P.mH if adjoint else P
    y = (A.in_space if adjoint else A.out_space).normal(2, generator=torch.Generator().manual_seed(1))
    end = U[:, -3:].mT if adjoint else Vh[-3:]
    found = Augmented(A, 1e-3).solve(y, adjoint, shorter).value.flatten(1)
    found = found - found @ end.mT @ end  # the longer vectors are the caller's business
    known = y.flatten(1) @ P.mT
    assert float(torch.linalg.vector_norm(found - known)) <= 1e-11 * float(torch.linalg.vector_norm(known))


@pytest.mark.parametrize("adjoint", [False, True])
def test_a_square_system_is_backward_stable(adjoint: bool) -> None:
    A, M = drawn(3, 3, REAL)
    known = inverted_symbol(A)
    assert known is not None
    system = Direct(A, SquareSystem(A, known.skew, known.inverse))
    y = A.out_space.normal(2, generator=torch.Generator().manual_seed(1))
    x = system.solve(y, adjoint, A.in_space.zeros(0)).value
    B = M.mH if adjoint else M
    missed = torch.linalg.vector_norm(x.flatten(1) @ B.mT - y.flatten(1))
    assert float(missed) <= 1e-15 * float(torch.linalg.vector_norm(x) + torch.linalg.vector_norm(y))
    V = system.small_first(y).flatten(1)
    assert torch.allclose(V @ (M.mH @ M).mT, y.flatten(1), atol=1e-9 * float(V.abs().max()))


def test_projections() -> None:
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(12, 3, dtype=COMPLEX, generator=generator)).Q.mT.reshape(3, 3, 4)
    images = torch.randn(2, 3, 4, dtype=COMPLEX, generator=generator)
    part = project(images, basis)
    assert torch.allclose(project(part, basis), part)
    rest = (images - part).flatten(1)
    assert float((rest @ basis.flatten(1).mH).abs().max()) < 1e-14
