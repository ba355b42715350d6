"""Squared rows in another basis against rows that are written out and turned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.parameters.contractions.rotated import rotated_squares
from hesse.rules.forms import Contract, Dense, Lookup
from tests.parameters import oracle


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _basis(groups: int, size: int, seed: int) -> Tensor:
    return torch.linalg.qr(_random(groups, size, size, seed=seed))[0]


def _turned(rows: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``sum_n (P^T j[n] Q)^2`` of rows ``[n, G, a, b]``, a row and a group at a time."""
    result = torch.zeros(rows.shape[1:], dtype=rows.dtype)
    for row in rows:
        for g, block in enumerate(row):
            P = left[g] if left.ndim == 3 else torch.eye(len(block), dtype=rows.dtype)
            Q = right[g] if right.ndim == 3 else torch.eye(block.shape[1], dtype=rows.dtype)
            result[g] += (P.mT @ block @ Q) ** 2
    return result


@pytest.mark.parametrize("identity", ["neither", "left", "right", "both"])
@pytest.mark.parametrize(("n", "groups", "t", "a", "b"), [(5, 1, 1, 3, 4), (4, 2, 3, 2, 5), (3, 1, 40, 2, 3), (1, 3, 2, 1, 4)])
def test_contractions(n: int, groups: int, t: int, a: int, b: int, identity: str) -> None:
    first, second = _random(n, groups, t, a, seed=1), _random(n, groups, t, b, seed=2)
    none = torch.zeros(groups, 0, dtype=torch.float64)
    left = none if identity in ("left", "both") else _basis(groups, a, 3)
    right = none if identity in ("right", "both") else _basis(groups, b, 4)
    rows = torch.einsum("ngta,ngtb->ngab", first, second)
    found = rotated_squares(Contract(first, second), left, right)
    assert found is not None
    assert oracle.difference(found, _turned(rows, left, right)) < 1e-12


def test_many_samples_in_pieces() -> None:
    n, a, b = 3000, 20, 30  # more than what stays in a core's cache
    first, second = _random(n, 1, 2, a, seed=1), _random(n, 1, 2, b, seed=2)
    left, right = _basis(1, a, 3), _basis(1, b, 4)
    rows = torch.einsum("ngta,ngtb->ngab", first, second)
    expected = torch.einsum("gai,ngab,gbj->ngij", left, rows, right).square().sum(0)
    found = rotated_squares(Contract(first, second), left, right)
    assert found is not None and oracle.difference(found, expected) < 1e-12


def test_16_bit_rows_in_a_float32_basis() -> None:
    first, second = _random(5, 1, 2, 3, seed=1).bfloat16(), _random(5, 1, 2, 4, seed=2).bfloat16()
    left, right = _basis(1, 3, 3), _basis(1, 4, 4)
    rows = torch.einsum("ngta,ngtb->ngab", first.double(), second.double())
    found = rotated_squares(Contract(first, second), left.float(), right.float())
    assert found is not None and found.dtype == torch.float32
    assert oracle.difference(found.double(), _turned(rows, left, right)) < 1e-5


@pytest.mark.parametrize("turn", [True, False])
def test_tables(turn: bool) -> None:
    index = torch.tensor([[0, 2, 2], [4, 4, 4], [1, 0, 3], [2, 1, 2]])
    g = _random(4, 3, 3, seed=1)
    rows = torch.zeros(4, 1, 5, 3, dtype=torch.float64)
    for n in range(4):
        for t in range(3):
            rows[n, 0, index[n, t]] += g[n, t]
    none = torch.zeros(1, 0, dtype=torch.float64)
    right: Any = _basis(1, 3, 4) if turn else none
    found = rotated_squares(Lookup(index, g, 5), none, right)
    assert found is not None and oracle.difference(found, _turned(rows, none, right)) < 1e-12


def test_what_has_no_factors() -> None:
    basis = torch.ones(1, 1, 1, dtype=torch.float64)
    assert rotated_squares(Dense(_random(4, 3, seed=1)), basis, _basis(1, 3, 2)) is None
    table = Lookup(torch.zeros(4, 2, dtype=torch.long), _random(4, 2, 3, seed=1), 5)
    assert rotated_squares(table, _basis(1, 5, 1), _basis(1, 3, 2)) is None
