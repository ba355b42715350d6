"""Blocks of two factors, and by eigenvectors, against matrices written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.core.errors import SymmetryError
from hesse.curvature.kronecker_blocks import EigenBlock, FactorBlock
from tests.parameters import oracle

F64 = torch.float64


def _spd(groups: int, size: int, seed: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(groups, size, rank or size + 2, generator=generator, dtype=F64)
    return root @ root.mT


def _diagonals(groups: int, size: int, seed: int) -> Tensor:
    return torch.rand(groups, size, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.1


CASES: dict[str, tuple[Tensor, Tensor, Any]] = {
    "two factors": (_spd(1, 3, 0), _spd(1, 4, 1), "kronecker"),
    "groups": (_spd(2, 3, 2), _spd(2, 2, 3), "kronecker"),
    "diagonal left": (_diagonals(2, 5, 4), _spd(2, 3, 5), "kronecker"),
    "diagonal right": (_spd(2, 3, 6), _diagonals(2, 4, 7), "kronecker"),
    "two diagonals": (_diagonals(1, 3, 8), _diagonals(1, 4, 9), "kronecker"),
    "exact": (torch.ones(1, 1, 1, dtype=F64), _spd(1, 5, 10), "exact"),
    "diagonal": (_diagonals(1, 6, 11), torch.ones(1, 1, dtype=F64), "diagonal"),
    "singular": (_spd(1, 4, 12, rank=2), _spd(1, 3, 13, rank=1), "kronecker"),
}


def _written_out(left: Tensor, right: Tensor) -> Tensor:
    """Element by element: ``M[(g i k), (g j l)] = left[g, i, j] right[g, k, l]``."""
    left, right = (torch.diag_embed(side) if side.ndim == 2 else side for side in (left, right))
    groups, a, b = left.shape[0], left.shape[1], right.shape[1]
    result = torch.zeros(groups, a, b, groups, a, b, dtype=F64)
    for g in range(groups):
        result[g, :, :, g] = torch.einsum("ij,kl->ikjl", left[g], right[g])
    return result.reshape(groups * a * b, -1)


def _function(matrix: Tensor, f: Any) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ f(values.clamp(min=0)).diag() @ vectors.mT


@pytest.mark.parametrize("name", CASES)
def test_algebra(name: str) -> None:
    left, right, kind = CASES[name]
    block, expected = FactorBlock(left, right, kind), _written_out(left, right)
    V = torch.randn(7, len(expected), generator=torch.Generator().manual_seed(0), dtype=F64)
    eigen = block.eigen
    assert isinstance(eigen, EigenBlock) and eigen.eigen is eigen and block.eigen is eigen
    assert block.sizes == eigen.sizes and eigen.kind == kind
    for either in (block, eigen):
        assert oracle.difference(either.dense(), expected) < 1e-12
        assert oracle.difference(either.diagonal(), expected.diagonal()) < 1e-12
        assert oracle.difference(either.apply(V), V @ expected) < 1e-12
    assert bool((eigen.values >= 0).all())
    assert oracle.difference(eigen.values.flatten().sort().values, torch.linalg.eigvalsh(expected).clamp(min=0)) < 1e-12
    assert oracle.difference(eigen.map(lambda x: x.sqrt() + 2).dense(), _function(expected, lambda x: x.sqrt() + 2)) < 1e-6
    assert oracle.difference(eigen.rotate(V).flatten(1).norm(dim=1), V.norm(dim=1)) < 1e-12
    assert oracle.difference(eigen.damped(0.3).dense(), expected + 0.3 * torch.eye(len(expected), dtype=F64)) < 1e-12
    rebuilt = FactorBlock(**block.tensors(), kind=kind)
    assert torch.equal(rebuilt.dense(), block.dense())
    assert torch.equal(EigenBlock(**eigen.tensors(), kind=kind).dense(), eigen.dense())


@pytest.mark.parametrize("name", CASES)
def test_heuristic_damping(name: str) -> None:
    """``(A + pi sqrt(c) I) (x) (B + sqrt(c) / pi I)``, pi^2 the ratio of mean eigenvalues (Martens, Grosse 2015)."""
    left, right, kind = CASES[name]
    found, c = FactorBlock(left, right, kind).damped(0.3), 0.3
    if kind != "kronecker":
        expected = _written_out(left, right)
        assert oracle.difference(found.dense(), expected + c * torch.eye(len(expected), dtype=F64)) < 1e-12
        return
    sides = [torch.diag_embed(side) if side.ndim == 2 else side for side in (left, right)]
    damped: list[list[Tensor]] = [[], []]
    for A, B in zip(*sides, strict=True):
        pi = ((A.trace() / len(A)) / (B.trace() / len(B))).sqrt()
        damped[0].append(A + pi * c**0.5 * torch.eye(len(A), dtype=F64))
        damped[1].append(B + c**0.5 / pi * torch.eye(len(B), dtype=F64))
    assert oracle.difference(found.dense(), _written_out(torch.stack(damped[0]), torch.stack(damped[1]))) < 1e-12
    scaled = FactorBlock(left * 7, right / 7, kind).damped(0.3)  # what is damped is the product
    assert oracle.difference(scaled.dense(), found.dense()) < 1e-12


def test_heuristic_damping_of_nothing() -> None:
    zero = FactorBlock(torch.zeros(1, 2, 2, dtype=F64), torch.zeros(1, 3, 3, dtype=F64), "kronecker").damped(0.25)
    assert oracle.difference(zero.dense(), 0.25 * torch.eye(6, dtype=F64)) < 1e-12
    half = FactorBlock(torch.zeros(1, 2, 2, dtype=F64), _spd(1, 3, 0), "kronecker").damped(0.25).dense()
    assert bool(half.isfinite().all()) and float(torch.linalg.eigvalsh(half)[0]) > 0


def test_a_factor_that_is_no_second_moment() -> None:
    negative = FactorBlock(-_spd(1, 3, 0), _spd(1, 2, 1), "kronecker")
    with pytest.raises(SymmetryError, match="no negative eigenvalue"):
        _ = negative.eigen
    rounded = _spd(1, 4, 0, rank=1)
    assert bool((FactorBlock(rounded, _spd(1, 2, 1), "kronecker").eigen.values >= 0).all())
