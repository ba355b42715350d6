"""The symbol against torch's own convolutions of unit images on wrapped and sign-changing tori."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hesse.convolutions.symbol import from_frequencies, multiplicities, symbol, to_frequencies

CASES = {
    "1d": ((7,), (3,), (1,), (1,), (0,)),
    "1d stride": ((4,), (3,), (2,), (1,), (-1,)),
    "1d long kernel": ((3,), (8,), (1,), (2,), (-4,)),
    "2d": ((4, 5), (3, 2), (1, 1), (1, 1), (-1, 0)),
    "2d stride and dilation": ((3, 4), (2, 3), (2, 3), (3, 1), (-2, 5)),
    "3d": ((2, 3, 4), (2, 1, 3), (1, 2, 1), (1, 1, 1), (0, -1, -2)),
}
KINDS = {"real": torch.float64, "complex": torch.complex128}


def cell(index: int, size: int, skew: bool) -> tuple[int, int]:
    """Where a coordinate lies on the torus, and its sign there."""
    return index % size, (-1) ** ((index // size) % 2) if skew else 1


def by_definition(weight: Tensor, z: Tensor, case: tuple, skew: tuple[bool, ...]) -> Tensor:
    """``[groups, out, *torus]`` by sums over taps; z is ``[groups, in, *fine]``."""
    torus, kernel, stride, dilation, offset = case
    y = z.new_zeros(*weight.shape[:2], *torus)
    for n in itertools.product(*map(range, torus)):
        for k in itertools.product(*map(range, kernel)):
            sign, place = 1, []
            for a in range(len(torus)):
                index, flip = cell(stride[a] * n[a] + dilation[a] * k[a] + offset[a], torus[a] * stride[a], skew[a])
                sign, place = sign * flip, [*place, index]
            y[(..., *n)] += sign * torch.einsum("goi,gi->go", weight[(..., *k)], z[(..., *place)])
    return y


def phases(z: Tensor, torus: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """``[groups, in, *fine] -> [groups, in * prod(stride), *torus]``."""
    d = len(torus)
    z = z.reshape(*z.shape[:2], *itertools.chain(*zip(torus, stride, strict=True)))
    z = z.permute(0, 1, *range(3, 2 + 2 * d, 2), *range(2, 2 + 2 * d, 2))
    return z.reshape(z.shape[0], -1, *torus)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_symbol_times_frequencies_of_the_image(name: str, kind: str) -> None:
    case = torus, kernel, stride, dilation, offset = CASES[name]
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 3, 2, *kernel, dtype=KINDS[kind], generator=generator)
    fine = tuple(n * s for n, s in zip(torus, stride, strict=True))
    z = torch.randn(2, 2, *fine, dtype=KINDS[kind], generator=generator)
    for skew in itertools.product((False, True), repeat=len(torus)):
        C = symbol(weight, torus, stride=stride, dilation=dilation, offset=offset, skew=skew)
        assert C.shape[-3:] == (2, 3, 2 * math.prod(stride))
        Z = to_frequencies(phases(z, torus, stride), len(torus), skew)
        Y = torch.einsum("...goi,gi...->go...", C, Z)
        y = from_frequencies(Y, torus, KINDS[kind], skew)
        assert y.dtype == KINDS[kind]
        torch.testing.assert_close(y, by_definition(weight, z, case, skew), rtol=1e-13, atol=1e-13)


def test_defaults_are_those_of_a_plain_correlation() -> None:
    weight = torch.randn(1, 2, 2, 3, 3, dtype=torch.float64)
    plain = symbol(weight, (5, 6))
    assert plain.shape == (5, 4, 1, 2, 2)
    assert torch.equal(plain, symbol(weight, (5, 6), stride=(1, 1), dilation=(1, 1), offset=(0, 0), skew=(False, False)))


def test_far_frequencies_keep_all_digits() -> None:
    """A tap far out on a large torus: the angle is reduced as an integer, so that the modulus and the phase are exact."""
    n = 10_007
    C = symbol(torch.ones(1, 1, 1, 1, dtype=torch.float64), (n,), offset=(n * n + 1,))[:, 0, 0, 0]
    there = torch.fft.rfft(torch.eye(1, n, dtype=torch.float64).roll(-1)[0])
    torch.testing.assert_close(C, there, rtol=0, atol=4e-15)


@pytest.mark.parametrize("torus", [(6,), (7,), (4, 1), (3, 2)])
def test_multiplicities_of_half_spectra(torus: tuple[int, ...]) -> None:
    x = torch.randn(*torus, dtype=torch.float64)
    counts = multiplicities(torus, True)
    energy = (to_frequencies(x, len(torus)).abs().square() * counts).sum() / math.prod(torus)
    torch.testing.assert_close(energy, x.square().sum(), rtol=1e-13, atol=0)
    assert int(multiplicities(torus, False).sum()) == torus[-1]


def test_gradient() -> None:
    weight = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    for skew in ((False,), (True,)):
        assert torch.autograd.gradcheck(lambda w, skew=skew: symbol(w, (4,), stride=(2,), offset=(-1,), skew=skew), (weight,))


def test_single_precision_stays_single() -> None:
    weight = torch.randn(1, 2, 2, 3)
    assert symbol(weight, (4,)).dtype == torch.complex64
    x = torch.randn(2, 4)
    torch.testing.assert_close(from_frequencies(to_frequencies(x, 1, (True,)), (4,), x.dtype, (True,)), x)
