"""Index arrays: what is refused, what is sorted, what stays as it is."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from hesse.core.errors import DataError, StructureError
from hesse.core.storage import save_tensors
from hesse.sparse import ColoredPattern, Pattern, coloring

from .matrices import entries, random_pattern, torus


@pytest.mark.parametrize(("shape", "indptr", "indices", "found"), [
    ((2, 3), [0, 1], [1], "2 ends of rows for 2 rows"), ((2, 3), [0, 1, 3], [1, 2], "indptr from 0 to 3 for 2 indices"),
    ((2, 3), [1, 1, 2], [1, 2], "indptr from 1"), ((3, 3), [0, 2, 1, 2], [0, 1], "a row 1 of length -1"),
    ((2, 3), [0, 1, 2], [1, 3], "column 3"), ((2, 3), [0, 1, 2], [-1, 1], "column -1"),
    ((2, 3), [0, 0, 2], [2, 0], "columns 2 and 0, in this order, in row 1"), ((1, 3), [0, 2], [1, 1], "columns 1 and 1"),
    ((1, 3), [0.0, 2.0], [0, 1], "indptr of dtype float64"), ((1, 3), [0, 2], [False, True], "indices of dtype bool"),
    ((-1, 3), [0], [], "the shape"), ((2,), [0, 0, 0], [], "the shape"), ((2.0, 3), [0, 0, 0], [], "the shape"),
    (7, [0, 0], [], "the shape 7"),
])  # fmt: skip
def test_arrays_that_are_no_pattern_are_refused(shape, indptr, indices, found) -> None:
    with pytest.raises(StructureError, match=found):
        Pattern(shape, np.array(indptr), np.array(indices))


@pytest.mark.parametrize("bad", [[0.5, 1.0], [True, False], ["a", "b"], [1.0, float("nan")]])
def test_coordinates_are_integers(bad) -> None:
    with pytest.raises(StructureError, match="pass integers"):
        Pattern.from_coordinates(bad, [0, 1], (3, 3))


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int32, np.uint64])
def test_integers_of_any_width(kind) -> None:
    pattern = Pattern.from_coordinates(np.array([2, 0], kind), np.array([1, 3], kind), (kind(3), np.int64(4)))
    assert entries(pattern) == {(2, 1), (0, 3)}
    assert (pattern.indices.dtype, pattern.shape) == (np.int64, (3, 4))


def test_nobody_can_change_a_pattern() -> None:
    indptr, indices = np.array([0, 1, 2]), np.array([0, 1])
    pattern = Pattern((2, 2), indptr, indices)
    indices[0] = 1
    assert entries(pattern) == {(0, 0), (1, 1)}
    for array in (pattern.indptr, pattern.indices, pattern.rows, pattern.T.indices, pattern.by_column):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    with pytest.raises(AttributeError):
        pattern.shape = (3, 3)
    colors = np.zeros(2, int)
    colored = coloring(pattern, kind="column")
    for array in (colored.column_colors, colored.row_colors):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    from hesse.sparse import ColoredPattern

    given = ColoredPattern(pattern, "column", colors, np.full(2, -1))
    colors[0] = 7
    assert given.column_colors.tolist() == [0, 0]


def test_scipy_matrices_are_not_touched() -> None:
    matrix = sp.csr_array((np.ones(4), np.array([2, 0, 1, 1]), np.array([0, 2, 4])), shape=(2, 3))  # unsorted, twice
    pattern = Pattern.of(matrix)
    assert entries(pattern) == {(0, 0), (0, 2), (1, 1)}
    assert matrix.indices.tolist() == [2, 0, 1, 1]
    assert pattern.indices.base is not matrix.indices


def test_flags_of_scipy_are_not_believed() -> None:
    matrix = sp.csr_array((np.ones(2), np.array([1, 0]), np.array([0, 2])), shape=(1, 2))
    matrix.has_canonical_format = True
    assert Pattern.of(matrix).indices.tolist() == [0, 1]


@pytest.mark.parametrize("make", [sp.csr_matrix, sp.bsr_array, sp.dia_array, sp.dok_array, sp.coo_matrix, sp.csc_matrix])
def test_every_scipy_format_keeps_stored_zeros_or_has_none(make) -> None:
    dense = np.array([[0, 2.0, 0, 0], [1, 0, 0, 3], [0, 0, 0, 0], [4, 5, 0, 6]])
    pattern = Pattern.of(make(dense))
    assert {(0, 1), (1, 0), (1, 3), (3, 0), (3, 1), (3, 3)} <= entries(pattern)
    zero = sp.coo_array((np.zeros(1), ([2], [1])), shape=(3, 3))
    assert entries(Pattern.of(zero.asformat("csr"))) == {(2, 1)}


@pytest.mark.parametrize("matrix", [
    torch.eye(4).to_sparse_bsr((2, 2)), torch.eye(4, dtype=torch.bfloat16), torch.eye(4, dtype=torch.complex64),
    torch.eye(4, dtype=torch.bool), np.eye(4, dtype=bool), np.eye(4, dtype=complex), np.eye(4, dtype=np.uint8),
], ids=str)  # fmt: skip
def test_dtypes_and_blocks(matrix) -> None:
    found = entries(Pattern.of(matrix))
    assert {(i, i) for i in range(4)} <= found
    assert len(found) == (8 if isinstance(matrix, torch.Tensor) and matrix.layout is torch.sparse_bsr else 4)


def test_nan_is_an_entry() -> None:
    assert entries(Pattern.of(torch.tensor([[0.0, float("nan")]]))) == {(0, 1)}


def test_shapes_whose_product_overflows() -> None:
    wide = 1 << 62
    a = Pattern.from_coordinates([3, 0, 3], [wide - 1, 5, wide - 1], (4, wide))
    b = Pattern.from_coordinates([1, 3], [7, wide - 1], (4, wide))
    assert (a.nnz, a.indices.tolist(), a.indptr.tolist()) == (2, [5, wide - 1], [0, 1, 1, 1, 2])
    assert (a | b).nnz == 3
    assert (a & b).indices.tolist() == [wide - 1]
    assert a.missing(b).tolist() == [[1, 7]]
    assert 0 < a.density < 1e-15


@pytest.mark.parametrize("seed", range(5))
def test_set_operations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_pattern(rng, 9, 13, 0.3), random_pattern(rng, 9, 13, 0.3)
    assert entries(a & b) == entries(a) & entries(b)
    assert entries(a | b) == entries(a) | entries(b)
    assert a.covers(b) == (entries(b) <= entries(a))
    assert (a | b).covers(a)
    assert a.by_column.tolist() == sorted(range(a.nnz), key=lambda k: (a.indices[k], a.rows[k]))
    assert a.T.T is a
    for operation in (a.__or__, a.__and__, a.missing):
        with pytest.raises(StructureError, match="one shape"):
            operation(b.T)


def test_what_a_pattern_gives_out_is_not_the_pattern() -> None:
    pattern = Pattern.of([[1, 0, 1], [0, 1, 0]])
    kept = {(0, 0), (0, 2), (1, 1)}
    pattern.coordinates[:] = 1
    for matrix in (pattern.ones, pattern.T.ones):
        for array in (matrix.data, matrix.indices, matrix.indptr):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
        matrix.indices = matrix.indices[::-1]
        matrix.data = matrix.data * 0
    made = pattern.to_scipy()
    made.indices[:] = 1
    made.data[:] = 0
    assert entries(pattern) == {(j, i) for i, j in entries(pattern.T)} == kept
    assert pattern.covers(Pattern.of([[1, 0, 0], [0, 1, 0]]))
    assert {tuple(place) for place in pattern.coordinates.T.tolist()} == kept


def test_copies_and_pickles() -> None:
    pattern = Pattern.of(torus(3, 4))
    colored = coloring(pattern)
    for known in (pattern, colored):
        _ = pattern.T, pattern.is_symmetric
        again = pickle.loads(pickle.dumps(known))
        assert again is not known
        assert copy.deepcopy(known) == copy.copy(known) == known == again
        assert hash(copy.deepcopy(known)) == hash(known) == hash(again)
        for name in ("indptr", "indices", "column_colors", "row_colors"):
            if hasattr(again, name):
                with pytest.raises(ValueError, match="read-only"):
                    getattr(again, name)[0] = 1
    assert len({pattern, Pattern.of(torus(3, 4)), pattern.T, Pattern.of(torus(3, 5))}) == 2
    assert pattern != 3


def test_equal_colorings_are_equal() -> None:
    pattern, none = Pattern.of(np.eye(3)), np.full(3, -1)
    given = [0, 1, 1], [0, 1, 1], [0, 0, 1]
    one, two, other = (ColoredPattern(pattern, "column", np.array(colors), none) for colors in given)
    assert one == two != other
    assert one != pattern
    assert len({one, two, other}) == 2
    assert one != ColoredPattern(pattern, "row", none, np.array([0, 1, 1]))


def test_whatever_has_a_pattern_is_compared_with_one() -> None:
    pattern = Pattern.of(np.eye(3))
    assert pattern.missing(torch.ones(3, 3)).tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    assert pattern.covers(sp.eye_array(3))
    assert entries(pattern | torch.ones(3, 3)) == {(i, j) for i in range(3) for j in range(3)}
    assert entries(pattern & np.tri(3)) == {(0, 0), (1, 1), (2, 2)}
    for operation in (pattern.missing, pattern.covers, pattern.__or__, pattern.__and__):
        with pytest.raises(StructureError, match="a str"):
            operation("text")


def test_files_that_hold_no_pattern(tmp_path) -> None:
    tensors = {"indptr": torch.tensor([0, 2]), "indices": torch.tensor([1, 0])}
    save_tensors(tmp_path / "bad", tensors, "sparsity pattern", {"shape": [1, 2]})
    with pytest.raises(DataError, match="in row 0"):
        Pattern.load(tmp_path / "bad")


def test_a_million_places_in_any_order() -> None:
    pattern = Pattern.of(torus(400, 300))
    order = np.random.default_rng(0).permutation(pattern.nnz)
    twice = np.concatenate([order, order[::3]])
    assert Pattern.from_coordinates(pattern.rows[twice], pattern.indices[twice], pattern.shape) == pattern
    assert pattern.is_symmetric
