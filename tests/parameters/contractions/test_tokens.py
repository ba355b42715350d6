"""Inner products of lookups, by pairs of equal tokens and by tokens that occur, against one-hot sums."""

from __future__ import annotations

import pytest
import torch

from hesse.parameters.contractions import gram, squared_distances, squared_norms, summed_squares
from hesse.parameters.contractions.uses import Parts
from hesse.rules.forms import Contract, Dense, Lookup
from tests.parameters import oracle


def _lookup(n: int, t: int, table: int, high: int, seed: int) -> tuple[Lookup, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    use = Lookup(torch.randint(0, high, (n, t), generator=g), torch.randn(n, t, 3, generator=g, dtype=torch.float64), table)
    return use, torch.einsum("ntv,ntd->nvd", torch.nn.functional.one_hot(use.index, table).double(), use.g).flatten(1)


@pytest.mark.parametrize(("table", "high"), [(2000, 2000), (2000, 3), (5, 5), (1, 1)])
@pytest.mark.parametrize(("n", "t", "m", "s"), [(6, 4, 9, 7), (6, 1, 9, 1), (1, 8, 30, 2)])
def test_lookups(table: int, high: int, n: int, t: int, m: int, s: int) -> None:
    (first, rows), (second, others) = _lookup(n, t, table, high, 0), _lookup(m, s, table, high, 1)
    size = rows.shape[1]
    assert oracle.difference(gram(first, second, size, {}), rows @ others.mT) < 1e-12
    assert oracle.difference(gram(first, first, size, {}), rows @ rows.mT) < 1e-12
    assert oracle.difference(squared_norms(first, size), rows.square().sum(1)) < 1e-12
    assert oracle.difference(summed_squares(first, size), rows.square().sum(0)) < 1e-12
    center = torch.randn(size, dtype=torch.float64)
    assert oracle.difference(squared_distances(first, center, size), (rows - center).square().sum(0)) < 1e-12


def test_parts_with_boxes_of_their_own() -> None:
    n, whole = 4, torch.Size((5, 6))
    left, right = torch.randn(n, 1, 2, 2, dtype=torch.float64), torch.randn(n, 1, 2, 6, dtype=torch.float64)
    first = Parts(
        (((((0, 2), (0, 6))), Contract(left, right)), (((3, 5), (1, 3)), Dense(torch.randn(n, 2, 2).double()))), whole
    )
    other = Parts((((((1, 3), (0, 6))), Contract(right[..., :2], left.repeat(1, 1, 1, 3))),), whole)
    rows, others = (use.dense().flatten(1) for use in (first, other))
    assert not bool(first.dense()[:, 2].any()) and not bool(first.dense()[:, 3:, 0].any())
    assert oracle.difference(gram(first, other, 30, {}), rows @ others.mT) < 1e-12
    assert oracle.difference(gram(first, first, 30, {}), rows @ rows.mT) < 1e-12
    assert oracle.difference(squared_norms(first, 30), rows.square().sum(1)) < 1e-12
    assert oracle.difference(summed_squares(first, 30), rows.square().sum(0)) < 1e-12
