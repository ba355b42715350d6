"""The pseudo-inverse of a convolution as an operator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.func import vmap

from hesse.convolutions import ladder
from hesse.convolutions.certificate import ConditionWarning
from hesse.convolutions.pseudo_inverse import ConvolutionPseudoInverse
from hesse.core.errors import NonFiniteError, NotConvergedError, UnsupportedError
from hesse.linalg.dense import dense
from hesse.operators.storage import load, save
from tests.convolutions.dense_oracle import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matrix_transpose_and_adjoint(case: Case) -> None:
    weight = case.weight()
    pinv, expected = ConvolutionPseudoInverse(case.operator(weight)), torch.linalg.pinv(case.matrix(weight))
    for operator, matrix in ((pinv, expected), (pinv.T, expected.mT), (pinv.H, expected.mH), (pinv.T.T, expected)):
        assert torch.allclose(dense(operator), matrix, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_penrose_equations(case: Case) -> None:
    A = case.operator(case.weight())
    pinv = ConvolutionPseudoInverse(A)
    x, y = (torch.randn(2, 3, *shape, dtype=case.dtype) for shape in (A.geometry.in_shape, A.geometry.out_shape))
    assert torch.allclose(A @ (pinv @ (A @ x)), A @ x, atol=1e-10)
    assert torch.allclose(pinv @ (A @ (pinv @ y)), pinv @ y, atol=1e-10)
    assert torch.allclose(pinv.H @ (A.H @ y), A @ (pinv @ y), atol=1e-10)
    assert torch.allclose(A.H @ (pinv.H @ x), pinv @ (A @ x), atol=1e-10)


def test_what_it_tells() -> None:
    case = Case("box", (1, 1, 3), (1, 8), {"padding": 1})
    weight = torch.ones(1, 1, 3, dtype=torch.float64)
    values = torch.linalg.svdvals(case.matrix(weight))
    pinv = ConvolutionPseudoInverse(case.operator(weight))
    assert pinv.method == pinv.T.method == "dense"
    assert pinv.rank == pinv.T.rank == 7
    assert pinv.truncated == pinv.T.truncated == 1
    assert pinv.gap == pinv.T.gap == float("inf")
    assert abs(pinv.largest - float(values[0])) <= 1e-12
    assert pinv.T.largest == pinv.largest
    assert abs(pinv.condition - float(values[0] / values[6])) <= 1e-10
    assert pinv.T.condition == pinv.condition
    assert repr(pinv) == "PseudoInverse(1x8 -> 1x8, kernel=3, padding=1, method='dense', rank 7 of 8)"
    assert repr(pinv.T) == repr(pinv) + ".T"


def test_errors_come_early() -> None:
    case = CASES[0]
    weight = case.weight()
    weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinity in the weight"):
        ConvolutionPseudoInverse(case.operator(weight))


def test_a_failed_certificate_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.convolutions.test_certificate import Altered

    case, make = CASES[0], ladder.inverse
    monkeypatch.setattr(ladder, "inverse", lambda A, **options: Altered(make(A, **options), lambda X: 0.9 * X))
    pinv = ConvolutionPseudoInverse(case.operator(case.weight()))
    with pytest.raises(NotConvergedError, match="method 'altered' did not pass its certificate"):
        pinv @ torch.randn(pinv.in_space.shapes[0], dtype=torch.float64)


def test_single_precision_warns_when_it_is_made() -> None:
    case = Case("second differences", (1, 1, 5), (1, 120), {"padding": 2})
    weight = torch.tensor([[[1.0, -4.0, 6.0, -4.0, 1.0]]])
    with pytest.warns(ConditionWarning):
        ConvolutionPseudoInverse(case.operator(weight))


def test_integers_and_reals_are_taken_as_the_weight_is() -> None:
    case = CASES[-2]
    pinv = ConvolutionPseudoInverse(case.operator(case.weight()))
    y = torch.randn(3, *pinv.in_space.shapes[0])
    assert torch.allclose(pinv @ y, pinv @ y.to(case.dtype))


def test_within_a_transform_by_the_weight_there_is_no_rank() -> None:
    case = CASES[0]

    def look(weight: torch.Tensor) -> torch.Tensor:
        pinv = ConvolutionPseudoInverse(case.operator(weight))
        assert repr(pinv) == f"PseudoInverse({pinv.convolution.geometry})"
        with pytest.raises(UnsupportedError, match="depend on the values of the weight"):
            _ = pinv.rank
        return weight

    vmap(look)(torch.stack([case.weight(seed) for seed in range(2)]))


@pytest.mark.parametrize("case", CASES[:7], ids=str)
def test_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    pinv = ConvolutionPseudoInverse(case.operator(case.weight()), rtol=1e-6)
    for operator in (pinv, pinv.T):
        save(operator, tmp_path / "pinv.safetensors")
        again = load(tmp_path / "pinv.safetensors")
        y = torch.randn(operator.in_space.shapes[0], dtype=case.dtype)
        assert torch.equal(again @ y, operator @ y)
