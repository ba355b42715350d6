"""Condition numbers against known extreme singular values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hesse.core.errors import NotConvergedError, StructureError
from hesse.linalg.condition import condition, condition_rule
from hesse.linalg.svd import svd
from hesse.operators import BlockDiagonal, Dense, Diagonal, Identity, Kronecker
from tests.operators.zoo import operators

from .counted import HERMITIAN, PSD, Counted, random_matrix, tree_space, with_spectrum

F64, C128 = torch.float64, torch.complex128
N = 300
CASES = {
    "positive": (torch.linspace(1, 50, N), PSD),
    "negative": (-torch.linspace(1, 50, N), HERMITIAN),
    "indefinite": (torch.cat([torch.linspace(-3, -0.6, 150), torch.linspace(0.5, 2, 150)]), HERMITIAN),
    "ill": (torch.cat([torch.tensor([1e-9]), torch.linspace(1, 2, N - 1)]), PSD),
    "singular": (torch.cat([torch.zeros(3), torch.linspace(1, 2, N - 3)]), PSD),
}


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("name", CASES)
def test_hermitian_by_lanczos(name: str, dtype: torch.dtype) -> None:
    values, tags = CASES[name]
    A = Counted(with_spectrum(values.double(), dtype), tree_space(N, dtype), tree_space(N, dtype), tags)
    found = condition(A, method="lanczos")
    sizes = values.double().abs()
    truth = float(sizes.max() / sizes.min())
    assert found.products == sum(A.blocks)
    if name == "singular":
        assert math.isinf(found)
    else:
        assert abs(found - truth) <= found.standard_error <= 0.011 * truth


@pytest.mark.parametrize("shape", [(360, N), (N, 360)])
@pytest.mark.parametrize("smallest", [0.2, 1e-3, 0.0])
def test_rectangular_by_lanczos(shape: tuple[int, int], smallest: float) -> None:
    values = torch.cat([torch.tensor([smallest, smallest]), torch.linspace(1, 2, N - 2)]).double()
    U, V = (torch.linalg.qr(random_matrix(n, N, seed=n)).Q for n in shape)
    A = Counted((U * values) @ V.mT)
    found = condition(A, method="lanczos")
    assert found.products == sum(A.blocks)
    if smallest:
        assert abs(found - 2 / smallest) <= found.standard_error <= 0.011 * found
    else:
        assert math.isinf(found)


def test_squares_do_not_make_an_operator_singular() -> None:
    values = torch.cat([torch.tensor([1e-3]), torch.linspace(1, 2, N - 1)])
    A = Counted(with_spectrum(values, torch.float32))  # not tagged: seen through A^H A, where 1e-6 is lost
    with pytest.raises(NotConvergedError, match="at least about") as caught:
        condition(A, method="lanczos")
    assert 50 < caught.value.partial.value < 2000
    assert float(condition(A)) == pytest.approx(2000, rel=1e-2)


@pytest.mark.parametrize("dtype", [F64, C128])
def test_every_operator(dtype: torch.dtype) -> None:
    for A, M in operators(dtype).values():
        sizes = torch.linalg.svdvals(M)
        is_singular = float(sizes[-1]) <= 10 * max(M.shape) * torch.finfo(F64).eps * float(sizes[0])
        found = condition(A)
        if is_singular:
            assert found > 1e13
        else:
            assert float(found) == pytest.approx(float(sizes[0] / sizes[-1]), rel=1e-8)


def test_structure_needs_no_products() -> None:
    R = random_matrix(3, 4)
    S = R @ R.mT
    K = Kronecker(S, S, tags=PSD)
    kappa = float(torch.linalg.cond(S)) ** 2
    d = torch.tensor([3.0, -0.1], dtype=F64)
    blocks = BlockDiagonal({"a": Dense(S, tags=PSD), "b": Diagonal(d)})
    both = torch.cat([torch.linalg.eigvalsh(S), d]).abs()
    cases = [
        (K, kappa),
        (-2 * K, kappa),
        (Kronecker(R, R), float(torch.linalg.cond(R)) ** 2),
        (Identity(K.in_space), 1.0),
        (blocks, float(both.max() / both.min())),
        (Diagonal(d), 30.0),
        (Diagonal(0 * d), math.inf),
    ]
    for A, truth in cases:
        assert condition_rule(A) == pytest.approx(truth, rel=1e-9)
        assert float(condition(A)) == pytest.approx(truth, rel=1e-9) and condition(A).products == 0
    assert math.isinf(condition(Kronecker(random_matrix(2, 5), random_matrix(6, 2))))


def test_limits_and_refusals() -> None:
    A = Counted(with_spectrum(torch.logspace(0, -6, N)), tags=PSD)
    with pytest.raises(NotConvergedError) as caught:
        condition(A, method="lanczos", max_products=100)
    assert caught.value.partial.products == sum(A.blocks) <= 110
    small = Counted(A.matrix, tags=PSD)
    found = condition(small)
    assert float(found) == pytest.approx(1e6, rel=1e-6) and found.products == N == sum(small.blocks)
    with pytest.raises(StructureError, match="'exact', 'lanczos'"):
        condition(A, method="svd")


class Insoluble(Counted):
    """Whose product needs the solution of a system, which fails."""

    def mm(self, V: Tensor) -> Tensor:
        raise NotConvergedError("solve did not reach its tolerance.", "a residual of 1", "use float64", "no Eigen")


def test_a_product_that_fails_says_so_itself() -> None:
    A = Insoluble(random_matrix(600, 600))
    for ask in (lambda: condition(A, method="lanczos"), lambda: svd(A, 2, method="lanczos")):
        with pytest.raises(NotConvergedError, match="solve did not reach"):
            ask()
