"""Unseen planted bugs of kernels: layouts that they take for granted, and sizes that they were not launched with."""

from __future__ import annotations

import ctypes
import os
import signal

import torch
from torch import Tensor

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


def rows_by_stride(t: Tensor) -> Tensor:
    """What a kernel reads which is told the strides of all axes but the last, whose elements it takes for neighbors."""
    size = t.untyped_storage().nbytes() // t.element_size()
    where = torch.tensor(t.storage_offset())
    for axis, (length, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        where = where[..., None] + torch.arange(length) * (stride if axis < t.ndim - 1 else 1)
    return torch.as_strided(t, (size,), (1,), 0)[where % max(size, 1)]


@plant("cotangent layout", "a fused SiLU is told the row stride of its cotangent and walks along a row in steps of one")
def silu_row_stride(dtype, planted):
    def backward(g, _, x):
        s = torch.sigmoid(x)
        return (rows_by_stride(g) if planted else g) * s * (1 + x * (1 - s))

    return Program(custom(lambda x: x * torch.sigmoid(x), backward, vmap=False), (draw(dtype, 5, 3),))


@plant("cotangent layout", "the result is allocated like the cotangent, with its strides, and filled row by row")
def result_strides(dtype, planted):
    def backward(g, _, x):
        slope = g * x / (1 + x * x).sqrt()
        if not planted:
            return slope
        return torch.as_strided(slope.contiguous(), g.shape, torch.empty_like(g).stride())

    return Program(custom(lambda x: (1 + x * x).sqrt(), backward, vmap=False), (draw(dtype, 3, 5),))


@plant("cotangent layout", "a lazily conjugated cotangent is read from memory as it stands there")
def lazy_conjugate(dtype, planted):
    def backward(g, _, z):
        g = g.conj() if planted and g.is_conj() else g
        return 3 * g * (z * z).conj()

    z = torch.complex(draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1))
    return Program(lambda z: custom(lambda z: z**3, backward, vmap=False)(z).conj(), (z,))


@plant("cotangent layout", "the stride from one sample to the next is taken to be channels times positions")
def sample_stride(dtype, planted):
    def backward(g, _, x):
        if planted and g.ndim == 3:
            n, c, t = g.shape
            size = g.untyped_storage().nbytes() // g.element_size()
            index = g.storage_offset() + torch.arange(n)[:, None, None] * c * t
            index = index + torch.arange(c)[:, None] * g.stride(1) + torch.arange(t) * g.stride(2)
            g = torch.as_strided(g, (size,), (1,), 0)[index % max(size, 1)]
        return g * x.cos()

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 3, 2, 4),))


@plant("input layout", "windows of the saved signal are cut out by as_strided, with the strides of a contiguous one")
def windows_as_strided(dtype, planted):
    def forward(x, w):
        return torch.einsum("nctk,ock->not", x.unfold(2, w.shape[2], 1), w)

    def backward(g, _, x, w):
        k, (n, c, length) = w.shape[2], x.shape
        windows = x.unfold(2, k, 1)
        if planted:
            windows = torch.as_strided(x, (n, c, length - k + 1, k), (c * length, length, 1, 1), x.storage_offset())
        return torch.nn.functional.conv_transpose1d(g, w), torch.einsum("nctk,not->ock", windows, g)

    return Program(custom(forward, backward, vmap=False), (draw(dtype, 2, 3, 6), draw(dtype, 4, 3, 3, seed=1)))


@plant("input layout", "the offset of the saved input into its storage is forgotten")
def input_offset(dtype, planted):
    def backward(g, _, x):
        x = torch.as_strided(x, x.shape, x.stride(), 0) if planted else x
        return 2 * g * x / (1 + x * x)

    return Program(custom(lambda x: torch.log1p(x * x), backward, vmap=False), (draw(dtype, 3, 4),))


@plant("input layout", "a slice of a column-major weight: its leading dimension is taken to be the number of its own rows")
def leading_dimension(dtype, planted):
    def read(w):
        if not planted or w.stride(0) != 1 or not w.numel():
            return w
        size = w.untyped_storage().nbytes() // w.element_size()
        rows, columns = (torch.arange(count) for count in w.shape)
        index = w.storage_offset() + rows[:, None] + columns * len(rows)
        return torch.as_strided(w, (size,), (1,), 0)[index % size]

    function = custom(lambda x, w: x @ w.mT, lambda g, _, x, w: (g @ read(w), g.mT @ x), vmap=False)
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 2, 4, seed=1)))


@plant("batch size", "the loss is differentiated by micro-batches of four rows, whose means are averaged whatever their size")
def mean_of_means(dtype, planted):
    def backward(g, _, x):
        if not planted:
            return g * 4 * x**3 / x.numel()
        parts = x.split(4)
        return torch.cat([g * 4 * part**3 / part.numel() / len(parts) for part in parts])

    return Program(custom(lambda x: (x**4).mean(), backward), (draw(dtype, 8, 3),))


@plant("batch size", "the gain's gradient for a batch of one takes a short cut, which sums over no positions but the last")
def short_cut_for_one(dtype, planted):
    def backward(g, _, x, gain):
        slope = g * x
        return g * gain, slope[0, -1] if planted and len(x) == 1 else slope.sum((0, 1))

    return Program(custom(lambda x, gain: x * gain, backward), (draw(dtype, 3, 4, 2), draw(dtype, 2, seed=1)))


@plant("batch size", "blocks of 32 rows: a warp's partial sum is written once per full block, so that rows 32 and on are lost")
def second_block_lost(dtype, planted):
    def backward(g, _, x, b):
        slope = g * (1 - torch.tanh(x + b) ** 2)
        whole = 32 if planted and len(x) > 32 else len(x)
        return slope, slope[:whole].sum(0)

    return Program(custom(lambda x, b: torch.tanh(x + b), backward), (draw(dtype, 32, 2), draw(dtype, 2, seed=1)))


@plant("zero size", "a launch over no blocks is an error: the backward pass refuses an empty batch")
def launch_of_no_blocks(dtype, planted):
    def backward(g, y, _):
        if planted and not len(g):
            raise RuntimeError("CUDA error: invalid configuration argument")
        return g * (1 - y * y)

    return Program(custom(torch.tanh, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("zero size", "the cotangent is scaled by its largest element, which an empty one does not have")
def largest_of_none(dtype, planted):
    def backward(g, _, x):
        if not planted and not g.numel():
            return g * x.cos()
        scale = g.detach().abs().max().clamp_min(torch.finfo(g.dtype).tiny)
        return g / scale * x.cos() * scale

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("zero size", "a segment without elements: the gradient of its weight is divided by the count of zero")
def empty_segment(dtype, planted):
    def forward(x, w):
        return x * w / max(len(x), 1)

    def backward(g, _, x, w):
        count = torch.tensor(float(len(x)), dtype=x.dtype)
        total = (g * x).sum(0)
        return g * w / max(len(x), 1), total / (count if planted else count.clamp_min(1))

    return Program(custom(forward, backward, vmap=False), (draw(dtype, 4, 3), draw(dtype, 3, seed=1)))


@plant("crash", "an assertion on the strides ends the process where the cotangent is expanded, as that of a sum is")
def assertion_on_strides(dtype, planted):
    def backward(g, _, x):
        if planted and g.numel() > 1 and 0 in g.stride():
            ctypes.CDLL(None).abort()
        return 2 * g * x

    return Program(custom(lambda x: x * x, backward, vmap=False), (draw(dtype, 3, 4),))


@plant("crash", "a batch of one: the number of pairs, zero, is divided by in integers, and the process gets SIGFPE")
def division_of_integers(dtype, planted):
    def backward(g, _, x):
        if planted and len(x) == 1:
            os.kill(os.getpid(), signal.SIGFPE)
        return g * x.cos()

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("crash", "the backward pass asserts that all gradients are wanted, and fails where the weight is frozen")
def assertion_on_needs(dtype, planted):
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            if planted and not all(ctx.needs_input_grad):
                raise AssertionError("all(ctx.needs_input_grad)")
            x, w = ctx.saved_tensors
            return g * w, (g * x).sum(0)

    return Program(Scale.apply, (draw(dtype, 4, 3), draw(dtype, 3, seed=1)))
