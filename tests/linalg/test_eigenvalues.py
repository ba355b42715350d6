"""Spectra that structure knows, and lower bounds of them, against dense eigenvalues."""

from __future__ import annotations

import pytest
import torch

from hesse.linalg.eigenvalues import eigenvalues_rule, floor_rule
from hesse.linalg.options import is_hermitian
from hesse.operators import BlockDiagonal, Congruence, Conjugate, Dense, Diagonal, Identity, Kronecker, LowRank
from tests.operators.zoo import operators

from .counted import HERMITIAN, PSD, Counted, random_matrix, with_spectrum

F64, C128 = torch.float64, torch.complex128
R, S = with_spectrum(torch.linspace(-1, 2, 4)), with_spectrum(torch.linspace(0.5, 3, 3), seed=1)
K = Kronecker(R, S, tags=HERMITIAN)
LOW = LowRank(random_matrix(9, 2), torch.tensor([1.0, -2.0], dtype=F64))
SHIFTED = {
    "Kronecker shifted": (K + 2 * Identity(K.in_space), torch.kron(R, S) + 2 * torch.eye(12)),
    "shifts alone": (2 * Identity(K.in_space) - 0.5 * Identity(K.in_space), 1.5 * torch.eye(12, dtype=F64)),
    "low rank shifted": (LOW - 3 * Identity(LOW.in_space), (LOW.left * LOW.weights) @ LOW.left.mT - 3 * torch.eye(9)),
    "conjugate": (
        Conjugate(Dense(with_spectrum(torch.linspace(1, 2, 5), C128), tags=PSD)),
        with_spectrum(torch.linspace(1, 2, 5), C128),
    ),
    "blocks": (BlockDiagonal({"b": K, "a": Dense(S, tags=PSD)}), torch.block_diag(torch.kron(R, S), S)),
}


@pytest.mark.parametrize("dtype", [F64, C128])
def test_every_operator(dtype: torch.dtype) -> None:
    known = 0
    for name, (A, M) in {**operators(dtype), **SHIFTED}.items():
        if not is_hermitian(A) or A.in_space != A.out_space:
            continue
        found = eigenvalues_rule(A)
        if found is None:
            continue
        known += 1
        values = found.values.repeat_interleave(found.counts.long()).sort().values
        torch.testing.assert_close(
            values, torch.linalg.eigvalsh(M), rtol=1e-11, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )
        floor = floor_rule(A)
        assert floor is None or floor <= float(values[0]) + 1e-11, name
    assert known >= 5


@pytest.mark.parametrize("name", SHIFTED)
def test_shifts_are_known(name: str) -> None:
    assert eigenvalues_rule(SHIFTED[name][0]) is not None


def test_what_is_not_known() -> None:
    hidden = Counted(R, tags=HERMITIAN)
    unit = Identity(hidden.in_space)
    for A in (hidden, hidden + unit, 2 * hidden, BlockDiagonal({"a": hidden, "b": Dense(R, tags=HERMITIAN)}), hidden + hidden):
        assert eigenvalues_rule(A) is None and floor_rule(A) is None
    skew = Kronecker(R.triu() - R.tril(), S.triu() - S.tril(), tags=HERMITIAN)
    assert eigenvalues_rule(skew) is None


def test_floors() -> None:
    semi = Counted(S, tags=PSD)
    unit = Identity(semi.in_space)
    assert floor_rule(semi) == 0 and floor_rule(2 * semi + 0.25 * unit + unit) == 1.25
    assert floor_rule(semi - unit) is None and floor_rule(-1 * semi) is None
    entries = torch.tensor([-1.0, 3.0, 2.0], dtype=F64)
    assert floor_rule(Diagonal(entries)) == -1 and floor_rule(semi + Diagonal(entries)) == -1
    assert floor_rule(BlockDiagonal({"a": semi, "b": Diagonal(entries)})) == -1
    assert floor_rule(Congruence(Counted(random_matrix(2, 3)))) == 0
