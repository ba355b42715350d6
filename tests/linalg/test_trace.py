"""The trace: of every operator, and estimates that keep what their standard errors promise."""

from __future__ import annotations

import math

import pytest
import torch

from hesse.core.errors import NonFiniteError, NotConvergedError, StructureError
from hesse.linalg import Estimate, trace, trace_rule
from hesse.operators import Congruence, Conjugate, Dense, Identity, LowRank
from tests.operators.zoo import operators

from .counted import HERMITIAN, PSD, Counted, random_matrix, seeded, tree_space, with_spectrum
from .spectra import LEAST_INSIDE, MATRICES

DTYPES = {"float64": torch.float64, "float32": torch.float32, "complex128": torch.complex128}
ZOO = {(kind, name): case for kind, dtype in DTYPES.items() for name, case in operators(dtype).items()}


@pytest.mark.parametrize("key", ZOO, ids=": ".join)
def test_every_operator(key: tuple[str, str]) -> None:
    A, M = ZOO[key]
    tolerance = 1e3 * torch.finfo(M.dtype).eps
    cases = [(A.H @ A, M.mH @ M), (Congruence(A), M.mH @ M), (2 * (A @ A.H), 2 * M @ M.mH)]
    cases += [(A, M), (Conjugate(A), M.conj())] if M.shape[0] == M.shape[1] else []
    for B, N in cases:
        expected = complex(N.diagonal().sum())
        for found in (trace(B), trace(B, method="exact")):
            assert isinstance(found, Estimate) and found.standard_error == 0
            assert complex(found) == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_structure_spends_no_products() -> None:
    hidden = Counted(random_matrix(300, 300))
    wide = Dense(random_matrix(4, 300))
    low = LowRank(random_matrix(300, 2))
    for A, expected in (
        (Congruence(wide), wide.matrix.square().sum()),
        (low + 3 * Identity(low.in_space), low.left.square().sum() + 900),
    ):
        found = trace(A)
        assert float(found) == pytest.approx(float(expected), rel=1e-12) and found.products == 0
    assert trace_rule(hidden) is None and trace_rule(hidden + Identity(hidden.in_space)) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("tags", [frozenset(), HERMITIAN])
def test_standard_errors_are_calibrated(dtype: torch.dtype, tags: frozenset) -> None:
    n, rtol = 200, 0.005
    M = with_spectrum(torch.linspace(1, 3, n), dtype)
    M = M if tags else M + 0.1 * random_matrix(n, n, dtype=dtype)
    truth = complex(M.diagonal().sum())
    inside, z = 0, []
    for seed in range(200):
        A = Counted(M, tree_space(n, dtype), tree_space(n, dtype), tags)
        found = trace(A, method="hutchinson", rtol=rtol, generator=seeded(seed))
        assert found.standard_error <= rtol * abs(found) and found.products == sum(A.blocks)
        error = abs(complex(found) - truth)
        inside += error <= 2 * found.standard_error
        z.append(error / found.standard_error)
    # 95 % for real numbers, more for the modulus of complex ones
    assert inside / 200 >= LEAST_INSIDE
    assert 0.8 < math.sqrt(sum(x * x for x in z) / 200) < 1.3


@pytest.mark.parametrize("name", MATRICES)
def test_the_chosen_estimate_is_calibrated(name: str) -> None:
    M, tags = MATRICES[name]
    truth, inside = complex(M.trace()), 0
    for seed in range(200):
        A = Counted(M, tags=tags)
        found = trace(A, rtol=0.15 if name == "indefinite" else 0.04, generator=seeded(seed))
        assert 0 < found.standard_error <= 0.15 * abs(found) and found.products == sum(A.blocks)
        inside += abs(complex(found) - truth) <= 2 * found.standard_error
    assert inside / 200 >= LEAST_INSIDE


@pytest.mark.filterwarnings("ignore:The trace was not estimated")
@pytest.mark.parametrize("rtol", [0.03, 0.003])
@pytest.mark.parametrize("name", ["flat", "power", "exponential", "step"])
def test_the_choice_costs_no_more_than_the_better_method(name: str, rtol: float) -> None:
    i = torch.arange(1, 601, dtype=torch.float64)
    values = {"flat": 1 + i / 300, "power": i**-2, "exponential": 0.9**i, "step": torch.where(i <= 50, 1.0, 1e-3)}
    A, products = Counted(with_spectrum(values[name].double()), tags=HERMITIAN), {}
    for method in ("hutchinson", "xtrace", "auto"):
        found = [trace(A, method=method, rtol=rtol, generator=seeded(s), on_failure="return") for s in range(3)]
        products[method] = sum(one.products for one in found)
    assert products["auto"] <= 1.3 * min(products["hutchinson"], products["xtrace"])
    if rtol == 0.003:
        assert max(products["hutchinson"], products["xtrace"]) > 4 * products["auto"]


def test_the_mean_over_seeds_is_unbiased() -> None:
    M = random_matrix(150, 150, dtype=torch.complex128) + 5 * torch.eye(150)
    draws = torch.tensor(
        [complex(trace(Counted(M), method="hutchinson", rtol=100.0, generator=seeded(seed))) for seed in range(300)]
    )
    z = (draws.mean() - M.diagonal().sum()).abs() / (draws.std() / 300**0.5)
    assert float(z) < 3


def test_without_room_for_a_sketch_signs_alone() -> None:
    M = with_spectrum(torch.arange(1, 301, dtype=torch.float64) ** -2)
    budget = 4 * 2 * 300 * 8 * 20  # twenty products at a time, no sketch of sixteen
    A = Counted(M)
    found = trace(A, memory=budget)
    assert found == pytest.approx(float(M.trace())) and found.standard_error == 0  # signs alone are dearer than exact
    assert max(A.blocks) <= 20
    for method in ("xtrace", "hutch++"):  # a part of the sketch, and fresh signs
        A = Counted(M)
        found = trace(A, method=method, memory=budget, max_products=200)
        assert abs(found - float(M.trace())) < 5 * found.standard_error <= 0.25 * float(M.trace())
        assert found.products == sum(A.blocks) <= 200 and max(A.blocks) <= 20
    with pytest.raises(NotConvergedError, match="memory"):
        trace(Counted(M), method="xtrace", memory=budget, max_products=60, rtol=1e-6)


def test_products_come_in_blocks() -> None:
    A = Counted(with_spectrum(torch.logspace(0, -2, 500)), tags=PSD)
    found = trace(A, method="hutchinson", rtol=0.004)
    assert not A.calls["mv"] and A.blocks[0] == 16 and max(A.blocks) == 64
    assert found.products == sum(A.blocks) > 200 and A.calls["mm"] <= 5 + found.products / 32


def test_small_or_expensive_to_estimate_is_exact() -> None:
    small = Counted(random_matrix(128, 128))
    assert trace(small) == pytest.approx(float(small.matrix.trace())) and small.blocks == [128]
    needy = Counted(with_spectrum(torch.linspace(-1, 1.1, 400)))
    found = trace(needy, rtol=1e-3)
    assert found == pytest.approx(float(needy.matrix.trace())) and found.standard_error == 0
    assert found.products == sum(needy.blocks) == 416
    easy = Counted(with_spectrum(torch.linspace(1, 1.1, 400)))
    found = trace(easy)
    assert found.standard_error > 0 and found.products == 16


def test_trace_of_zero() -> None:
    M = with_spectrum(torch.linspace(-1, 1, 300))
    with pytest.raises(NotConvergedError, match="atol") as caught:
        trace(Counted(M - M.trace() / 300 * torch.eye(300)), method="hutchinson", max_products=100)
    partial = caught.value.partial
    assert partial.products == 100 and abs(partial) < 5 * partial.standard_error
    with pytest.warns(RuntimeWarning, match="not estimated"):
        A = Counted(M, tags=HERMITIAN)
        found = trace(A, method="hutchinson", max_products=50, on_failure="return")
    assert found.products == 50 == sum(A.blocks)
    found = trace(Counted(M), method="hutchinson", rtol=0.0, atol=3.0)
    assert 0.5 < found.standard_error <= 3.0


def test_zero_up_to_rounding_stops_at_once() -> None:
    M = random_matrix(300, 300)
    found = trace(Counted(M - M.mT), method="hutchinson")
    assert found.products == 16 and abs(found) < 1e-10
    assert trace(Counted(0 * M), method="hutchinson") == 0


def test_real_where_it_must_be() -> None:
    M = with_spectrum(torch.linspace(1, 2, 200), torch.complex128)
    assert isinstance(trace(Counted(M, tags=HERMITIAN), method="hutchinson").value, float)
    assert isinstance(trace(Counted(M), method="hutchinson").value, complex)
    assert isinstance(trace(Counted(M.real)).value, float)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    M = torch.diag(torch.full((3000,), 40.0, dtype=dtype))  # the sum, 120000, is beyond float16
    assert trace(Counted(M), method="hutchinson") == 120000
    assert trace(Dense(M)) == 120000


def test_same_generator_same_estimate() -> None:
    A = Counted(random_matrix(200, 200) + 30 * torch.eye(200))
    state = torch.get_rng_state()
    first, second = (trace(A, method="hutchinson", generator=seeded(3)) for _ in range(2))
    assert first == second and trace(A, method="hutchinson") == trace(A, method="hutchinson")
    assert first != trace(A, method="hutchinson", generator=seeded(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_empty() -> None:
    for method in ("auto", "exact", "hutchinson"):
        assert trace(Counted(random_matrix(0, 0)), method=method) == 0


def test_refusals() -> None:
    A = Counted(random_matrix(3, 3))
    with pytest.raises(StructureError, match="square"):
        trace(Counted(random_matrix(3, 4)))
    with pytest.raises(StructureError, match="'auto', 'exact', 'hutchinson', 'hutch\\+\\+', 'xtrace'"):
        trace(A, method="lanczos")
    with pytest.raises(StructureError, match="'raise', 'return'"):
        trace(A, on_failure="ignore")
    with pytest.raises(StructureError, match="rtol"):
        trace(A, rtol=-1.0)
    for rtol, atol in ((0.05, -1.0), (0.0, 0.0)):
        with pytest.raises(StructureError, match="atol"):
            trace(A, rtol=rtol, atol=atol)
    broken = random_matrix(200, 200)
    broken[3, 5] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        trace(Counted(broken), method="hutchinson")
