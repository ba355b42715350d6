"""Log-determinants against torch.linalg.slogdet, and estimates that keep what their error bars promise."""

from __future__ import annotations

import math

import pytest
import torch

from hesse.core import memory
from hesse.core.errors import MemoryBudgetError, NotConvergedError, StructureError, SymmetryError
from hesse.linalg.logdet import logdet
from hesse.linalg.logdet_rules import logdet_rule
from hesse.operators import BlockDiagonal, Congruence, Dense, Diagonal, Identity, Kronecker, LinearOperator, LowRank

from .calibrated import SPECTRA, assert_calibrated
from .counted import HERMITIAN, PSD, Counted, random_matrix, seeded, tree_space, with_spectrum

F64, C128 = torch.float64, torch.complex128


def positive(n: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return with_spectrum(torch.linspace(0.3, 4, n), dtype, seed)


def structured() -> dict[str, LinearOperator]:
    d = random_matrix(7).exp()
    U = random_matrix(7, 2, seed=3)
    kron = Kronecker(positive(4), positive(3, seed=1), tags=PSD)
    blocks = BlockDiagonal({"z": kron, "a": Dense(positive(5, seed=2), tags=PSD)})
    negative = Kronecker(-positive(4), -positive(3, seed=1), tags=PSD)
    return {
        "identity": 3 * Identity(tree_space(11)),
        "diagonal": Diagonal({"w": d, "b": d[:2]}),
        "dense": Dense(positive(6), tags=PSD),
        "dense complex": Dense(positive(6, C128), tags=PSD),
        "scaled": 2.5 * Dense(positive(6), tags=PSD),
        "minus negative": -1 * Dense(-positive(6), tags=HERMITIAN),
        "Kronecker": kron,
        "Kronecker of negatives": negative,
        "Kronecker damped": kron + 0.7 * Identity(kron.in_space),
        "blocks": blocks,
        "blocks damped": 2 * blocks + 0.1 * Identity(blocks.in_space),
        "low rank damped": LowRank(U) + 0.5 * Identity(LowRank(U).in_space),
        "low rank plus diagonal": Diagonal(d)
        + 3 * LowRank(U)
        + LowRank(U[:, :1].contiguous(), -0.01 * torch.ones(1, dtype=F64)),
        "Gram damped": Congruence(Dense(random_matrix(3, 8))) + 2 * Identity(Congruence(Dense(random_matrix(3, 8))).in_space),
    }


@pytest.mark.parametrize("name", structured())
def test_structure(name: str) -> None:
    A = structured()[name]
    known = logdet_rule(A)
    unit = torch.eye(A.shape[1], dtype=A.in_space.dtype)
    M = A.flat @ unit
    assert known is not None
    assert known == pytest.approx(float(torch.linalg.slogdet(M).logabsdet), rel=1e-12, abs=1e-12)
    found = logdet(A)
    assert float(found) == known and found.products == 0 and found.standard_error == 0


@pytest.mark.parametrize("dtype", [F64, C128, torch.float32])
def test_small_is_exact(dtype: torch.dtype) -> None:
    M = positive(90, dtype)
    A = Counted(M, tree_space(90, dtype), tree_space(90, dtype), HERMITIAN)
    found = logdet(A)
    assert float(found) == pytest.approx(
        float(torch.linalg.slogdet(M).logabsdet), rel=1e-10 if dtype != torch.float32 else 1e-5
    )
    assert found.products == 90 and A.blocks == [90] and found.standard_error == 0


@pytest.mark.parametrize(("name", "dtype"), [*((name, F64) for name in SPECTRA), ("flat", C128)])
def test_standard_errors_are_calibrated(name: str, dtype: torch.dtype) -> None:
    values = SPECTRA[name]
    truth = float(values.log().sum())
    assert_calibrated(lambda A, g: logdet(A, method="lanczos", rtol=0.03, atol=4.0, generator=g), values, truth, dtype)


def test_gauss_and_radau_enclose_the_truth() -> None:
    values = torch.logspace(1, -5, 200, dtype=F64)
    A = Counted(with_spectrum(values), tags=PSD)
    damped = A + 1e-3 * Identity(A.in_space)
    truth = float((values + 1e-3).log().sum())
    with pytest.warns(RuntimeWarning, match="truncation of"):
        rough = logdet(damped, method="lanczos", rtol=0.001, max_products=16 * 12, on_failure="return")
    fine = logdet(damped, method="lanczos", rtol=0.02)
    assert rough.truncation > 10 * fine.truncation > 0  # pyright: ignore[reportAttributeAccessIssue]
    assert rough.standard_error > rough.truncation  # pyright: ignore[reportAttributeAccessIssue]
    assert abs(fine - truth) < 3 * fine.standard_error
    assert fine.probes >= 16 and fine.steps > rough.steps  # pyright: ignore[reportAttributeAccessIssue]


def test_truncation_without_a_floor_is_told_by_convergence() -> None:
    values = torch.logspace(0, -4, 200, dtype=F64)
    A = Counted(with_spectrum(values), tags=PSD)
    found = logdet(A, method="lanczos", rtol=0.02)
    assert found.steps > 30 and found.truncation < 0.2 * found.standard_error  # pyright: ignore[reportAttributeAccessIssue]
    assert abs(found - float(values.log().sum())) < 3 * found.standard_error


def test_large_ones_are_estimated_and_hard_ones_go_exact() -> None:
    values = torch.linspace(1, 2, 700, dtype=F64)
    easy = Counted(with_spectrum(values), tags=PSD)
    found = logdet(easy, rtol=0.05)
    assert found.standard_error > 0 and found.products == sum(easy.blocks) < 300
    assert abs(found - float(values.log().sum())) < 3 * found.standard_error
    hard = Counted(easy.matrix, tags=PSD)
    exact = logdet(hard, rtol=1e-4)
    assert exact.standard_error == 0 and float(exact) == pytest.approx(float(values.log().sum()), rel=1e-12)
    assert exact.products == sum(hard.blocks) < 3 * 700


def test_hidden_identity_is_exact_in_one_step() -> None:
    A = Counted(torch.eye(600, dtype=F64), tags=PSD)
    found = logdet(A)
    assert abs(found) < 1e-9 and found.products == 16
    assert float(logdet(Counted(torch.zeros(0, 0), tags=PSD))) == 0
    assert float(logdet(Counted(torch.zeros(0, 0), tags=PSD), method="lanczos")) == 0


def test_not_positive_definite() -> None:
    singular = torch.cat([torch.zeros(3), torch.linspace(1, 2, 97)])
    indefinite = torch.linspace(-1, 2, 100)
    for values in (singular, indefinite):
        M = with_spectrum(values)
        for A in (Counted(M, tags=HERMITIAN), Dense(M, tags=HERMITIAN), Diagonal(values)):
            with pytest.raises(SymmetryError, match="damping"):
                logdet(A)
        with pytest.raises(SymmetryError, match="damping"):
            logdet(Counted(M, tags=HERMITIAN), method="lanczos")
    for A in (LowRank(random_matrix(5, 2)), Kronecker(-positive(3), positive(2), tags=HERMITIAN), -1 * Identity(tree_space(9))):
        with pytest.raises(SymmetryError, match="positive definite"):
            logdet(A)
    with pytest.raises(SymmetryError, match=r"A\.H @ A"):
        logdet(Counted(random_matrix(4, 4)))


def test_limits() -> None:
    A = Counted(with_spectrum(torch.logspace(0, -2, 300)), tags=PSD)
    with pytest.raises(NotConvergedError, match="max_products") as caught:
        logdet(A, method="lanczos", rtol=1e-4, max_products=600)
    partial = caught.value.partial
    assert partial.products == sum(A.blocks) <= 600 and partial.standard_error > 1e-4 * abs(partial)
    assert abs(partial - float(torch.logspace(0, -2, 300).log().sum())) < 4 * partial.standard_error
    with pytest.raises(StructureError, match="'exact', 'lanczos'"):
        logdet(A, method="cholesky")
    with pytest.raises(StructureError, match="rtol=0"):
        logdet(A, rtol=0.0)
    with memory.memory("8KB"), pytest.raises(MemoryBudgetError):
        logdet(A, method="lanczos")
    with memory.memory("500KB"):  # two probes at a time
        found = logdet(A, method="lanczos", rtol=0.05)
    assert abs(found - float(torch.logspace(0, -2, 300).log().sum())) < 4 * found.standard_error
    assert max(A.blocks[-10:]) < 16


def test_results_repeat_and_generators_count(untouched: None) -> None:
    A = Counted(with_spectrum(SPECTRA["decaying"]), tags=PSD)
    first, second = (logdet(A, method="lanczos", generator=seeded(4), rtol=0.1) for _ in range(2))
    other = logdet(A, method="lanczos", generator=seeded(5), rtol=0.1)
    assert float(first) == float(second) != float(other)
    assert math.isfinite(float(other))
