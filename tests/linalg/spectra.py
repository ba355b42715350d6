"""Matrices on which estimators are calibrated: flat, decaying, stepped, indefinite, not symmetric, complex."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.operators import Tag

from .counted import HERMITIAN, random_matrix, with_spectrum

DIM = 173


def _matrices() -> dict[str, tuple[Tensor, frozenset[Tag]]]:
    i = torch.arange(1, DIM + 1, dtype=torch.float64)
    noise = random_matrix(DIM, DIM, seed=1) / DIM**0.5
    complex_noise = random_matrix(DIM, DIM, dtype=torch.complex128, seed=2) / DIM**0.5
    power = with_spectrum(i**-1.5)
    spectra = {
        "flat": torch.linspace(1, 3, DIM, dtype=torch.float64),
        "power": 1 / i,
        "exponential": 0.9**i,
        "step": torch.where(i <= 20, 1.0, 1e-3).double(),
        "indefinite": torch.linspace(-1, 1.5, DIM, dtype=torch.float64),
        "outliers": torch.where(i <= 5, 100.0, 1.0).double(),
    }
    found = {name: (with_spectrum(values), HERMITIAN) for name, values in spectra.items()}
    found["asymmetric"] = (power @ (torch.eye(DIM) + noise), frozenset())
    found["complex"] = (power.to(torch.complex128) @ (torch.eye(DIM) + complex_noise), frozenset())
    found["nearly diagonal"] = (torch.diag(spectra["flat"]) + 0.1 * noise, frozenset())
    return found


MATRICES = _matrices()
LEAST_INSIDE = 0.90  # of 200 within two standard errors: 95 % less three binomial standard deviations
