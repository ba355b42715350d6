"""Winding numbers against the roots of polynomials, and what they say of zero-padded convolutions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hesse.convolutions.winding import winding

from .oracle import convolution, kernel, matrix


def near_identity(channels: int, noise: float, seed: int = 0) -> Tensor:
    weight = noise * kernel(channels, channels, 3, 3, seed=seed) / (9 * channels) ** 0.5
    weight[range(channels), range(channels), 1, 1] += 1
    return weight


def roots_inside(weight: Tensor) -> int:
    """Of ``det(sum_k weight[:, :, k] z^k)``: those within the unit circle, from its coefficients by the Leibniz formula."""
    W = weight.numpy()
    total = np.zeros(1)
    for order in itertools.permutations(range(len(W))):
        sign = np.linalg.det(np.eye(len(W))[list(order)])
        term = np.array([sign])
        for row, column in enumerate(order):
            term = np.polymul(term, W[row, column][::-1])
        total = np.polyadd(total, term)
    return int((np.abs(np.roots(total)) < 1).sum())


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_roots_of_the_determinant_along_one_axis(channels: int, padding: int) -> None:
    for seed in range(8):
        weight = kernel(channels, channels, 4, seed=seed)
        found = winding(convolution(weight, (12,), padding=padding))
        assert found.numbers == ((roots_inside(weight) - channels * padding,),)


def test_complex_and_grouped() -> None:
    weight = kernel(4, 2, 3, seed=3)
    alone = [winding(convolution(part, (9,), padding=1)).numbers[0] for part in weight.split(2)]
    assert winding(convolution(weight, (9,), padding=1, groups=2)).numbers == (alone[0] + alone[1],)
    assert winding(convolution(weight.to(torch.complex128), (9,), padding=1, groups=2)).numbers == (alone[0] + alone[1],)
    shift = torch.tensor([0, 0, 1j], dtype=torch.complex128).reshape(1, 1, 3)
    assert winding(convolution(shift, (9,), padding=1)).numbers == ((1,),)


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_kernels_near_the_identity_do_not_wind_and_random_ones_do(channels: int) -> None:
    benign = winding(convolution(near_identity(channels, 0.3), (32, 32), padding=1))
    assert not benign.winds and len(benign.numbers) == 2 and all(benign.numbers) and benign.condition < 4
    assert winding(convolution(kernel(channels, channels, 3, 3), (32, 32), padding=1)).winds


def test_many_channels_turn_fast_and_are_followed() -> None:
    found = winding(convolution(near_identity(24, 0.9), (16, 16), padding=1))
    assert not found.winds and [len(axis) for axis in found.numbers] == [5, 5]


@pytest.mark.parametrize("tap", [3, 10])
@pytest.mark.parametrize("padding", [0, 4])
def test_shifts_wind_once_a_cell_and_channel(tap: int, padding: int) -> None:
    """``det = z^(channels cells)``, whose fast turns on few points would look like slow ones."""
    weight = torch.zeros(8, 8, 11, 1, dtype=torch.float64)
    weight[range(8), range(8), tap] = 1
    found = winding(convolution(weight, (32, 4), padding=(padding, 0)))
    assert found.numbers == ((8 * (tap - padding),) * 5, (0,) * 5)


def test_fast_turns_near_roots_are_followed_on_more_points() -> None:
    """Four channels with roots at 0.9 of the unit circle between two of 64 points: the phase turns by more than half there."""
    angle = 2 * torch.pi * 10.5 / 64
    weight = torch.zeros(4, 4, 3, dtype=torch.float64)
    weight[range(4), range(4)] = torch.tensor([0.81, -1.8 * math.cos(angle), 1], dtype=torch.float64)
    assert winding(convolution(weight, (20,))).numbers == ((8,),)


def test_winding_means_exponentially_small_singular_values() -> None:
    """A shift by one cell against its neighbors: ``0.4 + z`` has its root inside, ``1 + 0.4 z`` has it outside."""
    for place, winds in ((2, True), (1, False)):
        weight = torch.zeros(1, 1, 3, dtype=torch.float64)
        weight[0, 0, place], weight[0, 0, place - 1] = 1, 0.4
        found = winding(convolution(weight, (40,), padding=1))
        assert found.winds is winds and found.condition == pytest.approx(1.4 / 0.6, rel=1e-12)
        least = torch.linalg.svdvals(matrix(convolution(weight, (40,), padding=1)))[-1]
        assert (float(least) < 1e-12) is winds


def test_strided_squares_are_squares() -> None:
    assert winding(convolution(kernel(8, 2, 3, 3), (8, 8), padding=1, stride=2)).winds
    assert winding(convolution(kernel(4, 2, 3, 3), (8, 8), padding=1, stride=2)).numbers == ()


def test_condition_of_rectangular_symbols() -> None:
    A = convolution(kernel(2, 5, 3, 3), (6, 6), padding=1, padding_mode="circular")
    values = torch.linalg.svdvals(matrix(A))
    found = winding(A)
    assert found.numbers == () and not found.winds
    assert found.norm == pytest.approx(float(values[0]), rel=1e-12)
    assert found.condition == pytest.approx(float(values[0] / values[-1]), rel=1e-12)


def test_symbols_that_vanish() -> None:
    assert winding(convolution(torch.zeros(2, 2, 3).double(), (9,), padding=1)).condition == float("inf")
    difference = torch.tensor([1.0, -1.0]).double().reshape(1, 1, 2)
    assert winding(convolution(difference, (9,))).condition > 1e15
