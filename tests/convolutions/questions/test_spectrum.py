"""Condition numbers and extreme singular values of convolutions, against those of the matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hesse.convolutions.questions  # noqa: F401
from hesse.linalg import condition, condition_rule, svd, svd_rule
from tests.convolutions.dense_oracle import CASES, Case

# smaller side above 512, so that no matrix is made
LARGER = (
    Case("square", (3, 3, 3), (3, 190), {"padding": 1}),
    Case("tall", (5, 3, 3), (3, 190), {"padding": 1}),
    Case("wide", (3, 4, 5), (4, 190), {"padding": 2, "padding_mode": "reflect"}),
    Case("complex", (3, 3, 3), (3, 180), {"padding": 1}, torch.complex128),
    Case("2-D valid", (4, 2, 3, 3), (2, 19, 17)),
)


def sharpening(case: Case) -> Tensor:
    """Second differences with noise, whose smallest singular values lie apart from each other."""
    weight = 0.02 * case.weight(2)
    center = tuple(side // 2 for side in weight.shape[2:])
    for channel in range(min(weight.shape[:2])):
        at = (channel, channel, *center[:-1])
        weight[at][center[-1] - 1 : center[-1] + 2] += torch.tensor([1.0, -2.0 - 0.2 * channel, 1.0])
    return weight


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", LARGER, ids=str)
def test_condition_numbers(case: Case) -> None:
    weight = sharpening(case)
    values = torch.linalg.svdvals(case.matrix(weight))
    expected = float(values[0] / values[-1])
    for A in (case.operator(weight), case.operator(weight).T):
        found = condition_rule(A)
        assert found is not None
        assert abs(found - expected) <= 0.02 * expected


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_small_ones_by_the_matrix(case: Case) -> None:
    A, values = case.operator(case.weight()), torch.linalg.svdvals(case.matrix(case.weight()))
    assert condition_rule(A) is None
    assert abs(float(condition(A)) - float(values[0] / values[-1])) <= 1e-8 * float(values[0] / values[-1])
    assert svd_rule(A, 2, "smallest") is None


def test_a_singular_one_has_an_infinite_condition_number() -> None:
    case = Case("box", (1, 1, 3), (1, 602), {"padding": 1})
    assert condition_rule(case.operator(torch.ones(1, 1, 3, dtype=torch.float64))) == math.inf


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", LARGER, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_smallest_singular_triplets(case: Case, transposed: bool) -> None:
    weight = sharpening(case)
    A, M = case.operator(weight), case.matrix(weight)
    A, M = (A.T, M.mT) if transposed else (A, M)
    found = svd(A, 3, which="smallest")
    values = torch.linalg.svdvals(M)
    assert torch.allclose(found.values, values[-3:].flip(0), rtol=1e-7, atol=0)
    U, V = A.out_space.ravel(found.U, 1), A.in_space.ravel(found.V, 1)
    assert float((V @ M.mT - found.values[:, None] * U).norm()) <= 1e-6 * float(values[0])
    assert float((U @ M.conj() - found.values[:, None] * V).norm()) <= 1e-6 * float(values[0])
    assert torch.allclose(V @ V.mH, torch.eye(3, dtype=V.dtype), atol=1e-6)


def test_smallest_of_a_singular_one_begin_with_zero() -> None:
    case = Case("box", (1, 1, 3), (1, 602), {"padding": 1})
    weight = torch.ones(1, 1, 3, dtype=torch.float64)
    A, M = case.operator(weight), case.matrix(weight)
    values = torch.linalg.svdvals(M)
    found = svd(A, 3, which="smallest")
    assert float(found.values[0]) == 0
    assert torch.allclose(found.values[1:], values[-3:-1].flip(0), rtol=1e-7)
    V = A.in_space.ravel(found.V, 1)
    assert torch.allclose(V @ V.mT, torch.eye(3, dtype=V.dtype), atol=1e-6)
    assert float(svd(A, 1, which="smallest").values[0]) == 0


def test_ill_conditioned_ones() -> None:
    """Lanczos on ``A^H A`` does not see below the root of the rounding unit; the inverse does."""
    case = Case("decaying", (1, 1, 3), (1, 520), {"padding": 1})
    weight = torch.tensor([[[1.0, -2.0, 1.0]]], dtype=torch.float64)  # second differences: the singular values are known
    exact = [2 - 2 * math.cos(math.pi * (j + 1) / 521) for j in range(2)]
    A = case.operator(weight)
    found = svd(A, 2, which="smallest")
    assert torch.allclose(found.values, torch.tensor(exact, dtype=torch.float64), rtol=1e-8)
    expected = (2 + 2 * math.cos(math.pi / 521)) / exact[0]
    assert abs(condition_rule(A) - expected) <= 0.02 * expected
