"""Sparse tensors of entries: their derivatives of any order beside those of dense matrices, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hesse.core.errors import UnsupportedError
from hesse.core.space import Space
from hesse.sparse.layouts import Arranger

from .matrices import random_pattern

PATTERN = random_pattern(np.random.default_rng(4), 5, 5, 0.5)
PLACES = torch.tensor(PATTERN.rows), torch.tensor(PATTERN.indices)
SPACE = Space.of(torch.zeros(5, dtype=torch.float64))
LACKING = {("csc", "multiplied"), *(("bsr", use) for use in (
    "sum", "added", "multiplied", "beside a dense one", "transposed", "times a matrix"))}  # fmt: skip
COMPRESSED = ("csr", "csc", "bsr")
Use = Callable[[Tensor, Tensor], Tensor]


def matrix_of(values: Tensor, layout: Any) -> Tensor:
    """By `index_put`, or as an arranger makes it."""
    if layout is None:
        return torch.zeros(5, 5, dtype=values.dtype).index_put(PLACES, values)
    return Arranger(PATTERN, SPACE, SPACE).arrange(values, layout)


def entries(matrix: Tensor) -> Tensor:
    return matrix[PLACES] if matrix.layout is torch.strided else matrix.coalesce().values()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


USES: dict[str, Use] = {
    "to_dense": lambda S, y: (S.to_dense() ** 2).sum(),
    "times a matrix": lambda S, y: ((S @ y) ** 2).sum(),
    "transposed": lambda S, y: ((S.t() @ y) ** 2).sum(),
    "sum": lambda S, y: S.sum() ** 2,
    "added": lambda S, y: ((S + S).to_dense() ** 2).sum(),
    "multiplied": lambda S, y: ((S * S).to_dense() ** 2).sum(),
    "beside a dense one": lambda S, y: ((torch.ones(5, 5, dtype=torch.float64) + S) ** 2).sum(),
}
COO_USES: dict[str, Use] = {
    "entries": lambda S, y: (entries(S) ** 2).sum(),
    "two ways": lambda S, y: (entries(S) ** 3).sum() + (S.to_dense() ** 2).sum() + ((S @ y) ** 2).sum(),
    "its own square": lambda S, y: ((S @ S).to_dense() ** 2).sum(),
    "in compressed rows": lambda S, y: (((S if S.layout is torch.strided else S.to_sparse_csr()) @ y) ** 2).sum(),
}


def derivatives(layout: Any, use: Use, order: int) -> list[Tensor]:
    """Gradients by the entries' origin and by a factor, each order of the sum of squares of the one before."""
    v, y = draw(PATTERN.nnz).requires_grad_(), draw(5, 2).requires_grad_()
    value, found = use(matrix_of(v**3, layout), y), []
    for _ in range(order):
        parts = [part for part in torch.autograd.grad(value, (v, y), create_graph=True, allow_unused=True) if part is not None]
        found += parts
        value = torch.stack([(part**2).sum() for part in parts]).sum().sqrt()
    return found


@pytest.mark.parametrize("use", [*USES, *COO_USES])
def test_coordinates_to_second_order(use: str) -> None:
    function = {**USES, **COO_USES}[use]
    for a, b in zip(derivatives("coo", function, 2), derivatives(None, function, 2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", COMPRESSED)
@pytest.mark.parametrize("use", USES)
def test_compressed_once(use: str, layout: str) -> None:
    if (layout, use) in LACKING:
        pytest.skip("torch has no such operation")
    for a, b in zip(derivatives(layout, USES[use], 1), derivatives(None, USES[use], 1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("layout", COMPRESSED)
@pytest.mark.parametrize("use", [lambda S: (S.to_dense() ** 2).sum(), lambda S: (S.values() ** 2).sum()])
def test_a_second_derivative_of_compressed_ones_is_refused(use: Callable[[Tensor], Tensor], layout: str) -> None:
    v = draw(PATTERN.nnz).requires_grad_()
    (first,) = torch.autograd.grad(use(matrix_of(v**3, layout)), v, create_graph=True)
    torch.testing.assert_close(first, 6 * v**5)
    with pytest.raises(UnsupportedError, match=rf"layout='{layout}'(.|\n)*layout='dense'"):
        torch.autograd.grad(first.sum(), v)


@pytest.mark.parametrize("use", [lambda S: (S.to_dense() ** 2).sum(), lambda S: (entries(S) ** 2).sum()])
def test_a_third_derivative_of_coordinates_is_refused(use: Callable[[Tensor], Tensor]) -> None:
    v = draw(PATTERN.nnz).requires_grad_()
    (first,) = torch.autograd.grad(use(matrix_of(v**3, "coo")), v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), v, create_graph=True)
    torch.testing.assert_close(second, 30 * v**4)
    with pytest.raises(UnsupportedError, match=r"a third derivative through layout='coo'"):
        torch.autograd.grad(second.sum(), v)


def test_inside_of_grad_twice() -> None:
    def once(v: Tensor) -> Tensor:
        return torch.func.grad(lambda w: (matrix_of(w**3, "coo").to_dense() ** 2).sum())(v)

    v = draw(PATTERN.nnz)
    torch.testing.assert_close(once(v), 6 * v**5)
    torch.testing.assert_close(torch.func.grad(lambda w: once(w).sum())(v), 30 * v**4)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "blocks"])
def test_transforms_that_torch_lacks_are_refused(layout: str) -> None:
    v = draw(PATTERN.nnz)
    transforms = r"transform of torch.func" if layout in COMPRESSED else "forward mode|vmap"
    with pytest.raises(UnsupportedError, match=rf"({transforms})(.|\n)*layout='dense'"):
        torch.func.jvp(lambda w: matrix_of(w, layout), (v,), (v,))
    with pytest.raises(UnsupportedError, match=rf"({transforms})(.|\n)*layout='operator'"):
        torch.func.vmap(lambda w: matrix_of(w, layout).sum())(v.expand(2, -1))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(UnsupportedError, match="forward mode"):
        matrix_of(torch.autograd.forward_ad.make_dual(v, v), layout)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "blocks"])
def test_constants_inside_of_transforms(layout: str) -> None:
    v = draw(PATTERN.nnz)
    matrix = matrix_of(v, "dense")
    found = torch.func.vmap(lambda y: y @ matrix_of(v, layout).to_dense())(draw(5, 2).T)
    torch.testing.assert_close(found, draw(5, 2).T @ matrix)
    with torch.autograd.forward_ad.dual_level():
        torch.testing.assert_close(matrix_of(v, layout).to_dense(), matrix)


def test_a_gradient_with_other_entries() -> None:
    """The cotangent is sparse, and has entries where the matrix has none, and none where it has some."""
    v = draw(PATTERN.nnz).requires_grad_()
    weights = torch.where(draw(5, 5) > 0, draw(5, 5), 0)
    for cotangent in (weights.to_sparse(), torch.zeros(5, 5, dtype=torch.float64).to_sparse(), weights):
        (found,) = torch.autograd.grad(matrix_of(v**2, "coo"), v, cotangent)
        torch.testing.assert_close(found, 2 * v * cotangent.to_dense()[PLACES])
