"""Laws as cases: their names, what they run, and what they say when they do not hold."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.check import CheckReport, WrongDerivativeError
from hesse.check.check_report import Comparison
from hesse.core.errors import MissingExtraError, StructureError
from hesse.operators import Dense, LinearOperator
from hesse.testing import OPERATOR_LAWS, Law, function_laws, module_laws, operator_laws, parametrize_laws

MATRIX = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]], dtype=torch.float64)


class WrongTranspose(Dense):
    def transpose(self) -> LinearOperator:
        return Back(2 * self.matrix.mT, self)


class Back(Dense):
    def __init__(self, matrix: Tensor, origin: LinearOperator) -> None:
        super().__init__(matrix)
        self.origin = origin

    def transpose(self) -> LinearOperator:
        return self.origin


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x * (2 if x.dtype == torch.float64 else 3)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(MATRIX.clone())

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        y = WrongBackward.apply(x @ self.weight.mT)
        return y if scale is None else y * scale


@parametrize_laws(operator_laws(lambda: Dense(MATRIX)))
def test_every_law_is_a_case(law: Law, request: pytest.FixtureRequest) -> None:
    assert request.node.callspec.id == law.name == str(law)
    law()


def test_each_law_runs_alone_on_an_operator_of_its_own() -> None:
    made = []

    def make() -> LinearOperator:
        made.append(WrongTranspose(MATRIX))
        return made[-1]

    laws = operator_laws(make)
    assert not made
    assert tuple(law.name for law in laws) == OPERATOR_LAWS
    broken = {law.name for law in laws if not law.check().ok}
    assert {"adjoint"} <= broken <= {"adjoint", "scipy"}
    assert len({id(A) for A in made}) == len(laws)
    (adjoint,) = operator_laws(make, laws=["adjoint"])
    with pytest.raises(WrongDerivativeError, match=r"'adjoint' was to be confirmed[\s\S]*factor 2\.000[\s\S]*mend transpose"):
        adjoint()


def test_functions_are_checked_in_each_type() -> None:
    x = {"a": torch.tensor([0.5, -1.5]), "k": torch.arange(2), "scale": 2.0}
    double, single = function_laws(lambda t: WrongBackward.apply(t["a"]) * t["scale"], x)
    assert (double.name, single.name) == ("float64", "float32")
    double()
    with pytest.raises(WrongDerivativeError, match=r"factor 1\.500"):
        single()


def test_modules_are_checked_in_each_type_with_keyword_inputs() -> None:
    double, single = module_laws(Layer, torch.randn(4, 3), named={"scale": torch.tensor(2.0)})
    assert double.check().ok, str(double.check())
    assert not single.check().ok


def test_devices_are_named_where_there_are_several() -> None:
    laws = function_laws(torch.sin, torch.ones(2), dtypes=[torch.float64], devices=["cpu", "meta"])
    assert [law.name for law in laws] == ["float64 on cpu", "float64 on meta"]


def test_a_name_stands_in_front_of_the_cases() -> None:
    laws = [
        *function_laws(torch.sin, torch.ones(2), name="sin"),
        *module_laws(Layer, torch.ones(4, 3), dtypes=[torch.float64], name="layer"),
        *operator_laws(lambda: Dense(MATRIX), laws=["zero"], name="matrix"),
    ]
    assert [law.name for law in laws] == ["sin float64", "sin float32", "layer float64", "matrix zero"]
    assert all(law.check().ok for law in laws)


def test_warnings_of_a_check_stay_warnings() -> None:
    def warns(x: Tensor) -> Tensor:
        warnings.warn("of the function", UserWarning, stacklevel=1)
        return x.sin()

    (law,) = function_laws(warns, torch.ones(2), dtypes=[torch.float64])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        law()
        before = list(warnings.filters)
        with pytest.raises(UserWarning, match="of the function"):  # errors again after the check
            warns(torch.ones(2))
    assert any("of the function" in str(warning.message) for warning in seen)
    assert before[0][0] == "error"


def test_an_undecided_law_says_what_may_help() -> None:
    report = CheckReport("f", "quick", (Comparison("reverse mode", "", 1, 0.1, 0.2, "undecided"),), (), (), 60)
    law = Law("rough", lambda **_: report)
    with pytest.raises(WrongDerivativeError, match=r"'rough' was to be confirmed[\s\S]*choose a point away from kinks"):
        law()


def test_level_and_generator_reach_the_check() -> None:
    (law,) = operator_laws(lambda: Dense(MATRIX), laws=["adjoint"])
    assert law.check(level="full").level == "full"
    (random,) = operator_laws(lambda: Dense(MATRIX), laws=["additive"])
    rows = [random.check(generator=torch.Generator().manual_seed(seed)).compared[0].error for seed in range(8)]
    assert len(set(rows)) > 1


def test_a_law_with_a_timeout_survives_a_crash() -> None:
    def crash() -> LinearOperator:
        os.abort()

    (law,) = operator_laws(crash, laws=["zero"])
    report = law.check(timeout=60)
    assert "SIGABRT" in report.findings[0].diagnosis
    assert report.name == "zero"


def test_no_laws_and_no_pytest_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StructureError, match="no law"):
        parametrize_laws([])
    monkeypatch.setitem(__import__("sys").modules, "pytest", None)
    with pytest.raises(MissingExtraError, match="pip install pytest"):
        parametrize_laws(operator_laws(lambda: Dense(MATRIX)))
