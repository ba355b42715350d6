"""Block-diagonal operators: spaces named by the blocks, tags that all blocks share, scalar leaves."""

from __future__ import annotations

import pytest
import torch

from hesse.check import assert_operator
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.operators import BlockDiagonal, Dense, Diagonal, Kronecker, Tag

from .zoo import drawing, flat

T = drawing(torch.float64)


def test_spaces_are_named_by_the_blocks_in_their_order() -> None:
    A = BlockDiagonal({"z": Dense(T(2, 3), Space.of({"w": T(3)})), "a": Dense(T(1, 2))})
    assert A.in_space.names == ("z.w", "a")
    assert A.out_space.names == ("z", "a")
    assert A.shape == (3, 5)


def test_tags_that_all_blocks_share() -> None:
    psd = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
    eye = torch.eye(2, dtype=torch.float64)
    A = BlockDiagonal({"a": Dense(eye, tags=psd), "b": Diagonal(T(3))})
    assert A.tags == {Tag.SYMMETRIC, Tag.HERMITIAN}
    assert BlockDiagonal({"a": Dense(eye, tags=psd), "b": Dense(eye)}).tags == frozenset()


def test_scalar_leaves_and_nesting() -> None:
    inner = BlockDiagonal({"s": Diagonal(T()), "m": Dense(T(3, 2))})
    A = BlockDiagonal({"b": inner, "a": Diagonal({"k": T(2), "j": T()})})
    assert A.in_space.names == ("b.s", "b.m", "a.k", "a.j")
    assert_operator(A)


def test_printed_form() -> None:
    A = BlockDiagonal({"z": Dense(T(2, 3)), "a": Diagonal(T(2))})
    expected = "BlockDiagonal(4 x 5)\n  z: Dense(2 x 3)\n  a: Diagonal(2 x 2, diagonal, hermitian, symmetric)"
    assert repr(A) == expected


def test_blocks_on_the_leaves_of_a_given_space() -> None:
    space = Space.of({"l.weight": T(2, 3), "l.bias": T(2), "s": T()})
    first, second = Kronecker(T(2, 2), T(4, 4), *[Space.of((T(2, 3), T(2)))] * 2), Diagonal(T())
    A = BlockDiagonal({"l": first, "s": second}, space)
    M = torch.block_diag(torch.kron(first.left, first.right), second.entries.reshape(1, 1))
    v = {"l.weight": T(2, 3), "l.bias": T(2), "s": T()}
    assert A.in_space == A.out_space == space
    torch.testing.assert_close(flat(A @ v), M @ flat(v))
    torch.testing.assert_close(flat(A.T @ v), M.mT @ flat(v))
    assert_operator(A)
    wide = BlockDiagonal({"x": Dense(T(1, 2)), "y": Dense(T(4, 3))}, Space.of((T(2), T(3))), Space.of([T(1), T(4)]))
    assert_operator(wide)
    assert isinstance(wide.mv((T(2), T(3))), list)


@pytest.mark.parametrize("blocks", [[T(6)], [T(2, 3), T(3)], [T(2, 3), T(2), T(1)], []])
def test_blocks_that_do_not_fit_the_space_are_refused(blocks: list[torch.Tensor]) -> None:
    space = Space.of({"weight": T(2, 3), "bias": T(2)})
    with pytest.raises(StructureError, match="leaves of its space in order"):
        BlockDiagonal({str(k): Diagonal(entries) for k, entries in enumerate(blocks)}, space)
