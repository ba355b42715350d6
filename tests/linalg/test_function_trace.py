"""Traces of functions of an operator against sums over known eigenvalues."""

from __future__ import annotations

import pytest
import torch

from hesse.core.errors import NonFiniteError, NotConvergedError, StructureError, SymmetryError
from hesse.linalg.function_trace import function_trace
from hesse.operators import Identity, Kronecker, LowRank

from .calibrated import SPECTRA, assert_calibrated
from .counted import HERMITIAN, PSD, Counted, random_matrix, seeded, tree_space, with_spectrum

F64, C128 = torch.float64, torch.complex128
FUNCTIONS = {"sqrt": torch.sqrt, "exp": lambda x: (-x).exp(), "square": torch.square, "one": torch.ones_like}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [F64, C128, torch.float32])
def test_exact(name: str, dtype: torch.dtype) -> None:
    f, values = FUNCTIONS[name], torch.linspace(0.1, 3, 60, dtype=F64)
    A = Counted(with_spectrum(values, dtype), tree_space(60, dtype), tree_space(60, dtype), HERMITIAN)
    found = function_trace(A, f)
    tolerance = 1e-11 if dtype != torch.float32 else 1e-5
    assert float(found) == pytest.approx(float(f(values).sum()), rel=tolerance)
    assert found.products == 60 == sum(A.blocks) and found.standard_error == 0


def test_structure_needs_no_products() -> None:
    S = with_spectrum(torch.linspace(1, 2, 4))
    A = Kronecker(S, S, tags=PSD) + 0.5 * Identity(Kronecker(S, S).in_space)
    values = torch.outer(torch.linspace(1, 2, 4), torch.linspace(1, 2, 4)).double() + 0.5
    found = function_trace(A, torch.sqrt)
    assert float(found) == pytest.approx(float(values.sqrt().sum()), rel=1e-6) and found.products == 0
    low = LowRank(random_matrix(50, 3))
    assert function_trace(low, lambda x: 1 / (1 + x)) == pytest.approx(
        47 + float((1 / (1 + torch.linalg.svdvals(low.left) ** 2)).sum())
    )


@pytest.mark.parametrize(("name", "dtype"), [*((name, F64) for name in SPECTRA), ("flat", C128)])
def test_standard_errors_are_calibrated(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    truth = float(values.sqrt().sum())
    assert_calibrated(
        lambda A, g: function_trace(A, torch.sqrt, method="lanczos", rtol=0.02, generator=g), values, truth, dtype
    )


def test_polynomials_need_no_more_than_their_steps() -> None:
    values = torch.linspace(-1, 1, 600, dtype=F64) ** 3
    A = Counted(with_spectrum(values), tags=HERMITIAN)
    found = function_trace(A, lambda x: x**4 - x, rtol=0.1)
    assert found.steps == 10 and found.truncation < 1e-10  # pyright: ignore[reportAttributeAccessIssue]
    assert abs(found - float((values**4 - values).sum())) < 3 * found.standard_error


def test_a_step_is_hard_and_says_so() -> None:
    values = torch.linspace(0, 1, 700, dtype=F64)
    A = Counted(with_spectrum(values), tags=PSD)
    with pytest.raises(NotConvergedError, match="truncation of") as caught:
        function_trace(A, lambda x: (x > 0.5).double(), method="lanczos", rtol=0.002, max_products=16 * 20)
    assert caught.value.partial.truncation > 0.1
    found = function_trace(A, lambda x: (x > 0.5).double(), rtol=0.002)
    assert float(found) == 350 and found.standard_error == 0


def test_refusals() -> None:
    A = Counted(with_spectrum(torch.linspace(-1, 1, 90)), tags=HERMITIAN)
    with pytest.raises(NonFiniteError, match="f\\(-1\\) = nan"):
        function_trace(A, torch.sqrt)
    with pytest.raises(NonFiniteError, match="damping"):
        function_trace(A, torch.sqrt, method="lanczos")
    with pytest.raises(SymmetryError, match="singular values"):
        function_trace(Counted(random_matrix(4, 4)), torch.exp)
    with pytest.raises(StructureError, match="atol"):
        function_trace(A, torch.exp, rtol=-1.0)
    semi = Counted(with_spectrum(torch.cat([torch.zeros(300), torch.ones(300)])), tags=PSD)
    found = function_trace(semi, torch.sqrt)  # rounding must not make roots of zeros NaN
    assert abs(found - 300) < 3 * found.standard_error + 1e-6


def test_generator() -> None:
    A = Counted(with_spectrum(torch.linspace(1, 3, 200)), tags=PSD)
    ask = {seed: float(function_trace(A, torch.log, method="lanczos", generator=seeded(seed))) for seed in (1, 2)}
    assert ask[1] != ask[2] and ask[1] == float(function_trace(A, torch.log, method="lanczos", generator=seeded(1)))
