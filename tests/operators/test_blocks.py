"""Block-diagonal operators: spaces named by the blocks, tags that all blocks share, scalar leaves."""

from __future__ import annotations

import torch

from hesse.core.space import Space
from hesse.operators import BlockDiagonal, Dense, Diagonal, Tag
from hesse.testing import assert_operator_laws

from .zoo import drawing

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
    assert_operator_laws(A)


def test_printed_form() -> None:
    A = BlockDiagonal({"z": Dense(T(2, 3)), "a": Diagonal(T(2))})
    expected = "BlockDiagonal(4 x 5)\n  z: Dense(2 x 3)\n  a: Diagonal(2 x 2, diagonal, hermitian, symmetric)"
    assert repr(A) == expected
