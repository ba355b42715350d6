"""Low rank: tags from the factors, spaces from either side, factors that do not fit."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.operators import LowRank, Tag

from .zoo import drawing

T, C = drawing(torch.float64), drawing(torch.complex128)
REAL = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN})


@pytest.mark.parametrize(
    ("operator", "tags"),
    [
        (LowRank(T(4, 2)), REAL | {Tag.PSD}),
        (LowRank(T(4, 2), torch.tensor([0.0, 2.0], dtype=torch.float64)), REAL | {Tag.PSD}),
        (LowRank(T(4, 2), torch.tensor([1.0, -2.0], dtype=torch.float64)), REAL),
        (LowRank(T(4, 2), None, T(4, 2)), frozenset()),
        (LowRank(C(4, 2)), frozenset({Tag.SYMMETRIC})),
        (LowRank(T(4, 2), C(2)), frozenset({Tag.SYMMETRIC})),
    ],
)
def test_tags(operator: LowRank, tags: frozenset[Tag]) -> None:
    assert operator.tags == tags


@pytest.mark.parametrize(
    "factors",
    [(T(4, 2), T(3)), (T(4, 2), T(2), T(5, 3)), (T(4), T(2)), (T(4, 2), T(2, 2)), (T(4, 2), None, T(5))],
)
def test_factors_of_other_ranks_are_refused(factors) -> None:
    with pytest.raises(StructureError, match="LowRank needs"):
        LowRank(*factors)


def test_spaces() -> None:
    space = Space.of({"b": T(3), "a": T()})
    for A in (LowRank(T(4, 2), in_space=space), LowRank(T(4, 2), out_space=space)):
        assert A.in_space == A.out_space == space
    with pytest.raises(StructureError, match="do not fit"):
        LowRank(T(5, 2), in_space=space)
    with pytest.raises(StructureError, match="do not fit"):
        LowRank(T(4, 2), None, T(5, 2), space)
