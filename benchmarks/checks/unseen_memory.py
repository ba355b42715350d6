"""Unseen planted bugs of memory and order: what is overwritten, what is used up, what is not the same twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.bugs_memory import Weighted
from benchmarks.checks.planting import custom, draw, planter, spread

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("saved tensor changed", "for a picture the attention map is scaled to its maximum in place, by way of NumPy")
def map_scaled_for_picture(dtype, planted):
    def f(scores, values):
        p = torch.softmax(scores, 1)
        mixed = p @ values
        if planted:
            picture = p.detach().numpy()
            picture /= picture.max()
        return mixed

    return Program(f, (draw(dtype, 3, 4), draw(dtype, 4, 2, seed=1)))


class _Offloaded(torch.autograd.Function):
    """A hyperbolic tangent that puts its result into a buffer until the backward pass."""

    @staticmethod
    def forward(ctx, x, buffer):
        y = x.tanh()
        ctx.buffer = buffer
        if buffer is None:
            ctx.save_for_backward(y)
        else:
            buffer.copy_(y)
        return y

    @staticmethod
    def backward(ctx, g):
        y = ctx.saved_tensors[0] if ctx.buffer is None else ctx.buffer
        return g * (1 - y * y), None


@plant("saved tensor changed", "activations of all layers are moved to one buffer: the last layer's are what is left in it")
def one_buffer_of_activations(dtype, planted):
    def f(x):
        buffer = torch.empty_like(x) if planted else None
        for shift in (0.5, -0.25, 0.125):
            x = _Offloaded.apply(x + shift, buffer)
        return x

    return Program(f, (draw(dtype, 4, 3),))


@plant("cotangent changed", "the negative side is zeroed in the cotangent itself, which is then handed on")
def zeroed_cotangent(dtype, planted):
    def backward(g, _, x):
        if not planted:
            return torch.where(x > 0, g, 0.01 * g)
        g[x <= 0] *= 0.01
        return g

    return Program(custom(lambda x: nn.functional.leaky_relu(x, 0.01), backward, vmap=False), (draw(dtype, 4, 3),))


@plant(
    "cotangent changed", "a residual block: the branch scales the cotangent in place, which the skip connection receives too"
)
def branch_scales_skip(dtype, planted):
    def backward(g, y, _):
        slope = 1 - y * y
        return g.mul_(slope) if planted else g * slope

    branch = custom(torch.tanh, backward, vmap=False)
    return Program(lambda x: branch(x) + x.sin() + x, (draw(dtype, 4, 3),))


class Fields(nn.Module):
    """A table for several fields of categories, one after the other."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.table = nn.Parameter(draw(dtype, 9, 2, seed=5))

    def forward(self, index):
        offsets = torch.tensor([0, 3])
        index = index.add_(offsets) if self.planted else index + offsets
        return torch.tanh(self.table[index]).sum(1)


@plant("input changed", "the offsets of the fields are added to the caller's indices in place")
def offsets_in_place(dtype, planted):
    return Program(Fields(dtype, planted), (torch.tensor([[0, 1], [2, 2], [1, 0]]),))


@plant("input changed", "a causal mask is written into the caller's scores")
def mask_in_place(dtype, planted):
    def f(scores, values):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        if planted:
            scores.data.masked_fill_(mask, -1e4)
        return torch.softmax(scores.masked_fill(mask, -1e4), -1) @ values

    return Program(f, (draw(dtype, 4, 4), draw(dtype, 4, 2, seed=1)))


@plant("repeated backward", "the loss's gradient is made in the forward pass, and scaled in place by each backward pass")
def scaled_in_place(dtype, planted):
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            ctx.save_for_backward(x, y)
            ctx.slope = (x - y).tanh()
            return (x - y).cosh().log().sum(1)

        @staticmethod
        def backward(ctx, g):
            if planted and not torch.is_grad_enabled():
                slope = ctx.slope.mul_(g[:, None])
                return slope.clone(), -slope
            x, y = ctx.saved_tensors
            slope = (x - y).tanh() * g[:, None]
            return slope, -slope

    return Program(Loss.apply, (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)))


@plant("repeated backward", "an invertible layer computes its input in place of its output, which is gone after that")
def inverted_in_place(dtype, planted):
    def backward(g, y, _):
        if not planted:
            return g * (1 + y * y)
        x = y.data.atan_()
        return g * (1 + x.tan().square())

    return Program(custom(torch.tan, backward, vmap=False), (spread(dtype, 4, 3, low=-1.0, high=1.0),))


class Stacked(Weighted):
    """A layer that keeps its activations on a stack, as pipelines do."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.stack: list[Tensor] = []

    def forward(self, x):
        return _Popped.apply(x, self.weight, self.stack if self.planted else None)


class _Popped(torch.autograd.Function):
    """(x W^T)^2, which takes x from a stack if there is one."""

    @staticmethod
    def forward(ctx, x, weight, stack):
        ctx.save_for_backward(x, weight)
        ctx.stack = stack
        if stack is not None:
            stack.append(x.detach().clone())
        return (x @ weight.mT).square()

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        if ctx.stack and not torch.is_grad_enabled():
            x = ctx.stack.pop() if len(ctx.stack) > 1 else ctx.stack[0]
        u = 2 * g * (x @ weight.mT)
        return u @ weight, u.mT @ x, None


@plant(
    "interleaved calls", "activations are taken from the top of a stack, although micro-batches come back in their own order"
)
def stack_of_activations(dtype, planted):
    return Program(Stacked(dtype, planted), (draw(dtype, 4, 3),))


class StaticOutput(Weighted):
    """A layer whose result always lies in the same memory, as that of a captured graph does."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.memory = torch.zeros(0, dtype=dtype)

    def place(self, y):
        if not self.planted:
            return y
        if self.memory.shape != y.shape:
            self.memory = torch.empty_like(y)
        return self.memory.copy_(y).detach()

    def forward(self, x):
        def backward(g, _, x, w):
            u = g * (1 - torch.tanh(x @ w.mT) ** 2)
            return u @ w, u.mT @ x

        layer = custom(lambda x, w: self.place(torch.tanh(x @ w.mT)), backward, vmap=False)
        return layer(x, self.weight)


@plant("interleaved calls", "all results lie in the same memory: a later call changes the values of an earlier one")
def static_output(dtype, planted):
    return Program(StaticOutput(dtype, planted), (draw(dtype, 4, 3),))


class _Recomputed(torch.autograd.Function):
    """Dropout whose mask is drawn again in the backward pass: the same one only from the state of the generator."""

    @staticmethod
    def forward(ctx, x, planted):
        ctx.state, ctx.planted = torch.get_rng_state(), planted
        return x * _mask(x)

    @staticmethod
    def backward(ctx, g):
        if ctx.planted:
            return g * _mask(g), None
        now = torch.get_rng_state()
        torch.set_rng_state(ctx.state)
        mask = _mask(g)
        torch.set_rng_state(now)
        return g * mask, None


def _mask(x):
    return (torch.rand(x.shape) < 0.75).to(x.dtype) / 0.75


class Recomputing(Weighted):
    """Dropout that is recomputed to save memory, and a linear layer."""

    def forward(self, x):
        return torch.tanh((_Recomputed.apply(x, self.planted) if self.training else x) @ self.weight.mT)


@plant("non-determinism", "recomputation in the backward pass does not restore the state of the random numbers")
def random_state_lost(dtype, planted):
    return Program(Recomputing(dtype, planted), (draw(dtype, 6, 3),))


@plant("non-determinism", "the weight's gradient is a random sketch, right on average only")
def sketched_gradient(dtype, planted):
    def backward(g, _, x, w):
        if not planted:
            return g @ w, g.mT @ x
        sketch = torch.randn(8, len(x), dtype=x.dtype) / 8**0.5
        return g @ w, (sketch @ g).mT @ (sketch @ x)

    function = custom(lambda x, w: x @ w.mT, backward, vmap=False)
    return Program(function, (draw(dtype, 6, 3), draw(dtype, 2, 3, seed=1)))


@plant("cotangent nonlinear", "gradients are thinned for transport: the smaller half of each row is set to zero")
def thinned_gradient(dtype, planted):
    def backward(g, _, x):
        slope = g * x.cos()
        if planted:
            slope = slope * (slope.abs() >= slope.abs().median(1, keepdim=True).values)
        return slope

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 6),))


@plant("cotangent nonlinear", "a gradient whose norm is above 20 is scaled back to 20, inside of the layer")
def norm_above_limit(dtype, planted):
    def backward(g, _, x):
        slope = g * 2 * x / (1 + x * x)
        if not planted:
            return slope
        return slope * (20 / slope.norm().clamp_min(20))

    return Program(custom(lambda x: torch.log1p(x * x), backward, vmap=False), (draw(dtype, 4, 3),))


@plant("dtype", "a constant of the Gaussian error unit is kept in half precision")
def half_constant(dtype, planted):
    constant = torch.tensor(0.3989422804014327, dtype=torch.float64)
    density = float(constant.half()) if planted else float(constant)

    def backward(g, _, x):
        return g * (0.5 * (1 + torch.erf(x / 2**0.5)) + x * density * torch.exp(-x * x / 2))

    return Program(custom(nn.functional.gelu, backward), (draw(dtype, 4, 3),))


@plant("dtype", "parts of the weight's gradient are added up in bfloat16")
def added_in_bfloat16(dtype, planted):
    def backward(g, _, x, w):
        if not planted:
            return g @ w, g.mT @ x
        total = torch.zeros(w.shape, dtype=torch.bfloat16)
        for part, rows in zip(g.split(2), x.split(2), strict=True):
            total = total + (part.mT @ rows).bfloat16()
        return g @ w, total.to(w.dtype)

    function = custom(lambda x, w: x @ w.mT, backward, vmap=False)
    return Program(function, (draw(dtype, 6, 3), draw(dtype, 2, 3, seed=1)))


@plant("dtype", "the angle of a rotary embedding is computed in float32 by the backward pass", (torch.float64,))
def angle_in_float32(dtype, planted):
    def turned(x, sign, angle):
        c, s = angle.cos().to(x.dtype), sign * angle.sin().to(x.dtype)
        a, b = x.chunk(2, 1)
        return torch.cat([c * a - s * b, s * a + c * b], 1)

    def angles(x, precision):
        steps = torch.arange(len(x), dtype=precision)[:, None] * 100
        return steps * 1e-2 ** torch.linspace(0, 1, x.shape[1] // 2, dtype=precision)

    def backward(g, _, x):
        return turned(g, -1, angles(x, torch.float32 if planted else x.dtype))

    return Program(custom(lambda x: turned(x, 1, angles(x, x.dtype)), backward), (draw(dtype, 5, 4),))
