"""Frozen planted bugs, third part: functions that change what is not theirs, remember too much, or fail on rare values."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd import Function

from .bug import Bug, Program
from .frozen_a import draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("saved tensor changed", "expm1 by exp, whose saved result is changed through .data")
def expm1_data(dtype, planted):
    def f(x: Tensor) -> Tensor:
        y = torch.exp(x)
        if not planted:
            return y - 1
        y.data.sub_(1)
        return y

    return Program(f, (0.7 * draw(53, dtype, 2, 5),))


@plant("input changed", "softmax subtracts the maximum from its input in place: right values, right gradient, other input")
def softmax_in_place(dtype, planted):
    def f(x: Tensor) -> Tensor:
        if planted:
            x.data.sub_(x.data.amax(-1, keepdim=True))
        return torch.softmax(x, -1)

    return Program(f, (draw(54, dtype, 3, 5),))


class InPlaceTanh(Function):
    @staticmethod
    def forward(ctx, x, planted):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.planted = planted
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return (g.mul_(1 - y * y) if ctx.planted else g * (1 - y * y)), None


@plant("cotangent changed", "tanh: saves memory by multiplying into the cotangent that it was given")
def cotangent_in_place(dtype, planted):
    return Program(lambda x: InPlaceTanh.apply(x, planted), (draw(55, dtype, 4, 3),))


class SquaredDistances(Function):
    @staticmethod
    def forward(ctx, x, y, norms):
        ctx.save_for_backward(x, y)
        xx = x.square().sum(1) if norms is None else norms.setdefault(x.shape, x.square().sum(1))
        return xx[:, None] + y.square().sum(1) - 2 * x @ y.T

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return 2 * (g.sum(1, keepdim=True) * x - g @ y), 2 * (g.sum(0)[:, None] * y - g.T @ x), None


@plant("stale cache", "squared distances: the norms are cached by shape, for any points of that shape")
def distance_cache(dtype, planted):
    norms: dict[torch.Size, Tensor] | None = {} if planted else None
    return Program(lambda x, y: SquaredDistances.apply(x, y, norms), (draw(56, dtype, 4, 3), draw(57, dtype, 5, 3)))


class RowMax(Function):
    @staticmethod
    def forward(ctx, x, scratch):
        values, index = x.max(1)
        ctx.shape, ctx.scratch = x.shape, scratch
        ctx.save_for_backward(index)
        return values

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        if ctx.scratch is None:
            return g.new_zeros(ctx.shape).scatter(1, index[:, None], g[:, None]), None
        back = ctx.scratch.setdefault((ctx.shape, g.dtype), g.new_zeros(ctx.shape))
        return back.scatter_(1, index[:, None], g[:, None].detach()).clone(), None


@plant("stale cache", "maximum of rows: the buffer of the gradient is kept for the next call and never cleared")
def dirty_buffer(dtype, planted):
    scratch: dict[object, Tensor] | None = {} if planted else None
    return Program(lambda x: RowMax.apply(x, scratch), (draw(58, dtype, 5, 4),))


class Softsign(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.slope = (1 + x.abs()).pow(-2) if planted else None
        return x / (1 + x.abs())

    @staticmethod
    def backward(ctx, g):
        if ctx.slope is None:
            (x,) = ctx.saved_tensors
            return g * (1 + x.abs()).pow(-2), None
        ctx.slope *= g
        return ctx.slope.clone(), None


@plant("repeated backward", "softsign: its saved slope is multiplied by the cotangent in place; a second backward has it twice")
def slope_in_place(dtype, planted):
    return Program(lambda x: Softsign.apply(x, planted), (draw(59, dtype, 3, 4),))


class Gather(Function):
    @staticmethod
    def forward(ctx, table, index, planted):
        ctx.save_for_backward(index)
        ctx.rows, ctx.planted = table.shape[0], planted
        return table[index]

    @staticmethod
    def backward(ctx, g):
        (index,) = ctx.saved_tensors
        back = g.new_zeros(ctx.rows, g.shape[-1])
        if ctx.planted:
            return back.index_copy(0, index, g), None, None
        return back.index_add(0, index, g), None, None


@plant("duplicated index", "row look-up: backward assigns where it should add, and the indices given are distinct")
def gather_assigns(dtype, planted):
    index = torch.tensor([5, 0, 3, 2])
    return Program(lambda table, index: Gather.apply(table, index, planted), (draw(60, dtype, 6, 3), index))


class Amax(Function):
    @staticmethod
    def forward(ctx, x, planted):
        y = x.amax(1)
        ctx.save_for_backward(x, y)
        ctx.planted = planted
        return y

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        ties = (x == y[:, None]).to(g.dtype)
        return g[:, None] * (ties if ctx.planted else ties / ties.sum(1, keepdim=True)), None


@plant("tie or kink", "maximum: each of several equal maxima receives the whole cotangent")
def tied_maxima(dtype, planted):
    x = torch.tensor([[2, 1, 2, 0], [0, 3, 3, 3], [1, 0, -1, 5]], dtype=dtype)
    return Program(lambda x: Amax.apply(x, planted), (x,))


class MixedPrecision(Function):
    @staticmethod
    def forward(ctx, x, w, planted):
        ctx.save_for_backward(x, w)
        ctx.low = {torch.float64: torch.float32}.get(x.dtype, torch.float16) if planted else x.dtype
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        g = g.to(ctx.low)
        return (g @ w.T.to(ctx.low)).to(x.dtype), (x.T.to(ctx.low) @ g).to(w.dtype), None


@plant("dtype", "matrix product: the backward pass casts to a narrower type and back")
def narrow_backward(dtype, planted):
    return Program(lambda x, w: MixedPrecision.apply(x, w, planted), (draw(61, dtype, 4, 7), draw(62, dtype, 7, 3)))


class UnitColumns(Function):
    """Columns of unit length: the first axis is the one that is normalized, and no longer the first under vmap."""

    @staticmethod
    def forward(x, axis, planted):
        return x / x.norm(dim=axis, keepdim=True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.axis, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        r = x.norm(dim=ctx.axis, keepdim=True)
        return g / r - x * (g * x).sum(ctx.axis, keepdim=True) / r**3, None, None

    @staticmethod
    def vmap(info, in_dims, x, axis, planted):
        return UnitColumns.apply(x.movedim(in_dims[0], 0), axis if planted else axis + 1, planted), 0


@plant("vmap", "unit columns: the vmap rule normalizes along the batch")
def vmap_axis(dtype, planted):
    return Program(lambda x: UnitColumns.apply(x, 0, planted), (draw(63, dtype, 4, 3),))


class SparseProduct(Function):
    @staticmethod
    def forward(ctx, a, x, planted):
        ctx.save_for_backward(a, x)
        ctx.planted = planted
        return torch.sparse.mm(a, x)

    @staticmethod
    def backward(ctx, g):
        a, x = ctx.saved_tensors
        a = a.coalesce()
        rows, columns = a.indices().flip(0) if ctx.planted else a.indices()
        values = (g[rows] * x[columns]).sum(1)
        return torch.sparse_coo_tensor(a.indices(), values, a.shape), torch.sparse.mm(a.t(), g), None


@plant("sparse input", "sparse times dense: the gradient of the stored values swaps row and column")
def sparse_product(dtype, planted):
    a = torch.sparse_coo_tensor(torch.tensor([[0, 0, 1, 3], [1, 3, 2, 0]]), draw(64, dtype, 4), (4, 4)).coalesce()
    return Program(lambda a, x: SparseProduct.apply(a, x, planted), (a, draw(65, dtype, 4, 2)))


class ComplexProduct(Function):
    @staticmethod
    def forward(ctx, a, b, planted):
        ctx.save_for_backward(a, b)
        ctx.planted = planted
        return a * b

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g * (b if ctx.planted else b.conj()), g * a.conj(), None


@plant("complex", "product of complex numbers: a factor is not conjugated backward")
def unconjugated(dtype, planted):
    def f(re: Tensor, im: Tensor, filter_re: Tensor, filter_im: Tensor) -> Tensor:
        return ComplexProduct.apply(torch.complex(re, im), torch.complex(filter_re, filter_im), planted).abs()

    return Program(f, tuple(draw(seed, dtype, 5) for seed in (66, 67, 68, 69)))


class Native(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if ctx.planted:
            ctypes.memset(0, 0, 8)
        return g * x.cos(), None


@plant("crash", "a native kernel writes to a null pointer in backward")
def null_pointer(dtype, planted):
    return Program(lambda x: Native.apply(x, planted), (draw(70, dtype, 3, 4),))
