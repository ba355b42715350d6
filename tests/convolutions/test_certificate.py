"""Certificates: what is right passes, what is wrong does not, whatever the scale."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hesse.convolutions import krylov, small
from hesse.convolutions.certificate import ConditionWarning, applied, at_least, certified, check, warn_of_condition
from hesse.convolutions.inverse import Applied, Inverse
from hesse.core.errors import NotConvergedError
from tests.convolutions.dense_oracle import CASES, Case

Change = Callable[[Tensor], Tensor]


class Altered(Inverse):
    """Another inverse whose answers are changed, and which proves nothing."""

    method = "altered"
    in_range = False

    def __init__(self, inner: Inverse, change: Change = lambda X: X) -> None:
        self.inner, self.change = inner, change
        self.convolution, self.truncated, self.gap = inner.convolution, inner.truncated, inner.gap

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        return Applied(self.change(self.inner.apply(Y, adjoint=adjoint).value))

    def norm(self) -> float:
        return self.inner.norm()

    def condition(self) -> float:
        return self.inner.condition()


def inverse(case: Case, weight: Tensor | None = None, rtol: float | None = None) -> Inverse:
    found = small.make(case.operator(case.weight() if weight is None else weight), rtol=rtol)
    assert found is not None
    return found


def images(of: Inverse, adjoint: bool = False, count: int = 3) -> Tensor:
    g, dtype = of.convolution.geometry, of.convolution.weight.dtype
    shape = g.in_shape if adjoint else g.out_shape
    return torch.randn(count, *shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


def null_vector(case: Case, weight: Tensor) -> Tensor:
    M = case.matrix(weight)
    return torch.linalg.svd(M).Vh[-1].conj().resolve_conj().reshape(case.in_shape)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_right_passes_and_its_numbers_are_those_of_the_matrix(case: Case, adjoint: bool) -> None:
    M = case.matrix(case.weight())
    M = M.mH if adjoint else M
    for of in (inverse(case), Altered(inverse(case))):
        Y = images(of, adjoint)
        X = of.apply(Y, adjoint=adjoint).value
        found = check(of, Y, X, adjoint=adjoint)
        assert found.ok and not found.trouble
        R = Y.flatten(1) - X.flatten(1) @ M.mT
        norm = float(torch.linalg.matrix_norm(M, 2))
        residual = R.norm(dim=1) / Y.flatten(1).norm(dim=1)
        assert abs(found.residual - float(residual.max())) <= 1e-12
        normal = (R @ M.conj()).norm(dim=1) / norm / R.norm(dim=1)
        assert abs(found.normal_residual - float(normal.max())) <= 1e-12 + 0.5 * float(normal.max())
        assert found.backward_error <= 4e-14
        assert found.membership <= 1e-14


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-1])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_wrong_fails(case: Case, adjoint: bool, size: float) -> None:
    of = inverse(case)
    Y = images(of, adjoint)
    X = of.apply(Y, adjoint=adjoint).value
    found = check(of, Y, X + size * X.norm() * torch.randn_like(X), adjoint=adjoint)
    assert not found.ok
    assert "backward error" in found.trouble
    assert found.backward_error > size / 1e3


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("wide", "dead cells", "strided wide", "complex wide")], ids=str
)
def test_a_part_in_the_null_space_is_found(case: Case) -> None:
    of = Altered(inverse(case))
    Y = images(of)
    X = of.apply(Y).value
    assert check(of, Y, X).ok
    for size in (1e-9, 1.0):
        found = check(of, Y, X + size * X.norm() * null_vector(case, case.weight()))
        assert not found.ok
        assert "outside of the range" in found.trouble
        assert found.membership > size / 100


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inverses_that_answer_nothing_or_half_are_caught(case: Case) -> None:
    for change in (torch.zeros_like, lambda X: X / 2, lambda X: X.flip(-1), lambda X: X + torch.nan):
        of = Altered(inverse(case), change)
        found = certified(of, images(of))
        assert found.trouble
        with pytest.raises(NotConvergedError, match="did not pass its certificate") as caught:
            applied(of, images(of))
        assert caught.value.partial.shape == found.value.shape


def test_small_residuals_in_long_solutions() -> None:
    """A residual between rounding and that of the solution: neither small nor orthogonal to rounding, and right."""
    case = Case("tall", (2, 1, 3), (1, 12), {"padding": 1})
    weight = torch.tensor([[[1.0, -2.0, 1.0]], [[1e-4, 0.0, 1e-4]]], dtype=torch.float64)
    of = inverse(case, weight)
    x = images(of, adjoint=True)
    Y = case.images(weight, x)
    Y = Y + 1e-9 * torch.randn_like(Y)
    X = of.apply(Y).value
    assert check(of, Y, X).ok
    assert not check(of, Y, X + 1e-9 * torch.randn_like(X)).ok


@pytest.mark.parametrize("scale", [1e-150, 1e-40, 1e40, 1e150])
@pytest.mark.parametrize("name", ["square", "tall", "wide", "complex wide"])
def test_any_scale(name: str, scale: float) -> None:
    (case,) = [case for case in CASES if case.name == name]
    of = Altered(inverse(case, scale * case.weight()))
    for adjoint in (False, True):
        for size in (1e-150, 1e-100, 1.0, 1e100, 1e150):
            if 1e-290 < size / scale < 1e290:
                Y = size * images(of, adjoint)
                X = of.apply(Y, adjoint=adjoint).value
                assert check(of, Y, X, adjoint=adjoint).ok
                assert not check(of, Y, X * 1.001, adjoint=adjoint).ok


def test_with_a_cut_off() -> None:
    case = Case("decaying", (1, 1, 3), (1, 12), {"padding": 1})
    weight = torch.tensor([[[0.3, 1.0, 0.5]]], dtype=torch.float64)
    values = torch.linalg.svdvals(case.matrix(weight))
    for place in (3, 8):
        rtol = float((values[place] + values[place + 1]) / 2 / values[0])
        of = Altered(inverse(case, weight, rtol))
        assert of.truncated == 11 - place
        Y = images(of)
        X = of.apply(Y).value
        assert check(of, Y, X, cut=rtol).ok
        assert not check(of, Y, X + 1e-9 * torch.randn_like(X), cut=rtol).ok
        assert not check(of, Y, inverse(case, weight).apply(Y).value, cut=rtol).ok  # without the cut-off


class Troubled(Altered):
    """Another inverse that says it has not got there."""

    def __init__(self, inner: Inverse, trouble: str, in_range: bool, change: Change = lambda X: X) -> None:
        super().__init__(inner, change)
        self.trouble, self.in_range = trouble, in_range

    def apply(self, Y: Tensor, *, adjoint: bool = False) -> Applied:
        return super().apply(Y, adjoint=adjoint)._replace(trouble=self.trouble)


def test_a_method_in_trouble_is_judged_by_the_certificate() -> None:
    of = inverse(CASES[2])
    Y = images(of)
    assert not certified(Troubled(of, "stopped early", True), Y).trouble
    assert certified(Troubled(of, "stopped early", True, lambda X: 1.01 * X), Y).trouble == "stopped early"
    assert certified(Troubled(of, "stopped early", False), Y).trouble == "stopped early"


def test_krylov_steps_with_a_cut_off_stay_in_trouble() -> None:
    """What they find is no solution of the truncated problem, though its residuals are small."""
    case = Case("decaying", (1, 1, 3), (1, 60), {"padding": 1})
    A = case.operator(torch.tensor([[[1.0, -2.0, 1.0]]], dtype=torch.float64))
    of = krylov.make(A, rtol=1e-2)
    assert certified(of, images(of)).trouble
    assert not certified(krylov.make(A), images(of)).trouble


def test_zero_operators_and_zero_images() -> None:
    case = CASES[1]
    of = inverse(case, torch.zeros_like(case.weight()))
    Y = images(of)
    assert check(of, Y, of.apply(Y).value).ok
    assert not check(of, Y, images(of, True)).ok
    of = Altered(inverse(case))
    assert check(of, 0 * Y, 0 * images(of, True)).ok
    assert not check(of, 0 * Y, images(of, True)).ok
    assert applied(of, Y[:0]).shape == (0, *case.in_shape)


def test_single_precision_with_a_large_condition_number_warns() -> None:
    case = Case("second differences", (1, 1, 5), (1, 40), {"padding": 2})
    weight = torch.tensor([[[1.0, -4.0, 6.0, -4.0, 1.0]]], dtype=torch.float64)
    condition = float(torch.linalg.cond(case.matrix(weight)))
    assert 1e4 < condition < 1e6
    estimate = at_least(inverse(case, weight))
    assert condition / 3 <= estimate <= condition * (1 + 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_condition(inverse(case, weight.float()))
        warn_of_condition(Altered(inverse(case, weight.float())))
        longer = Case("longer", (1, 1, 5), (1, 120), {"padding": 2})
        warn_of_condition(inverse(longer, weight))  # double precision
    for of in (inverse(longer, weight.float()), Altered(inverse(longer, weight.float()))):
        with pytest.warns(ConditionWarning, match="expect a relative error of about"):
            warn_of_condition(of)
