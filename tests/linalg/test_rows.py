"""What iterative methods give to an operator, and what it gives back, is the operator's to keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.space import Space
from hesse.linalg import lstsq, solve
from hesse.operators import LinearOperator, Tag

from .counted import random_matrix, with_spectrum


class Keeping(LinearOperator):
    """A symmetric matrix that keeps all vectors that pass it, with copies."""

    tags = frozenset({Tag.HERMITIAN, Tag.SYMMETRIC})

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.in_space = matrix, Space.of(matrix[0])
        self.out_space = self.in_space
        self.kept: list[tuple[Tensor, Tensor]] = []

    def mv(self, v: Any) -> Any:
        return self.mm(v[None])[0]

    def mm(self, V: Any) -> Any:
        Y = V @ self.matrix
        self.kept += [(V, V.clone()), (Y, Y.clone())]
        return Y

    def transpose(self) -> LinearOperator:
        return self

    def check(self) -> None:
        assert len(self.kept) > 8
        assert all(torch.equal(kept, copy) for kept, copy in self.kept)


class Buffered(Keeping):
    """The same, which writes all of its products to one place."""

    def mm(self, V: Any) -> Any:
        if not self.kept:
            room = torch.zeros(9, len(self.matrix), dtype=V.dtype)
            self.kept = [(room, room)]
        return torch.mm(V, self.matrix, out=self.kept[0][0][: len(V)])

    def check(self) -> None:
        assert self.kept


MATRIX = with_spectrum(torch.linspace(1, 30, 40, dtype=torch.float64))
INDEFINITE = with_spectrum(torch.cat([torch.linspace(-9, -1, 15), torch.linspace(1, 20, 25)]))


@pytest.mark.parametrize("kind", [Keeping, Buffered])
@pytest.mark.parametrize("is_preconditioned", [False, True])
@pytest.mark.parametrize("method", ["cg", "minres", "lsmr"])
def test_vectors_of_the_operator_are_left_alone(method: str, is_preconditioned: bool, kind: type[Keeping]) -> None:
    M, B = INDEFINITE if method == "minres" else MATRIX, random_matrix(3, 40, seed=1)
    B[1] = M[0] - 2 * M[3]  # done before the others
    A, P = kind(M), kind(with_spectrum(torch.linspace(0.5, 2, 40, dtype=torch.float64), seed=3))
    found = solve(A, B, method=method, preconditioner=P if is_preconditioned else None)
    torch.testing.assert_close(found, torch.linalg.solve(M, B.mT).mT, rtol=1e-5, atol=1e-5)
    A.check()
    if is_preconditioned:
        P.check()


@pytest.mark.parametrize("kind", [Keeping, Buffered])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_vectors_of_least_squares_are_left_alone(damping: float, kind: type[Keeping]) -> None:
    A, B = kind(MATRIX), random_matrix(3, 40, seed=1)
    found = lstsq(A, B, method="lsmr", damping=damping)
    expected = torch.linalg.solve(MATRIX @ MATRIX + damping * torch.eye(40), MATRIX @ B.mT).mT
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    A.check()
