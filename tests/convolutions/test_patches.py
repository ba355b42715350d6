"""Windows that share no cell, against `torch.linalg.pinv` of the matrix that torch's own layers make."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hesse.convolutions import patches
from hesse.convolutions.operator import Convolution

from .oracle import assert_is_pinv, assert_spectrum_and_null_space, convolution, images, kernel

COMPLEX = torch.complex128


def without_rank(*shape: int) -> Tensor:
    weight = kernel(*shape)
    weight[1] = weight[0]
    return weight


CASES = {
    "1x1 tall": convolution(kernel(5, 3, 1, 1), (4, 3)),
    "1x1 wide": convolution(kernel(2, 3, 1, 1), (4, 3)),
    "1x1 strided, padded": convolution(kernel(3, 3, 1, 1), (4, 5), stride=2, padding=(1, 0)),
    "1x1 without rank": convolution(without_rank(4, 3, 1, 1), (4, 3)),
    "patches": convolution(kernel(14, 3, 2, 2), (6, 4), stride=2),
    "patches, wide": convolution(kernel(4, 3, 2, 2), (6, 4), stride=2),
    "padded: 9 kinds of windows": convolution(kernel(5, 2, 3, 3), (7, 7), stride=3, padding=1),
    "pairs": convolution(kernel(7, 2, 3, 2), (7, 6), stride=(3, 4), padding=((2, 0), (1, 1))),
    "stride leaves cells": convolution(kernel(3, 2, 2), (11,), stride=4),
    "windows over nothing": convolution(kernel(3, 2, 2), (5,), stride=2, padding=4),
    "depthwise": convolution(kernel(6, 1, 2, 2), (4, 4), stride=2, groups=3),
    "3d groups": convolution(kernel(4, 2, 2, 1, 2), (4, 3, 4), stride=2, groups=2),
    "complex": convolution(kernel(4, 3, 2, 3, dtype=COMPLEX), (5, 6), stride=(2, 3), padding=(1, 0)),
    "as large as the image": convolution(kernel(4, 2, 4, 3), (4, 3)),
    "interleaved": convolution(kernel(5, 2, 2), (6,), dilation=3),
    "reflect that no window reads twice": convolution(kernel(3, 2, 2), (6,), stride=2, padding_mode="reflect"),
    "circular": convolution(kernel(3, 2, 2), (6,), stride=2, padding=((1, 0),), padding_mode="circular"),
}


@pytest.mark.parametrize("name", CASES)
def test_pseudo_inverse(name: str) -> None:
    A = CASES[name]
    inverse = patches.make(A)
    assert inverse is not None and inverse.method == "patches"
    assert_is_pinv(inverse, A)


@pytest.mark.parametrize("name", CASES)
def test_spectrum_and_null_space(name: str) -> None:
    assert_spectrum_and_null_space(patches.make(CASES[name]), CASES[name])


@pytest.mark.parametrize(
    "A",
    [
        convolution(kernel(2, 2, 2), (6,)),
        convolution(kernel(2, 2, 3, 2), (6, 6), stride=(2, 2)),
        convolution(kernel(2, 2, 2), (6,), stride=2, padding=1, padding_mode="reflect"),
        convolution(kernel(2, 2, 2), (6,), stride=2, padding=(2,), padding_mode="replicate"),
        convolution(kernel(2, 2, 2), (7,), dilation=3),
    ],
    ids=str,
)
def test_windows_that_overlap_are_left_to_others(A: Convolution) -> None:
    assert patches.make(A) is None


def test_cut_off_is_global_over_kinds_of_windows() -> None:
    """The windows at the border see only the second tap, which is small: cut off only by a coarse tolerance."""
    weight = torch.tensor([1.0, 1e-4], dtype=torch.float64).reshape(1, 1, 2)
    A = convolution(weight, (5,), stride=2, padding=((1, 0),))
    for rtol, truncated in ((1e-3, 1), (1e-5, 0)):
        inverse = patches.make(A, rtol=rtol)
        assert inverse is not None and inverse.truncated == truncated
        assert_is_pinv(inverse, A, rtol=rtol)


def test_dead_cells_get_zero() -> None:
    A = CASES["stride leaves cells"]
    inverse = patches.make(A)
    assert inverse is not None
    x = inverse.apply(images(A, 2)).value
    assert float(x[:, :, [2, 3, 6, 7, 10]].abs().max()) == 0 and float(x.abs().min(0).values[:, [0, 1, 4, 5, 8, 9]].min()) > 0


def test_memory() -> None:
    assert patches.make(CASES["patches"], memory=1000) is None
