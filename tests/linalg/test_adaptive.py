"""The choice between plain probes and deflation: what is drawn, multiplied, kept and given up."""

from __future__ import annotations

import math

import pytest
import torch

from hesse.linalg.adaptive import Goal, Search
from hesse.linalg.xtrace import TraceOf

from .counted import HERMITIAN, Counted, seeded, with_spectrum

N = 400
I = torch.arange(1, N + 1, dtype=torch.float64)  # noqa: E741


def search(values: torch.Tensor, rtol: float, *, exact: float = math.inf, most: int = 10_000, memory: int = 2**30) -> tuple:
    A = Counted(with_spectrum(values.double()), tags=HERMITIAN)
    goal = Goal(rtol, 0.0, most, exact)
    one = Search(A, TraceOf(A), goal, seeded(), memory, "test")
    found = one.auto()
    assert one.products == sum(A.blocks)
    return found, A, one.products


def test_flat_spectra_draw_signs_alone() -> None:
    found, A, products = search(1 + I / N, 0.0015)
    assert found.converged and A.blocks[0] == 16 and products > 60
    reference = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, 2, (count, N), generator=reference).mul(2).sub(1).double() for count in A.blocks]
    samples = torch.cat([((V @ A.matrix) * V).sum(-1) for V in drawn])
    assert float(found.value) == pytest.approx(float(samples.mean()), rel=1e-12)


def test_decaying_spectra_multiply_the_basis_once() -> None:
    found, A, products = search(I**-2, 1e-3)
    assert found.converged and abs(float(found.value) - float(A.matrix.trace())) < 4 * found.error
    assert products % 2 == 0 and A.blocks[:2] == [16, 16] and products < 100


def test_a_step_is_waited_for_with_probes_that_serve_both() -> None:
    found, A, products = search(torch.where(I <= 40, 1.0, 1e-3), 1e-3)
    assert found.converged and products <= 130
    first = next(k for k in range(1, len(A.blocks)) if sum(A.blocks[:k]) == A.blocks[k])  # then the whole basis at once
    assert sum(A.blocks[:first]) >= 40


def test_gives_up_for_the_exact_answer() -> None:
    for values, rtol, waste in ((1 + I / N, 1e-6, 0.1), (I**-0.5, 1e-6, 0.6), (1 / I, 1e-6, 1.0)):
        found, _, products = search(values, rtol, exact=N)
        assert found is None and products <= waste * N


def test_most_is_kept_and_the_better_of_both_is_returned() -> None:
    found, _, products = search(1 / I, 1e-6, most=70)
    assert not found.converged and products <= 70 and found.error < 0.05 * float(found.value)
    found, _, products = search(1 + I / N, 1e-6, most=70)
    assert not found.converged and products == 70


@pytest.mark.parametrize("probes", [20, 40])
def test_a_sketch_never_outgrows_the_memory(probes: int) -> None:
    memory = 2 * 6 * N * 8 * probes
    found, A, products = search(1 / I, 1e-4, most=600, memory=memory)
    assert not found.converged and products == 600 and float(found.error) < 0.05 * float(found.value)
    assert max(A.blocks) <= 64
