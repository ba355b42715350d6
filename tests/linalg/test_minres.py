"""MINRES against torch.linalg.solve on indefinite, ill-conditioned and singular operators, and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hesse.core.errors import NotConvergedError, SymmetryError
from hesse.linalg import solve
from hesse.linalg.minres import _condition, _State, minimal_residual
from hesse.operators import Diagonal, Tag

from .counted import HERMITIAN, SYMMETRIC, Counted, random_matrix, tree_space, with_spectrum

DTYPES = {"float64": torch.float64, "complex128": torch.complex128}


def indefinite(largest: float = 30.0) -> torch.Tensor:
    """One hundred eigenvalues, forty of them negative, of modulus 1 to `largest`."""
    top = float(np.log10(largest))
    return torch.cat([-torch.logspace(0, 1, 40, dtype=torch.float64), torch.logspace(0, top, 60, dtype=torch.float64)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_indefinite_systems(dtype: str) -> None:
    kind = DTYPES[dtype]
    M, space = with_spectrum(indefinite(), kind), tree_space(100, kind)
    A, b = Counted(M, space, space, HERMITIAN), random_matrix(2, 2, 100, dtype=kind, seed=1)
    found = solve(A, space.unravel(b), method="minres", rtol=1e-10, full=True)
    assert found.method == "minres" and found.residual <= 1e-10
    expected = torch.linalg.solve(M, b.reshape(4, 100).mT).mT.reshape(2, 2, 100)
    torch.testing.assert_close(space.ravel(found.value, 2), expected, rtol=1e-8, atol=1e-8)
    assert found.condition == pytest.approx(30, rel=0.01)
    assert A.blocks[0] == 5 and A.calls["mm"] <= found.iterations + 6 and not A.calls["mv"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_step_gives_the_smallest_residual_of_its_krylov_space(dtype: str) -> None:
    M = with_spectrum(indefinite()[20:60], DTYPES[dtype])
    b = random_matrix(40, dtype=M.dtype, seed=1)
    basis = [b / b.norm()]
    for steps in range(1, 9):
        partial = minimal_residual(Counted(M, tags=HERMITIAN), b[None], 1e-14, steps, None)
        V = torch.linalg.qr(torch.stack(basis, -1)).Q
        best = V @ torch.linalg.lstsq(M @ V, b[:, None]).solution
        torch.testing.assert_close(partial.value[0], best[:, 0], rtol=1e-8, atol=1e-8)
        basis.append(M @ basis[-1] / (M @ basis[-1]).norm())
        assert partial.iterations == steps


def test_number_of_steps_is_the_number_of_distinct_eigenvalues() -> None:
    A = Counted(with_spectrum(torch.tensor([-4.0, 1, 3, 7]).repeat(30)), tags=SYMMETRIC)
    found = solve(A, random_matrix(120), method="minres", rtol=1e-10, full=True)
    assert found.iterations == 4 and found.condition == pytest.approx(7, rel=1e-9)
    assert sum(A.blocks) == 4 + 1 + 2  # one to check the symmetry, two to check the residual


def test_preconditioner() -> None:
    n, space = 300, tree_space(300)
    d = torch.logspace(0, 4, n, dtype=torch.float64)
    d[::3] *= -1
    M = torch.diag(d) + 0.1 * with_spectrum(torch.linspace(-1, 1, n))
    A = Counted(M, space, space, SYMMETRIC)
    absolute = Diagonal(space.unravel(1 / d.abs()), frozenset({Tag.PSD}))
    b = random_matrix(2, n)
    found = solve(A, space.unravel(b), method="minres", preconditioner=absolute, full=True)
    torch.testing.assert_close(space.ravel(found.value, 1), torch.linalg.solve(M, b.mT).mT, rtol=1e-6, atol=1e-6)
    assert found.iterations < 40 and found.residual <= 1e-8
    assert found.condition is not None and found.condition < 2
    with pytest.raises(SymmetryError, match=r"preconditioner of MINRES"):
        solve(A, space.unravel(b), method="minres", preconditioner=-absolute)


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-6), (torch.float32, 1e-2)])
def test_singular_systems(dtype: torch.dtype, slack: float) -> None:
    values = torch.cat([torch.zeros(10, dtype=torch.float64), indefinite(10)])
    M = with_spectrum(values, dtype)
    b = random_matrix(2, 110, dtype=dtype)
    A = Counted(M, tags=SYMMETRIC)
    with pytest.raises(NotConvergedError, match=r"(?s)singular.*not in its range.*damping") as caught:
        solve(A, b, method="minres")
    partial = caught.value.partial
    nearest = (b - b @ torch.linalg.pinv(M.double(), rtol=1e-4).to(dtype) @ M).norm(dim=-1) / b.norm(dim=-1)
    assert partial.residual == pytest.approx(float(nearest.max()), rel=slack)  # that of least squares
    assert partial.iterations < 200
    x = solve(A, b @ M, method="minres")
    assert float(((x @ M - b @ M).norm(dim=-1) / (b @ M).norm(dim=-1)).max()) <= 4e-4
    if dtype == torch.float64:
        torch.testing.assert_close(x, b @ M @ torch.linalg.pinv(M, rtol=1e-10), rtol=1e-6, atol=1e-6)


def test_right_hand_side_that_is_mapped_to_zero() -> None:
    A = Counted(torch.diag(torch.tensor([0.0, 1, -2], dtype=torch.float64)), tags=SYMMETRIC)
    with pytest.raises(NotConvergedError, match="singular") as caught:
        solve(A, torch.tensor([1.0, 0, 0], dtype=torch.float64), method="minres")
    assert float(caught.value.partial.value.abs().max()) == 0


def test_ill_conditioned_system_reaches_its_tolerance_or_says_that_it_did_not() -> None:
    M = with_spectrum(indefinite(1e5))
    b = random_matrix(100)
    found = solve(Counted(M, tags=SYMMETRIC), b, method="minres", max_iterations=20_000, full=True)
    assert float((b - M @ found.value).norm() / b.norm()) <= 1e-8
    with pytest.raises(NotConvergedError, match=r"(?s)50 iterations.*max_iterations") as caught:
        solve(Counted(M, tags=SYMMETRIC), b, method="minres", max_iterations=50)
    assert caught.value.partial.residual < 1


def test_a_tolerance_beyond_the_dtype_stops() -> None:
    A = Counted(with_spectrum(indefinite(), torch.float32), tags=SYMMETRIC)
    with pytest.raises(NotConvergedError, match=r"rounding errors|close to it") as caught:
        solve(A, random_matrix(100, dtype=torch.float32), method="minres", rtol=1e-10)
    assert caught.value.partial.iterations < 1000 and caught.value.partial.residual < 1e-3


def test_zero_and_tiny_right_hand_sides() -> None:
    M = with_spectrum(indefinite())
    b = random_matrix(3, 100, seed=2)
    b[1] = 0
    b[2] *= 1e-200
    found = solve(Counted(M, tags=SYMMETRIC), b, method="minres", full=True)
    assert float(found.value[1].abs().max()) == 0 and found.residual <= 1e-8
    torch.testing.assert_close(found.value[2] * 1e200, torch.linalg.solve(M, b[2] * 1e200), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("is_preconditioned", [False, True])
def test_the_residual_of_the_recursion_is_the_true_one(is_preconditioned: bool) -> None:
    M, b = with_spectrum(indefinite()), random_matrix(2, 100, seed=3)
    P = Diagonal(torch.linspace(0.5, 2, 100, dtype=torch.float64)) if is_preconditioned else None
    state = _State(Counted(M, tags=SYMMETRIC), b / b.norm(dim=-1, keepdim=True), 1e-8, P)
    for _ in range(30):
        state.step()
        torch.testing.assert_close(state.r, state.b - state.x @ M, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [(float("inf"), 1.0), (1.0, float("nan"))])
def test_steps_that_overflowed_have_no_condition_number(step: tuple[float, float]) -> None:
    assert _condition([(1.0, 1.0), step]) == float("inf")
