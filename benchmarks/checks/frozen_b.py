"""Frozen planted bugs, second part: functions wrong in another mode, for some cotangents or in some layouts. Frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import Function

from .bug import Bug, Program
from .frozen_a import draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


class Softplus(Function):
    @staticmethod
    def forward(ctx, x, planted):
        slope = torch.sigmoid(x)
        ctx.save_for_backward(slope if planted else x)
        ctx.planted = planted
        return F.softplus(x)

    @staticmethod
    def backward(ctx, g):
        (saved,) = ctx.saved_tensors
        return g * (saved if ctx.planted else torch.sigmoid(saved)), None


@plant("second order", "softplus: its slope is computed in forward and saved, a constant for double backward")
def saved_slope(dtype, planted):
    return Program(lambda x: Softplus.apply(x, planted), (draw(41, dtype, 3, 5),))


class BiasAct(Function):
    """SiLU(x + b), its backward another Function with a backward of its own, as fused kernels have."""

    @staticmethod
    def forward(ctx, x, b, planted):
        ctx.save_for_backward(x, b)
        ctx.planted = planted
        return F.silu(x + b)

    @staticmethod
    def backward(ctx, g):
        x, b = ctx.saved_tensors
        gx = BiasActGrad.apply(g, x + b, ctx.planted)
        return gx, gx.sum(0), None


class BiasActGrad(Function):
    @staticmethod
    def forward(ctx, g, z, planted):
        ctx.save_for_backward(g, z)
        ctx.planted = planted
        s = torch.sigmoid(z)
        return g * (s + z * s * (1 - s))

    @staticmethod
    def backward(ctx, gg):
        g, z = ctx.saved_tensors
        s = torch.sigmoid(z)
        slope = s * (1 - s)
        second = slope * ((1 if ctx.planted else 2) + z * (1 - 2 * s))
        return gg * (s + z * slope), gg * g * second, None


@plant("second order", "bias and SiLU fused: a term of the second derivative counted once instead of twice")
def fused_second(dtype, planted):
    return Program(lambda x, b: BiasAct.apply(x, b, planted), (draw(42, dtype, 3, 4), draw(43, dtype, 4)))


class Gate(Function):
    @staticmethod
    def forward(x, y, planted):
        return x * torch.sigmoid(y)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, y, ctx.planted = inputs
        ctx.save_for_backward(x, y)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        s = torch.sigmoid(y)
        return g * s, g * x * s * (1 - s), None

    @staticmethod
    def jvp(ctx, dx, dy, _):
        x, y = ctx.saved_tensors
        s = torch.sigmoid(y)
        tangent = dx * s
        return tangent if ctx.planted else tangent + x * s * (1 - s) * dy


@plant("forward mode", "gated unit: the jvp leaves out the gate's tangent")
def gate_tangent(dtype, planted):
    return Program(lambda x, y: Gate.apply(x, y, planted), (draw(44, dtype, 3, 4), draw(45, dtype, 3, 4)))


class Dice(Function):
    """1 - 2 <p, t> / (<p, p> + <t, t>)."""

    @staticmethod
    def forward(ctx, p, t, planted):
        if p.shape != t.shape:
            raise ValueError("one target for each prediction")
        ctx.save_for_backward(p, t)
        ctx.planted = planted
        return 1 - 2 * (p * t).sum() / (p.square().sum() + t.square().sum())

    @staticmethod
    def backward(ctx, g):
        p, t = ctx.saved_tensors
        total = p.square().sum() + t.square().sum()
        gp = -2 * t / total + 4 * p * (p * t).sum() / total**2
        return (gp if ctx.planted else g * gp), None, None


@plant("cotangent ignored", "Dice loss: returns its derivative, whatever the loss is multiplied by")
def dice_loss(dtype, planted):
    target = (draw(46, torch.float64, 4, 5) > 0).to(dtype)
    return Program(lambda p: Dice.apply(p, target, planted), (torch.sigmoid(draw(47, dtype, 4, 5)),))


class GuidedRelu(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (g.clamp(min=0) if ctx.planted else g) * (x > 0), None


@plant("cotangent nonlinear", "ReLU left in the guided mode of a saliency map: negative cotangents are dropped")
def guided_relu(dtype, planted):
    return Program(lambda x: GuidedRelu.apply(x, planted), (draw(48, dtype, 4, 5),))


class Tanh(Function):
    """A kernel that believes rows without gaps between them if the elements of a row have none."""

    @staticmethod
    def forward(ctx, x, planted):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        ctx.planted = planted
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        rows = g.dim() == 2 and g.stride(1) == 1 and g.stride(0) >= g.shape[1]
        if ctx.planted and rows:
            g = torch.as_strided(g, g.shape, (g.shape[1], 1))
        return g * (1 - y * y), None


@plant("cotangent layout", "tanh kernel: reads a cotangent that is a slice of wider rows as if it were packed")
def sliced_cotangent(dtype, planted):
    return Program(lambda x: Tanh.apply(x, planted), (draw(49, dtype, 4, 6),))


class RowScale(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        flat = g.view(-1) if ctx.planted else g.reshape(-1)
        return (flat * x.exp().reshape(-1)).reshape(x.shape), None


@plant("cotangent layout", "view(-1) of the cotangent: an error where it is transposed or expanded")
def viewed_cotangent(dtype, planted):
    return Program(lambda x: RowScale.apply(x, planted), (0.5 * draw(50, dtype, 3, 5),))


class Swish(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return F.silu(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        slope = g * (s + x * s * (1 - s))
        if not ctx.planted:
            return slope, None
        out = torch.empty_like(x)
        torch.as_strided(out, (out.numel(),), (1,)).copy_(slope.reshape(-1))
        return out, None


@plant("input layout", "SiLU kernel: the result has the input's memory format, but is written row by row")
def channels_last_result(dtype, planted):
    return Program(lambda x: Swish.apply(x, planted), (draw(51, dtype, 2, 3, 4, 5),))


class Square(Function):
    @staticmethod
    def forward(ctx, x, planted):
        ctx.save_for_backward(x)
        ctx.planted = planted
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if ctx.planted and x.is_contiguous():
            x = torch.as_strided(x, x.shape, x.stride(), 0)
        return 3 * g * x * x, None


@plant("input layout", "backward reads the input from the start of its storage, whatever its offset")
def storage_offset(dtype, planted):
    return Program(lambda x: Square.apply(x, planted), (draw(52, dtype, 3, 4),))
