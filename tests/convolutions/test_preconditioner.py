"""The cropped circulant inverse: when it is made, that it is an operator with full rank, and what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.convolutions import preconditioner
from hesse.convolutions.operator import Convolution
from hesse.linalg.lsmr import lsmr

from .oracle import convolution, images, kernel, matrix
from .test_winding import near_identity

RTOL = 1e-12


def gaussian(width: float, taps: int) -> Tensor:
    places = torch.arange(taps, dtype=torch.float64) - taps // 2
    profile = torch.exp(-(places**2) / (2 * width**2))
    return torch.outer(profile, profile)[None, None] / profile.sum() ** 2


POSITIVE = {
    "identity and noise": convolution(near_identity(3, 0.3), (8, 7), padding=1),
    "blur": convolution(gaussian(0.7, 5), (9, 11), padding=2),
    "minus identity": convolution(-near_identity(2, 0.5), (8, 7), padding=1),
    "turned": convolution((0.6 + 0.8j) * near_identity(2, 0.3), (6, 7), padding=1),
    "groups": convolution(torch.cat([near_identity(2, 0.3), 2 * near_identity(2, 0.4, 1)]), (6, 5), padding=1, groups=2),
    "even kernel": convolution(torch.tensor([0.3, 1.0]).double().reshape(1, 1, 2), (9,), padding=((1, 0),)),
}
NOT_SAFE = {
    "random": convolution(kernel(2, 2, 3, 3), (8, 8), padding=1),
    "box": convolution(torch.ones(1, 1, 3, 3).double(), (8, 8), padding=1),
    "valid": convolution(near_identity(2, 0.1), (8, 8)),
    "circular": convolution(near_identity(2, 0.1), (8, 8), padding=1, padding_mode="circular"),
    "stride": convolution(near_identity(2, 0.1), (8, 8), padding=1, stride=2),
    "wide": convolution(near_identity(2, 0.1)[:1], (8, 8), padding=1),
    "zero": convolution(torch.zeros(2, 2, 3).double(), (8,), padding=1),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_symbols(name: str) -> None:
    A = POSITIVE[name]
    P = preconditioner.make(A, rtol=RTOL)
    assert P is not None
    eye = torch.eye(A.shape[0], dtype=A.weight.dtype).reshape(-1, *A.geometry.in_shape)
    M = (P @ eye).flatten(1).mT
    torch.testing.assert_close((P.T @ eye).flatten(1).mT, M.mT, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close((P.H @ eye).flatten(1).mT, M.mH, rtol=1e-12, atol=1e-13)
    x = images(A, 1)[0]
    torch.testing.assert_close(P @ x, (P @ x[None])[0])
    whole, alone = torch.linalg.cond(matrix(A) @ M), torch.linalg.cond(matrix(A))
    assert float(whole) < 0.7 * float(alone)


@pytest.mark.parametrize("name", NOT_SAFE)
def test_no_preconditioner_where_rank_is_not_proved(name: str) -> None:
    assert preconditioner.make(NOT_SAFE[name], rtol=RTOL) is None


def test_a_singular_value_below_the_tolerance_is_not_proved_away() -> None:
    A = POSITIVE["blur"]
    values = torch.linalg.svdvals(matrix(A))
    assert preconditioner.make(A, rtol=float(values[-1] / values[0])) is None
    assert preconditioner.make(A, rtol=0.1 * float(values[-1] / values[0])) is not None


def test_memory() -> None:
    assert preconditioner.make(POSITIVE["blur"], rtol=RTOL, memory=1000) is None


def test_iterations_saved() -> None:
    A = POSITIVE["blur"]
    P = preconditioner.make(A, rtol=RTOL)
    assert P is not None
    b = images(A, 1).flatten(1)
    alone, helped = lsmr(A, b, 1e-10, 1000), lsmr(A @ P, b, 1e-10, 1000)
    assert 4 * helped.iterations < alone.iterations


def test_lengths_with_small_factors() -> None:
    assert [preconditioner._quick_length(n) for n in (1, 7, 11, 17, 97, 129, 257)] == [1, 8, 12, 18, 100, 135, 270]


def test_weights_are_not_kept_alive_by_a_graph() -> None:
    weight = near_identity(2, 0.3).requires_grad_()
    A = Convolution(weight, POSITIVE["minus identity"].geometry)
    P = preconditioner.make(A, rtol=RTOL)
    assert P is not None and not (P @ images(A, 1)).requires_grad
