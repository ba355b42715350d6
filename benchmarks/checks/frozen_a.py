"""Frozen planted bugs, first part: functions whose first derivative is wrong somewhere. Not to be tuned upon."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .bug import Bug, Kind, Program

Make = Callable[[torch.dtype, bool], Program]


def planter(bugs: list[Bug]) -> Callable[[Kind, str], Callable[[Make], Make]]:
    """``@plant(kind, about)``, which adds a bug to a list, named like the function that makes its program."""

    def plant(kind: Kind, about: str) -> Callable[[Make], Make]:
        def add(make: Make) -> Make:
            bugs.append(Bug(f"frozen {make.__name__.replace('_', ' ')}", kind, about, make))
            return make

        return add

    return plant


BUGS: list[Bug] = []
plant = planter(BUGS)


def draw(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    """Standard normal numbers, the same in every dtype up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Scores(Function):
    @staticmethod
    def forward(ctx, q, k, planted):
        ctx.save_for_backward(q, k)
        ctx.planted = planted
        return q @ k.T / math.sqrt(q.shape[1])

    @staticmethod
    def backward(ctx, g):
        q, k = ctx.saved_tensors
        scale = math.sqrt(q.shape[1])
        return (g @ k) / (1 if ctx.planted else scale), (g.T @ q) / scale, None


@plant("factor", "attention scores: the queries' gradient forgets 1 / sqrt(d)")
def attention_scale(dtype, planted):
    q, k = draw(1, dtype, 4, 6), draw(2, dtype, 3, 6)
    return Program(lambda a, b: Scores.apply(a, b, planted).softmax(-1), (q, k))


class Solve(Function):
    @staticmethod
    def forward(ctx, a, b, planted):
        x = torch.linalg.solve(a, b)
        ctx.save_for_backward(a, x)
        ctx.planted = planted
        return x

    @staticmethod
    def backward(ctx, g):
        a, x = ctx.saved_tensors
        adjoint = torch.linalg.solve(a if ctx.planted == "transposition" else a.mT, g)
        sign = 1 if ctx.planted == "sign" else -1
        return sign * adjoint @ x.mT, adjoint, None


def _system(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return draw(3, dtype, 4, 4) + 4 * torch.eye(4, dtype=dtype), draw(4, dtype, 4, 2)


@plant("sign", "linear solve: the matrix's gradient lacks its minus")
def linear_solve_sign(dtype, planted):
    return Program(lambda a, b: Solve.apply(a, b, "sign" if planted else ""), _system(dtype))


@plant("transposition", "linear solve: the adjoint system is solved with the matrix itself")
def linear_solve_adjoint(dtype, planted):
    return Program(lambda a, b: Solve.apply(a, b, "transposition" if planted else ""), _system(dtype))


class Correlate(Function):
    @staticmethod
    def forward(ctx, x, w, planted):
        ctx.save_for_backward(x, w)
        ctx.planted = planted
        return F.conv1d(x, w)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        k = w.shape[-1]
        back = w.transpose(0, 1) if ctx.planted else w.transpose(0, 1).flip(-1)
        gw = F.conv1d(x.transpose(0, 1), g.transpose(0, 1)).transpose(0, 1)
        return F.conv1d(F.pad(g, (k - 1, k - 1)), back), gw, None


@plant("transposition", "1-d convolution by hand: the kernel is not flipped on the way back")
def unflipped_kernel(dtype, planted):
    return Program(lambda x, w: Correlate.apply(x, w, planted), (draw(5, dtype, 2, 3, 7), draw(6, dtype, 4, 3, 3)))


class RmsNorm(Function):
    @staticmethod
    def forward(ctx, x, w, planted):
        ctx.save_for_backward(x, w)
        ctx.planted = planted
        return x * w * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        projection = x * r**3 * (g * w * x).mean(-1, keepdim=True)
        return g * w * r - (0 if ctx.planted else projection), (g * x * r).sum(0), None


@plant("missing term", "RMS norm: the derivative of the root mean square is left out")
def rms_norm(dtype, planted):
    return Program(lambda x, w: RmsNorm.apply(x, w, planted), (draw(7, dtype, 3, 5), 1 + 0.3 * draw(8, dtype, 5)))


def _fixed_point(z: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(z @ w + x)


class Equilibrium(Function):
    """z = tanh(z W + x), solved by iteration; implicit function theorem backward (Bai et al. 2019)."""

    @staticmethod
    def forward(ctx, x, w, planted):
        z = torch.zeros_like(x)
        for _ in range(80):
            z = _fixed_point(z, x, w)
        ctx.save_for_backward(z, w)
        ctx.planted = planted
        return z

    @staticmethod
    def backward(ctx, g):
        z, w = ctx.saved_tensors
        slope = 1 - z.square()
        u = g
        for _ in range(0 if ctx.planted else 80):
            u = g + (u * slope) @ w.T
        return u * slope, z.T @ (u * slope), None


@plant("missing term", "equilibrium layer: one step backward instead of the inverse of I - J")
def equilibrium(dtype, planted):
    w = 0.15 * draw(10, dtype, 4, 4)
    return Program(lambda x, w: Equilibrium.apply(x, w, planted), (draw(9, dtype, 3, 4), w))


class Ring(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return x.sin() + 0.5 * x.roll(1)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        left = torch.cat([g[1:], g.new_zeros(1)]) if ctx.planted else g.roll(-1)
        return g * x.cos() + 0.5 * left, None


@plant("one element", "periodic stencil over 2,000 points: the way back is not periodic")
def periodic_stencil(dtype, planted):
    return Program(lambda x: Ring.apply(x, planted), (draw(11, dtype, 2000),))


class Mirror(Function):
    """Pads an image by one reflected pixel."""

    @staticmethod
    def forward(ctx, x, planted):
        ctx.planted = planted
        return F.pad(x[None], (1, 1, 1, 1), mode="reflect")[0]

    @staticmethod
    def backward(ctx, g):
        rows = F.pad(g[:, 0:1], (0, 0, 1, g.shape[1] - 4)) + F.pad(g[:, -1:], (0, 0, g.shape[1] - 4, 1)) + g[:, 1:-1]
        back = F.pad(rows[..., 0:1], (1, g.shape[2] - 4)) + F.pad(rows[..., -1:], (g.shape[2] - 4, 1)) + rows[..., 1:-1]
        if ctx.planted:
            lost = torch.zeros_like(back)
            lost[:, 1, 1] = g[:, 0, 0]
            back = back - lost
        return back, None


@plant("one element", "reflection padding of 36 x 40 pixels: one corner is not folded back")
def reflected_corner(dtype, planted):
    return Program(lambda x: Mirror.apply(x, planted), (draw(12, dtype, 1, 36, 40),))


class Gelu(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return F.gelu(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if not ctx.planted:
            return g * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)), None
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (x + 0.044715 * x**3))
        return g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)), None


@plant("small relative error", "GELU: exact forward, derivative of the tanh approximation")
def gelu_approximation(dtype, planted):
    return Program(lambda x: Gelu.apply(x, planted), (draw(13, dtype, 5, 7),))


class Standardize(Function):
    @staticmethod
    def forward(ctx, x, planted):
        d = x - x.mean(-1, keepdim=True)
        ctx.save_for_backward(x)
        ctx.planted = planted
        return d * (d.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        d = x - x.mean(-1, keepdim=True)
        r = (d.square().mean(-1, keepdim=True) + (1e-3 if ctx.planted else 1e-5)).rsqrt()
        y = d * r
        return r * (g - g.mean(-1, keepdim=True) - y * (g * y).mean(-1, keepdim=True)), None


@plant("small relative error", "standardization: another epsilon backward (1e-3) than forward (1e-5)")
def other_epsilon(dtype, planted):
    return Program(lambda x: Standardize.apply(x, planted), (draw(14, dtype, 4, 9),))


class Decay(Function):
    @staticmethod
    def forward(ctx, v, planted):
        ctx.save_for_backward(v)
        ctx.planted = planted
        return 1e-6 * v.square().sum()

    @staticmethod
    def backward(ctx, g):
        (v,) = ctx.saved_tensors
        return g * 1e-6 * v * (1 if ctx.planted else 2), None


@plant("tiny gradient", "weight decay of 1e-6 beside a data term: half its gradient")
def weight_decay(dtype, planted):
    data = draw(15, dtype, 6, 3)

    def loss(w: Tensor, v: Tensor) -> Tensor:
        return (data @ w).square().mean() + Decay.apply(v, planted)

    return Program(loss, (draw(16, dtype, 3), draw(17, dtype, 5)))


class Huber(Function):
    @staticmethod
    def forward(ctx, r, planted):
        ctx.save_for_backward(r)
        ctx.planted = planted
        return torch.where(r.abs() <= 1, r * r / 2, r.abs() - 0.5)

    @staticmethod
    def backward(ctx, g):
        (r,) = ctx.saved_tensors
        return g * (r if ctx.planted else torch.where(r.abs() <= 1, r, r.sign())), None


@plant("region of x", "Huber loss: the gradient is not clipped beyond the threshold, where no residual given lies")
def huber_tail(dtype, planted):
    return Program(lambda r: Huber.apply(r, planted), (0.9 * torch.tanh(draw(18, dtype, 4, 5)),))


class Interpolate(Function):
    """Linear interpolation in a table on [0, 1], constant outside."""

    @staticmethod
    def forward(ctx, x, table, planted):
        ctx.save_for_backward(x, table)
        ctx.planted = planted
        return Interpolate.at(x, table)[0]

    @staticmethod
    def at(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cells = table.shape[0] - 1
        u = x.clamp(0, 1) * cells
        i = u.detach().floor().clamp(max=cells - 1).long()
        slope = (table[i + 1] - table[i]) * cells
        return table[i] + (u - i) * (table[i + 1] - table[i]), slope, u - i, i

    @staticmethod
    def backward(ctx, g):
        x, table = ctx.saved_tensors
        _, slope, t, i = Interpolate.at(x, table)
        inside = torch.ones_like(x) if ctx.planted else ((x > 0) & (x < 1)).to(x.dtype)
        gt = torch.zeros_like(table).index_add(0, i, g * (1 - t)).index_add(0, i + 1, g * t)
        return g * slope * inside, gt, None


@plant("region of x", "table lookup: a gradient for points beyond the table's ends, where none of the given lies")
def table_ends(dtype, planted):
    x = 0.05 + 0.9 * torch.sigmoid(draw(19, dtype, 7))
    return Program(lambda x, table: Interpolate.apply(x, table, planted), (x, draw(20, dtype, 5)))


class ChannelScale(Function):
    @staticmethod
    def forward(ctx, x, s, planted):
        ctx.save_for_backward(x, s)
        ctx.planted = planted
        return x * s[None, :, None]

    @staticmethod
    def backward(ctx, g):
        x, s = ctx.saved_tensors
        return g * s[None, :, None], (g * x).sum((0, 1) if ctx.planted else (0, 2)), None


@plant("broadcast", "scale per channel: summed over channels instead of positions, as many of the one as of the other")
def channel_scale(dtype, planted):
    return Program(lambda x, s: ChannelScale.apply(x, s, planted), (draw(21, dtype, 2, 4, 4), draw(22, dtype, 4)))


class MaskedMean(Function):
    @staticmethod
    def forward(ctx, x, mask, planted):
        ctx.save_for_backward(mask)
        ctx.planted = planted
        return (x * mask).sum() / mask.sum()

    @staticmethod
    def backward(ctx, g):
        (mask,) = ctx.saved_tensors
        return g * mask / (mask.numel() if ctx.planted else mask.sum()), None, None


@plant("reduction", "masked mean: backward divides by the number of elements, not of unmasked ones")
def masked_mean(dtype, planted):
    mask = (draw(23, torch.float64, 4, 6) > -0.5).to(dtype)
    target = draw(24, dtype, 4, 6)
    return Program(lambda x: MaskedMean.apply((x - target).square(), mask, planted), (draw(25, dtype, 4, 6),))


@plant("cut graph", "the norm of a unit vector's denominator is read with .item()")
def norm_item(dtype, planted):
    return Program(lambda x: x / (x.norm().item() if planted else x.norm()), (draw(26, dtype, 6),))


@plant("cut graph", "gradient penalty: the inner gradient is taken without create_graph")
def gradient_penalty(dtype, planted):
    w = draw(27, dtype, 5, 3)

    def loss(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.view_as(x).requires_grad_()
            score = torch.tanh(leaf @ w).square().sum(1)
            (inner,) = torch.autograd.grad(score.sum(), leaf, create_graph=not planted, retain_graph=True)
        return score.mean() + 10 * (inner.norm(dim=1) - 1).square().mean()

    return Program(loss, (draw(28, dtype, 4, 5),))


class Angle(Function):
    @staticmethod
    def forward(ctx, y, x, planted):
        ctx.save_for_backward(y, x)
        ctx.planted = planted
        return torch.atan2(y, x)

    @staticmethod
    def backward(ctx, g):
        y, x = ctx.saved_tensors
        square = x * x + y * y
        gy, gx = g * x / square, -g * y / square
        return (gx, gy, None) if ctx.planted else (gy, gx, None)


@plant("wrong argument", "atan2: the gradients are returned in the wrong order")
def angle_order(dtype, planted):
    return Program(lambda y, x: Angle.apply(y, x, planted), (draw(29, dtype, 3, 4), draw(30, dtype, 3, 4)))
