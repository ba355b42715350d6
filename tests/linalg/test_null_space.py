"""Null spaces against the singular vectors of the matrix: the whole zoo, cut-offs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import LeafError, MemoryBudgetError, NonFiniteError, StructureError
from hesse.core.space import Space
from hesse.linalg.null_space import null_space
from hesse.linalg.null_space_rules import null_space_rule
from hesse.operators import BlockDiagonal, Congruence, Conjugate, Dense, Diagonal, LinearOperator, LowRank, restrict

from .counted import Counted, random_matrix
from .test_pinv import DTYPES, ZOO, truncating, with_values


def basis(A: LinearOperator, **options: Any) -> Tensor:
    """``[in, k]``, after a look at the form of the tree."""
    found = null_space(A, **options)
    assert Space.of(found).names == A.in_space.names
    return A.in_space.ravel(found, 1).mT


def check(A: LinearOperator, M: Tensor, rtol: float | None, **options: Any) -> None:
    """The projection onto the basis is that onto the singular vectors that are dropped."""
    N = basis(A, rtol=rtol, **options)
    _, values, Vh = torch.linalg.svd(M.resolve_conj())
    cut = max(M.shape) * torch.finfo(torch.float64).eps if rtol is None else rtol
    rank = int((values > cut * values[0]).sum()) if len(values) else 0
    V = Vh.mH[:, rank:]
    assert N.shape == V.shape
    eye = torch.eye(N.shape[1], dtype=N.dtype)
    torch.testing.assert_close(N.mH @ N, eye, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(N @ N.mH, (V @ V.mH).to(N.dtype), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
def test_the_zoo(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    check(A, M.to(A.out_space.dtype), None)
    check(A.H, M.mH.to(A.in_space.dtype), None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [1e-5, 7e-4, 0.01, 0.2])
@pytest.mark.parametrize("name", truncating(torch.float64))
def test_one_cut_off_for_the_whole(name: str, rtol: float, dtype: str) -> None:
    A, M = truncating(DTYPES[dtype])[name]
    check(A, M, rtol)
    check(A.H, M.mH, rtol)


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_structures(dtype: str) -> None:
    kind = DTYPES[dtype]
    M = with_values(5, 6, [2.0, 1.0, 0.5], kind)
    d = torch.tensor([0, 1, 0, 2], dtype=torch.float64).to(kind)
    low, right = random_matrix(7, 2, dtype=kind), random_matrix(5, 2, dtype=kind, seed=1)
    cases: list[tuple[LinearOperator, Tensor]] = [
        (Dense(M), M),
        (Conjugate(Dense(M)), M.conj()),
        (Congruence(Dense(M)), M.mH @ M),
        (-3.0 * Dense(M), -3 * M),
        (0.0 * Dense(M), 0 * M),
        (Diagonal(d), d.diag()),
        (LowRank(low, None, right), low @ right.mT),
        (LowRank(torch.cat([low, low], 1), None, torch.cat([right, right], 1)), 2 * low @ right.mT),
    ]
    for A, matrix in cases:
        check(A, matrix, 1e-10)
    pair = BlockDiagonal({"a": Dense(with_values(5, 5, [2.0, 1.0, 0.5], kind)), "b": Diagonal(d)})
    swapped = restrict(pair, ["b", "a"])
    check(pair, torch.block_diag(pair.blocks["a"].matrix, d.diag()), 1e-10)  # pyright: ignore
    assert basis(swapped, rtol=1e-10).shape == (9, 4)


def test_the_trivial_ones() -> None:
    into = Space.of({"w": torch.zeros(2, 2), "b": torch.zeros(3)})
    found = null_space(Dense(torch.eye(7), into, into))
    assert found["w"].shape == (0, 2, 2) and found["b"].shape == (0, 3)
    assert null_space(Dense(torch.zeros(0, 4))).shape == (4, 4)
    assert null_space(Counted(torch.zeros(2, 3).to(torch.bfloat16))).dtype == torch.bfloat16


def test_other_packages_register_rules() -> None:
    class Known(Counted):
        pass

    @null_space_rule.register(Known)
    def _known(A: Known, rtol: float | None, memory: Any) -> Tensor:
        return torch.ones(1, 4, dtype=torch.float64) / 2

    A = Known(random_matrix(3, 4))
    assert torch.equal(null_space(A), torch.full((1, 4), 0.5, dtype=torch.float64))
    both = null_space(BlockDiagonal({"a": Diagonal(torch.zeros(1, dtype=torch.float64)), "b": A}))
    assert both["a"].tolist() == [[1.0], [0.0]] and both["b"].tolist() == [[0.0] * 4, [0.5] * 4]


def test_bad_input() -> None:
    with pytest.raises(StructureError, match="null_space needs rtol >= 0"):
        null_space(Dense(random_matrix(2, 3)), rtol=-1.0)
    with pytest.raises(LeafError, match="null_space needs floating-point"):
        null_space(Dense(torch.ones(2, 3, dtype=torch.int64)))
    bad = random_matrix(3, 3)
    bad[1, 2] = torch.nan
    for A in (Dense(bad), Diagonal(bad[1]), Counted(bad)):
        with pytest.raises(NonFiniteError):
            null_space(A)
    with pytest.raises(MemoryBudgetError, match=r"(?s)shape \(40, 30\).*hesse.svd"):
        null_space(Counted(random_matrix(40, 30)), memory=1000)
