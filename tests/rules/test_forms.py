"""Forms stand for rows: each against the sum that its definition writes down."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.forms import Contract, Dense, Lookup


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def test_contract_is_a_sum_of_outer_products() -> None:
    left, right = _normal(5, 2, 3, 4), _normal(5, 2, 3, 6)
    form = Contract(left, right)
    expected = torch.stack([
        torch.stack([sum(torch.outer(left[n, g, t], right[n, g, t]) for t in range(3)) for g in range(2)]) for n in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(form.dense(), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(form.dense(slice(1, 3)), expected[1:3], rtol=1e-13, atol=1e-13)
    assert form.dims == (5, 2, 3, 4, 6)
    torch.testing.assert_close(form.transposed().dense(), expected.mT, rtol=1e-13, atol=1e-13)


def test_lookup_adds_repeated_tokens() -> None:
    index, g = torch.tensor([[2, 0, 2, 3], [1, 1, 1, 0]]), _normal(2, 4, 3)
    expected = torch.zeros(2, 5, 3, dtype=torch.float64)
    for n in range(2):
        for t in range(4):
            expected[n, index[n, t]] += g[n, t]
    form = Lookup(index, g, 5)
    torch.testing.assert_close(form.dense(), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(form.dense(slice(1, 2)), expected[1:], rtol=1e-13, atol=1e-13)


def test_dense_is_its_rows() -> None:
    rows = _normal(4, 2, 3)
    assert torch.equal(Dense(rows).dense(slice(1, 3)), rows[1:3])
