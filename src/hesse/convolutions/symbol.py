"""The symbol of a convolution on a torus: one small matrix a frequency, phases of the stride counted as channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def symbol(
    weight: Tensor,
    torus: tuple[int, ...],
    *,
    stride: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    offset: tuple[int, ...] | None = None,
    skew: tuple[bool, ...] | None = None,
) -> Tensor:
    """The block symbol of ``y[n] = sum_k weight[k] z[stride n + dilation k + offset]`` on a torus.

    A fine cell ``stride q + r`` (an axis) has the coarse cell q and the phase r; phases become channels (the polyphase form),
    so that a frequency of y is the symbol times the same frequency of z. Kernels longer than the torus wrap around. Each
    frequency is computed from angles that are reduced exactly, so that large tori lose no digits. Differentiable.

    Args:
        weight: ``[groups, out, in, *kernel]``, real or complex.
        torus: coarse cells along each axis.
        stride, dilation: by default 1.
        offset: fine cell of z under the first tap of the window of ``y[0]``; may be negative; by default 0.
        skew: axes around which z changes its sign; their frequencies are ``f + 1/2``.

    Returns:
        complex ``[*frequencies, groups, out, in * prod(stride)]``, in whose last axis phases vary fastest (row-major); the
        frequencies are those of `to_frequencies`.

    Cost: ``frequencies x channels^2 x kernel``, the kernel of the last axis only.
    """
    d = len(torus)
    ones = (1,) * d
    stride, dilation, offset, skew = stride or ones, dilation or ones, offset or (0,) * d, skew or (False,) * d
    half = is_half(weight.dtype, skew)
    kernel, channels = weight.shape[3:], weight.shape[:3]
    kind = weight.dtype.to_complex()
    # [done frequencies and phases, kernel of this axis, kernel of later axes and channels]
    table = weight.to(kind).movedim((0, 1, 2), (-3, -2, -1)).reshape(1, *kernel, -1)
    shape: list[int] = []
    for axis in range(d):
        waves = _waves(torus[axis], kernel[axis], (stride[axis], dilation[axis], offset[axis]), skew[axis], kind, weight.device)
        if half and axis == d - 1:
            waves = waves[: torus[axis] // 2 + 1]
        shape += [len(waves), stride[axis]]
        left = table.reshape(table.shape[0], kernel[axis], -1)
        table = (waves.reshape(-1, kernel[axis]) @ left).reshape(-1, *kernel[axis + 1 :], math.prod(channels))
    order = [*range(0, 2 * d, 2), 2 * d, 2 * d + 1, 2 * d + 2, *range(1, 2 * d, 2)]
    table = table.reshape(*shape, *channels).permute(order)
    return table.reshape(*shape[::2], channels[0], channels[1], channels[2] * math.prod(stride))


def is_half(dtype: torch.dtype, skew: tuple[bool, ...]) -> bool:
    """Whether half of the last axis of frequencies says all: real numbers, no axis skew."""
    return not dtype.is_complex and not any(skew)


def to_frequencies(z: Tensor, ndim: int, skew: tuple[bool, ...] | None = None) -> Tensor:
    """The Fourier transform along the last `ndim` axes, with half frequencies along the skew ones.

    Of real z with no axis skew only the first ``n // 2 + 1`` frequencies of the last axis (`torch.fft.rfftn`).
    """
    skew = skew or (False,) * ndim
    axes = tuple(range(-ndim, 0))
    if is_half(z.dtype, skew):
        return torch.fft.rfftn(z, dim=axes)
    return torch.fft.fftn(_turned(z, skew, -1), dim=axes)


def from_frequencies(w: Tensor, torus: tuple[int, ...], dtype: torch.dtype, skew: tuple[bool, ...] | None = None) -> Tensor:
    """Undo `to_frequencies`: the real part if `dtype`, that of z, is real."""
    skew = skew or (False,) * len(torus)
    axes = tuple(range(-len(torus), 0))
    if is_half(dtype, skew):
        return torch.fft.irfftn(w, s=torus, dim=axes)
    z = _turned(torch.fft.ifftn(w, dim=axes), skew, 1)
    return z if dtype.is_complex else z.real


def multiplicities(torus: tuple[int, ...], half: bool, device: torch.device | None = None) -> Tensor:
    """``[frequencies of the last axis]``, int64: how many frequencies of the whole spectrum each of them stands for."""
    n = torus[-1]
    if not half:
        return torch.ones(n, dtype=torch.int64, device=device)
    counts = torch.full((n // 2 + 1,), 2, dtype=torch.int64, device=device)
    counts[0] = 1
    if n % 2 == 0:
        counts[-1] = 1
    return counts


def _waves(cells: int, taps: int, step: tuple[int, int, int], skew: bool, kind: torch.dtype, device: torch.device) -> Tensor:
    """``[cells, stride, taps]``: ``exp(2 pi i (f + skew / 2) q / cells)`` where the tap has this phase and coarse cell q."""
    stride, dilation, offset = step
    fine = dilation * torch.arange(taps) + offset
    coarse, phase = fine.div(stride, rounding_mode="floor"), fine % stride
    # twice the frequency times the cell, modulo twice the cells: integers, hence exact
    turns = ((2 * torch.arange(cells) + skew)[:, None] * coarse) % (2 * cells)
    waves = _unit_circle(turns, 2 * cells)[:, None, :] * (phase == torch.arange(stride)[:, None])
    return waves.to(device, kind)


def _turned(z: Tensor, skew: tuple[bool, ...], sign: int) -> Tensor:
    """Times ``exp(sign pi i q / n)`` along each of the last axes that are skew."""
    for axis, is_skew in enumerate(skew):
        if is_skew:
            n, later = z.shape[axis - len(skew)], len(skew) - 1 - axis
            turn = _unit_circle(sign * torch.arange(n), 2 * n).to(z.device, z.dtype.to_complex())
            z = z * turn.reshape(n, *(1,) * later)
    return z


def _unit_circle(turns: Tensor, of: int) -> Tensor:
    """``exp(2 pi i turns / of)``, complex128."""
    angle = (2 * math.pi / of) * turns.to(torch.float64)
    return torch.complex(angle.cos(), angle.sin())
