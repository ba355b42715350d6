"""Ranks against `torch.linalg.matrix_rank` of the matrix: the whole zoo, cut-offs, gaps, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from hesse.core.errors import LeafError, MemoryBudgetError, NonFiniteError, StructureError
from hesse.linalg.rank import rank
from hesse.linalg.rank_rules import Rank, rank_rule
from hesse.operators import BlockDiagonal, Dense, Diagonal, LinearOperator, restrict

from .counted import Counted, random_matrix
from .test_pinv import DTYPES, ZOO, truncating, with_values


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
def test_the_zoo(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    found = rank(A)
    assert found == int(torch.linalg.matrix_rank(M)) == rank(A.H)
    assert isinstance(found, Rank) and found.gap > 1e6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [1e-5, 7e-4, 0.01, 0.2, 1.0])
@pytest.mark.parametrize("name", truncating(torch.float64))
def test_one_cut_off_for_the_whole(name: str, rtol: float, dtype: str) -> None:
    A, M = truncating(DTYPES[dtype])[name]
    values = torch.linalg.svdvals(M)
    found, expected = rank(A, rtol=rtol), int((values > rtol * values[0]).sum())
    assert found == expected
    if 0 < expected < len(values) and values[expected] > 1e-9:
        assert found.gap == pytest.approx(float(values[expected - 1] / values[expected]), rel=1e-6)


def test_it_is_an_int_that_knows_its_gap() -> None:
    found = rank(Dense(with_values(7, 5, [3.0, 2.0, 1e-3])), rtol=0.1)
    assert found == 2 and found + 1 == 3 and f"{found}" == "2" and repr(found) == "2" and [0, 1, 2][found] == 2
    assert found.gap == pytest.approx(2000, rel=1e-9)
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert again == 2 and again.gap == found.gap
    assert rank(Dense(random_matrix(4, 3))).gap == math.inf


def test_zero_empty_and_half_precision() -> None:
    assert rank(0.0 * Dense(random_matrix(3, 4))) == 0 == rank(Diagonal(torch.zeros(3))) == rank(Dense(torch.zeros(3, 0)))
    assert rank(Counted(random_matrix(6, 4).to(torch.bfloat16))) == 4


def test_arrangements_of_leaves() -> None:
    A = Dense(with_values(5, 5, [2.0, 1.0, 0.5]))
    pair = BlockDiagonal({"a": A, "b": Diagonal(torch.tensor([1.0, 0.0], dtype=torch.float64))})
    assert rank(pair) == 4 and rank(restrict(pair, ["a"])) == 3


def test_other_packages_register_rules() -> None:
    class Known(Counted):
        pass

    @rank_rule.register(Known)
    def _known(A: Known, rtol: float | None, memory: Any) -> int:
        return 2

    found = rank(Known(random_matrix(3, 3)))
    assert found == 2 and isinstance(found, Rank) and math.isnan(found.gap)


def test_bad_input() -> None:
    with pytest.raises(StructureError, match="rank needs rtol >= 0"):
        rank(Dense(random_matrix(2, 3)), rtol=-1.0)
    with pytest.raises(LeafError, match="rank needs floating-point"):
        rank(Dense(torch.ones(2, 3, dtype=torch.int64)))
    bad = random_matrix(3, 3)
    bad[1, 2] = torch.nan
    unknown: LinearOperator = Counted(bad)
    for A in (Dense(bad), Diagonal(bad[1]), unknown):
        with pytest.raises(NonFiniteError):
            rank(A)
    with pytest.raises(MemoryBudgetError, match=r"(?s)shape \(40, 30\).*hesse.svd"):
        rank(Counted(random_matrix(40, 30)), memory=1000)
