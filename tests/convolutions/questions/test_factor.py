"""Factorizations of convolutions: reusable, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hesse.convolutions import ladder
from hesse.convolutions.questions.factor import ConvolutionFactorization
from hesse.linalg.factor import factor
from hesse.operators import LinearOperator
from hesse.operators.storage import load, save
from tests.convolutions.dense_oracle import CASES, Case

LARGE = Case("boundary", (2, 2, 3, 3), (2, 24, 23), {"padding": 1})


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_solutions(case: Case, transposed: bool) -> None:
    weight = case.weight()
    A, M = case.operator(weight), case.matrix(weight)
    A, M = (A.T, M.mT) if transposed else (A, M)
    F = factor(A)
    b = torch.randn(3, *A.out_space.shapes[0], dtype=case.dtype)
    exact = (b.flatten(1) @ torch.linalg.pinv(M).mT).reshape(3, *A.in_space.shapes[0])
    assert torch.allclose(F.lstsq(b), exact, rtol=1e-9, atol=1e-10)
    x = torch.randn(2, *A.in_space.shapes[0], dtype=case.dtype)
    assert torch.equal(F @ x, A @ x)
    values = torch.linalg.svdvals(M)
    values = values[values > 1e-12 * values[0]]
    assert abs(F.condition - float(values[0] / values[-1])) <= 1e-8 * F.condition
    assert F.truncated == min(M.shape) - len(values)
    if M.shape[0] == M.shape[1] == len(values):
        assert torch.allclose(F.solve(b), exact, rtol=1e-9, atol=1e-10)
        assert abs(F.logdet() - float(torch.linalg.slogdet(M).logabsdet)) <= 1e-10


def test_the_factors_are_those_of_the_weight_as_it_was() -> None:
    case = CASES[0]
    weight = case.weight()
    F = factor(case.operator(weight))
    b = torch.randn(case.operator(weight).geometry.out_shape, dtype=torch.float64)
    before = F.solve(b)
    weight.mul_(2)
    assert torch.equal(F.solve(b), before)


STORED = (
    *CASES,
    LARGE,
    Case("augmented", (2, 3, 3, 3), (3, 24, 23), {"padding": 1, "padding_mode": "reflect"}),
    Case("complex boundary", (2, 3, 3), (3, 205), {"padding": 1}, torch.complex128),
)


def _saved_and_loaded(F: LinearOperator, path: Path, monkeypatch: pytest.MonkeyPatch) -> LinearOperator:
    """Loaded while nothing can be factored."""
    save(F, path)
    with monkeypatch.context() as patch:
        for name in ("svd", "svdvals", "qr", "lu_factor", "lu_factor_ex", "inv", "inv_ex", "solve", "cholesky", "eigh"):
            patch.setattr(torch.linalg, name, lambda *_, **__: pytest.fail("factored again"))
        patch.setattr(ladder, "inverse", lambda *_, **__: pytest.fail("inverted again"))
        return load(path)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("case", STORED, ids=str)
def test_saved_and_loaded(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    F = factor(case.operator(case.weight(3)))
    assert isinstance(F, ConvolutionFactorization)
    again = _saved_and_loaded(F, tmp_path / "f.safetensors", monkeypatch)
    assert isinstance(again, ConvolutionFactorization)
    assert (again.method, again.truncated, repr(again)) == (F.method, F.truncated, repr(F))
    b = torch.randn(3, *F.operator.geometry.out_shape, dtype=case.dtype)
    assert torch.equal(again.lstsq(b), F.lstsq(b))
    again = _saved_and_loaded(F.T, tmp_path / "t.safetensors", monkeypatch)
    x = torch.randn(3, *F.operator.geometry.in_shape, dtype=case.dtype)
    assert torch.equal(again.lstsq(x), F.T.lstsq(x))
    assert again.condition == F.condition


def test_methods_without_factors_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("benign", (4, 4, 3), (4, 120), {"padding": 1})
    weight = 0.01 * case.weight()
    for channel in range(4):
        weight[channel, channel, 1] += 1
    monkeypatch.setattr(ladder, "order", lambda *_: ["krylov"])
    F = factor(case.operator(weight))
    save(F, tmp_path / "f.safetensors")
    again = load(tmp_path / "f.safetensors")
    assert F.method == again.method == "krylov"
    b = torch.randn(4, 120, dtype=torch.float64)
    assert torch.equal(again.lstsq(b), F.lstsq(b))


def test_nothing_is_factored_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[1]
    F = factor(case.operator(case.weight()))
    monkeypatch.setattr(ladder, "inverse", lambda *_, **__: pytest.fail("inverted again"))
    b = torch.randn(2, *F.operator.geometry.out_shape, dtype=torch.float64)
    found = F.lstsq(b, full=True)
    assert found.forward_error < 1e-9
    assert F.lstsq(b, full=True).condition == F.condition
