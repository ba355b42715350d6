"""Norms of inverses and condition numbers, against the singular values of the matrix."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from hesse.convolutions import inverse_norm as subject
from hesse.convolutions import ladder
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.inverse_norm import condition_of, extremes, inverse_norm, inverse_norm_bound, searched
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse
from hesse.convolutions.questions.factor import ConvolutionFactorization
from hesse.core.errors import UnsupportedError
from hesse.linalg import condition, lstsq
from tests.convolutions.dense_oracle import CASES, Case

CLUSTER = Case("triangular", (1, 1, 3), (1, 700), {"padding": 1})  # singular values crowd at both ends, one is below rounding
TAPS = torch.tensor([[[0, 0.5, 1.0]]], dtype=torch.float64)
LARGE = (
    Case("square", (2, 2, 3, 3), (2, 24, 23), {"padding": 1}),
    Case("tall", (3, 2, 3), (2, 170), {"padding": 1}),
    Case("wide", (2, 3, 3), (3, 170), {"padding": 1}),
    Case("complex", (2, 3, 3), (3, 170), {"padding": 1}, torch.complex128),
)


@pytest.fixture
def iterated(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing is small; an entry for each search."""
    calls: list[float] = []

    def counting(way: Inverse, fraction: float) -> tuple[float, bool]:
        calls.append(fraction)
        return searched(way, fraction)

    monkeypatch.setattr(subject, "searched", counting)
    monkeypatch.setattr(subject, "_DENSE_WORK", 0)
    return calls


def kept(case: Case, weight: Tensor) -> tuple[float, float]:
    values = torch.linalg.svdvals(case.matrix(weight))
    values = values[values > max(case.matrix(weight).shape) * torch.finfo(torch.float64).eps * values[0]]
    return float(values[0]), float(values[-1])


@pytest.mark.sampled(7)
@pytest.mark.parametrize("case", [CLUSTER, *LARGE, *CASES], ids=str)
def test_exact_where_the_matrix_is_small(case: Case) -> None:
    weight = TAPS if case is CLUSTER else case.weight()
    largest, smallest = kept(case, weight)
    for method in ("auto", "boundary"):
        found = ladder.inverse(case.operator(weight), method=method)
        assert extremes(found) == pytest.approx((largest, smallest), rel=1e-9)
        assert inverse_norm(found) == inverse_norm_bound(found) == pytest.approx(1 / smallest, rel=1e-9)
        assert condition_of(found) == pytest.approx(largest / smallest, rel=1e-9)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("method", ["boundary", "krylov"])
@pytest.mark.parametrize("case", [CLUSTER, *LARGE], ids=str)
def test_by_iteration(case: Case, method: str, iterated: list[float]) -> None:
    weight = TAPS.clone() if case is CLUSTER else case.weight()
    if method == "krylov" and case is CLUSTER:
        weight[..., 1] += 2.0
    elif method == "krylov":
        weight = 0.1 * weight
        for channel in range(2):
            weight[(channel, channel, *(1,) * (weight.ndim - 2))] += 2.0
    largest, smallest = kept(case, weight)
    A = case.operator(weight)
    bound = inverse_norm_bound(ladder.inverse(A, method=method)) * smallest
    assert 1 <= bound <= 1.11
    found = ladder.inverse(A, method=method)
    assert 0.99 <= inverse_norm(found) * smallest <= 1.001
    assert condition_of(found) == pytest.approx(largest / smallest, rel=0.011)
    assert 1 <= inverse_norm_bound(found) * smallest <= 1.012
    assert [fraction for fraction in iterated if fraction > 0.95] == [0.99] and len(iterated) == 2


def test_one_search_serves_all_and_all_say_the_same(iterated: list[float]) -> None:
    A, y = CLUSTER.operator(TAPS), torch.randn(1, 700, dtype=torch.float64)
    F, P = ConvolutionFactorization(ladder.inverse(A)), ConvolutionPseudoInverse(A)
    found, again = F.lstsq(y, full=True), F.lstsq(2 * y, full=True)
    assert found.forward_error < 1e-11 and again.forward_error < 1e-11
    assert len(iterated) == 1
    assert F.condition == found.condition == again.condition == F.T.condition
    assert len(iterated) == 2 and iterated[0] < iterated[1]
    assert F.lstsq(y, full=True).forward_error <= found.forward_error
    assert len(iterated) == 2
    assert P.condition == P.T.condition == lstsq(A, y, full=True).condition == F.condition
    assert pickle.loads(pickle.dumps(F)).condition == F.condition


def test_condition_answers_the_same_where_it_iterates(iterated: list[float]) -> None:
    case = Case("larger", (1, 1, 3), (1, 700), {"padding": 1})
    A = case.operator(torch.tensor([[[0.3, 1.0, 0.4]]], dtype=torch.float64))
    assert float(condition(A)) == ConvolutionPseudoInverse(A).condition
    assert iterated


@pytest.mark.parametrize("fraction", [0.99, 1 / 1.1])
def test_few_steps_do_for_separate_values(fraction: float) -> None:
    case = Case("nearly singular", (1, 1, 3), (1, 601), {"padding": 1})
    weight = torch.tensor([[[1.0, 1.0, 1.0]]], dtype=torch.float64) + 1e-5 * torch.tensor([0.3, 1.0, 0.0])
    found = ladder.inverse(case.operator(weight), method="boundary")
    steps, apply = [], found.apply

    def counting(Y: Tensor, *, adjoint: bool = False):
        steps.append(adjoint)
        return apply(Y, adjoint=adjoint)

    found.apply = counting  # type: ignore[method-assign]
    norm, _ = searched(found, fraction)
    assert norm * kept(case, weight)[1] == pytest.approx(1, rel=0.01 if fraction > 0.95 else 0.1)
    assert len(steps) <= 100


def test_krylov_methods_that_do_not_converge_say_nothing(iterated: list[float]) -> None:
    case = LARGE[0]
    weight = case.weight()
    weight[..., 1] += 3.0  # of condition 1e7
    found = ladder.inverse(case.operator(weight), method="krylov")
    assert inverse_norm_bound(found) == inverse_norm(found) == condition_of(found) == math.inf


def test_nothing_kept() -> None:
    for case in (CLUSTER, LARGE[0]):
        zero = ladder.inverse(case.operator(torch.zeros_like(case.weight())), method="boundary")
        assert (inverse_norm(zero), inverse_norm_bound(zero), condition_of(zero)) == (0.0, 0.0, 1.0)
    case = CASES[0]
    none = ladder.inverse(case.operator(case.weight()), method="dense")
    none.truncated = min(case.matrix(case.weight()).shape)
    none.method = "cut off by hand"
    assert (inverse_norm(none), inverse_norm_bound(none), condition_of(none)) == (0.0, 0.0, 1.0)


def test_an_inverse_that_scales_as_it_should(iterated: list[float]) -> None:
    case = LARGE[1]
    for factor in (1e-150, 1e150):
        small, plain = (ladder.inverse(case.operator(c * case.weight()), method="boundary") for c in (factor, 1.0))
        assert condition_of(small) == pytest.approx(condition_of(plain), rel=1e-3)


def test_under_vmap_the_condition_is_refused() -> None:
    case = CASES[0]
    weights = torch.stack([case.weight(1), case.weight(2)])
    with pytest.raises(UnsupportedError, match="vmap"):
        torch.func.vmap(lambda w: torch.tensor(ConvolutionPseudoInverse(case.operator(w)).condition) + w.sum())(weights)
