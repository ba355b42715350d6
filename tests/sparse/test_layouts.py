"""Layouts: each one, made dense again, is the matrix."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import hesse
from hesse.core.errors import MemoryBudgetError, StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.sparse import Pattern
from hesse.sparse.blocks import found_block
from hesse.sparse.layouts import LAYOUTS, Arranger

from .matrices import line, random_pattern

X = {"a": torch.zeros(2, 2, dtype=torch.float64), "b": torch.zeros(0, dtype=torch.float64),
     "c": torch.zeros(5, dtype=torch.float64)}  # fmt: skip
Y = (torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def made(seed: int = 0) -> tuple[Arranger, torch.Tensor, torch.Tensor]:
    """An arranger of a random 4 x 9 matrix, its entries, and the matrix."""
    pattern = random_pattern(np.random.default_rng(seed), 4, 9, 0.4)
    values = torch.randn(pattern.nnz, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    dense = torch.zeros(4, 9, dtype=torch.float64)
    for (i, j), value in zip(pattern.coordinates.T.tolist(), values, strict=True):
        dense[i, j] = value
    return Arranger(pattern, Space.of(X), Space.of(Y)), values, dense


def as_dense(matrix) -> torch.Tensor:
    if isinstance(matrix, tuple):
        return torch.cat([torch.cat([part.to_dense() for part in row.values()], 1) for row in matrix])
    if sp.issparse(matrix):
        return torch.from_numpy(matrix.toarray())
    if isinstance(matrix, torch.Tensor):
        return matrix.to_dense()
    return torch.stack([torch.cat([leaf.reshape(-1) for leaf in matrix.T.mv(unit).values()]) for unit in units()])


def units() -> list[tuple[torch.Tensor, torch.Tensor]]:
    eye = torch.eye(4, dtype=torch.float64)
    return [(row[:3], row[3]) for row in eye]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_every_layout_is_the_matrix(seed: int, layout) -> None:
    arranger, values, dense = made(seed)
    for _ in range(2):
        assert torch.equal(as_dense(arranger.arrange(values, layout)), dense)


def test_blocks_have_the_trees_of_both_sides() -> None:
    arranger, values, _ = made()
    blocks = arranger.arrange(values, "blocks")
    assert isinstance(blocks, tuple)
    assert [{name: tuple(part.shape) for name, part in row.items()} for row in blocks] == [
        {"a": (3, 4), "b": (3, 0), "c": (3, 5)}, {"a": (1, 4), "b": (1, 0), "c": (1, 5)}]  # fmt: skip
    assert all(part.is_coalesced() for row in blocks for part in row.values())


@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "coo"])
def test_torch_believes_the_indices(layout) -> None:
    arranger, values, _ = made(1)
    with torch.sparse.check_sparse_tensor_invariants():
        found = arranger.arrange(values, layout)
        found.detach().clone()
        parts = (found.indices(),) if layout == "coo" else ()
        assert found.layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr)
        if layout == "csr":
            torch.sparse_csr_tensor(found.crow_indices(), found.col_indices(), found.values(), found.shape)
        elif layout == "csc":
            torch.sparse_csc_tensor(found.ccol_indices(), found.row_indices(), found.values(), found.shape)
        elif layout == "bsr":
            torch.sparse_bsr_tensor(found.crow_indices(), found.col_indices(), found.values(), found.shape)
        else:
            torch.sparse_coo_tensor(parts[0], found.values(), found.shape, is_coalesced=True)


@pytest.mark.parametrize(("matrix", "block"), [
    (np.kron(np.eye(5), np.ones((3, 2))), (3, 2)), (np.kron(line(6).toarray(), np.ones((4, 4))), (4, 4)),
    (line(7).toarray(), (1, 1)), (np.ones((6, 10)), (6, 10)), (np.zeros((6, 10)), (6, 10)),
    (np.kron([[1, 0, 1], [0, 1, 1]], np.ones((2, 5))), (2, 5)), (np.diag([1, 1, 0, 0.0]), (1, 1)),
    (np.kron([[1, 1], [0, 1]], np.ones((3, 3)))[:, :5], (3, 1)),
])  # fmt: skip
def test_the_blocks_that_a_pattern_fills(matrix, block) -> None:
    pattern = Pattern.of(matrix)
    assert found_block(pattern) == block
    height, width = block
    tiles = np.asarray(matrix).reshape(matrix.shape[0] // height, height, -1, width).transpose(0, 2, 1, 3)
    filled = tiles.reshape(*tiles.shape[:2], -1) != 0
    assert (filled.all(-1) == filled.any(-1)).all()


def test_blocks_that_are_given_are_padded() -> None:
    pattern = Pattern.of(line(6))
    values = torch.arange(1.0, pattern.nnz + 1)
    space = Space.of(torch.zeros(6))
    found = Arranger(pattern, space, space, block=(2, 3)).arrange(values, "bsr")
    assert found.values().shape[1:] == (2, 3)
    assert torch.equal(found.to_dense(), Arranger(pattern, space, space).arrange(values, "dense"))
    with pytest.raises(StructureError, match=r"blocks \(4, 3\) in \(6, 6\)"):
        Arranger(pattern, space, space, block=(4, 3))


@pytest.mark.parametrize("layout", ["dense", "bsr", "coo", "blocks", "csc"])
def test_gradients_reach_the_entries(layout) -> None:
    arranger, values, _ = made(2)
    weights = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    leaf = values.clone().requires_grad_()
    (as_dense(arranger.arrange(leaf, layout)) * weights).sum().backward()
    expected = torch.stack([weights[i, j] for i, j in arranger.pattern.coordinates.T.tolist()])
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected)


def test_scipy_shares_values_and_keeps_the_pattern() -> None:
    arranger, values, _dense = made(3)
    matrix = arranger.arrange(values, "scipy")
    assert np.shares_memory(matrix.data, values.numpy())
    assert matrix.indices.dtype == np.int32
    matrix.data[0] = 0
    matrix.eliminate_zeros()
    values[0] = 2.0
    again = arranger.arrange(values, "scipy")
    assert again.nnz == arranger.pattern.nnz
    assert again.toarray()[tuple(arranger.pattern.coordinates[:, 0].tolist())] == 2.0
    with pytest.raises(UnsupportedError, match="require grad"):
        arranger.arrange(values.requires_grad_(), "scipy")
    assert arranger.arrange(torch.ones(len(values), dtype=torch.float16), "scipy").dtype == np.float32


@pytest.mark.parametrize("change", [lambda J: J.t_(), lambda J: J.transpose_(0, 1), lambda J: J._indices().zero_(),
                                    lambda J: J._indices().numpy().fill(1), lambda J: J.zero_()])  # fmt: skip
def test_writing_to_coordinates_changes_no_other_result(change) -> None:
    arranger, values, dense = made(4)
    before = arranger.arrange(values.clone(), "coo")
    change(arranger.arrange(values.clone(), "coo"))
    for matrix in (before, *(arranger.arrange(values, layout) for layout in LAYOUTS)):
        assert torch.equal(as_dense(matrix), dense)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing_to_indices_changes_no_other_result(layout) -> None:
    arranger, values, dense = made(5)
    before = arranger.arrange(values.clone(), layout)
    changed = arranger.arrange(values.clone(), layout)
    tensors = []
    if layout == "blocks":
        tensors = [part._indices() for row in changed for part in row.values()]
    elif layout == "scipy":
        tensors = [torch.from_numpy(array) for array in (changed.indices, changed.indptr)]
    elif layout == "operator":
        tensors = [changed.indices]
    elif layout in ("csr", "bsr"):
        tensors = [changed.crow_indices(), changed.col_indices()]
    elif layout == "csc":
        tensors = [changed.ccol_indices(), changed.row_indices()]
    for tensor in tensors:
        tensor.zero_()
    for matrix in (before, *(arranger.arrange(values, layout) for layout in LAYOUTS)):
        assert torch.equal(as_dense(matrix), dense)


def test_dense_ones_beyond_the_budget() -> None:
    n = 10**6
    line_of = Pattern.from_coordinates(np.arange(n), np.arange(n), (n, n))
    space, values = Space.of(torch.zeros(n)), torch.ones(n)
    with pytest.raises(MemoryBudgetError, match=r"3\.6 TiB"):
        Arranger(line_of, space, space).arrange(values, "dense")
    with pytest.raises(MemoryBudgetError, match=r"37\.3 GiB"):
        Arranger(line_of, space, space, block=(10**4, 10**4), memory="1GiB").arrange(values, "bsr")
    small = Pattern.of(np.eye(1000))
    arranger, ones = Arranger(small, Space.of(torch.zeros(1000)), Space.of(torch.zeros(1000))), torch.ones(1000)
    assert torch.equal(arranger.arrange(ones, "dense"), torch.eye(1000))
    with hesse.memory("2MiB"), pytest.raises(MemoryBudgetError, match=r"2\.0 MiB"):
        arranger.arrange(ones, "dense")
    with pytest.raises(MemoryBudgetError, match="dense pattern"):
        line_of.to_dense()


def test_operators_under_vmap() -> None:
    arranger, values, dense = made(1)
    v = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = {"a": v[:4].view(2, 2), "b": v[4:4], "c": v[4:]}
    factors = torch.tensor([1.0, 3.0], dtype=torch.float64)
    many = torch.func.vmap(lambda t: torch.hstack(arranger.arrange(t * values, "operator").mv(x)))(factors)
    torch.testing.assert_close(many, factors[:, None] * (dense @ v))


@pytest.mark.parametrize("layout", ["dense", "operator"])
def test_hessians_under_vmap(layout) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return (x**3 * x.roll(1)).sum() + (x[0] * x).exp().sum()

    points = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    direction = torch.arange(1.0, 7, dtype=torch.float64)
    prepared = hesse.prepare_hessian(f, points[0])

    def product(x: torch.Tensor) -> torch.Tensor:
        return prepared(x, layout=layout)[1] @ direction

    expected = torch.stack([torch.autograd.functional.hessian(f, x) @ direction for x in points])  # pyright: ignore
    torch.testing.assert_close(torch.func.vmap(product)(points), expected)


def test_dense_under_vmap() -> None:
    arranger, values, dense = made(1)
    many = torch.func.vmap(lambda v: arranger.arrange(v, "dense"))(torch.stack([values, 3 * values]))
    assert torch.equal(many, torch.stack([dense, 3 * dense]))


def test_no_entries() -> None:
    pattern = Pattern.from_coordinates([], [], (4, 9))
    arranger = Arranger(pattern, Space.of(X), Space.of(Y))
    for layout in LAYOUTS:
        assert not as_dense(arranger.arrange(torch.zeros(0, dtype=torch.float64), layout)).any(), layout


def test_an_unknown_layout() -> None:
    arranger, values, _ = made()
    with pytest.raises(StructureError, match="layout is one of"):
        arranger.arrange(values, "ell")  # pyright: ignore[reportArgumentType]


def test_threads_share_index_tensors() -> None:
    arranger, values, dense = made(2)
    wrong: list[str] = []

    def work() -> None:
        for layout in LAYOUTS:
            if not torch.equal(as_dense(arranger.arrange(values, layout)), dense):
                wrong.append(layout)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
