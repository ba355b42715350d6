"""Whether the truth lies inside the error bars as often as they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.linalg import Estimate

from .counted import PSD, Counted, seeded, with_spectrum

SEEDS = 200
N = 160
SPECTRA = {
    "flat": torch.linspace(1, 3, N, dtype=torch.float64),
    "decaying": torch.logspace(0, -2, N, dtype=torch.float64),
    "clustered": torch.cat(
        [1 + 1e-3 * torch.linspace(0, 1, N - 50), torch.linspace(0.04, 0.05, 25), torch.linspace(9, 10, 25)]
    ).double(),
}
# 16 probes: two standard errors of Student's t with 15 degrees of freedom hold 93.6 %; a little less for the spectra whose
# few large eigenvalues make the samples skew, and for stopping where the error looks small
RATE = 0.93
LEAST = RATE - 3 * math.sqrt(RATE * (1 - RATE) / SEEDS)


def assert_calibrated(
    ask: Callable[[Counted, torch.Generator], Estimate], spectrum: Tensor, truth: float, dtype: torch.dtype
) -> None:
    """Over 200 seeds the truth lies within two standard errors at the stated rate, and errors have the stated size."""
    M = with_spectrum(spectrum, dtype)
    z = []
    for seed in range(SEEDS):
        A = Counted(M, tags=PSD)
        found = ask(A, seeded(seed))
        assert found.products == sum(A.blocks) and not A.calls["mv"]
        z.append((float(found) - truth) / found.standard_error)
    inside = sum(abs(x) <= 2 for x in z) / SEEDS
    assert inside >= LEAST
    assert 0.8 < math.sqrt(sum(x * x for x in z) / SEEDS) < 1.3
