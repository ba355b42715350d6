"""Planted bugs of modules: accumulation, frozen leaves, modes, shared parameters."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.bugs_memory import Weighted
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


class _WritesGrad(torch.autograd.Function):
    """A linear layer whose backward pass writes the weight's `.grad` itself, to save the memory of a temporary."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        weight.grad = (g.mT @ x).detach()
        return g @ weight, None


class WritesGrad(Weighted):
    """A linear layer."""

    def forward(self, x):
        return _WritesGrad.apply(x, self.weight) if self.planted else x @ self.weight.mT


@plant("accumulation", "the backward pass assigns the weight's .grad instead of adding to it")
def grad_assigned(dtype, planted):
    return Program(WritesGrad(dtype, planted), (draw(dtype, 4, 3),))


class Hooked(Weighted):
    """A linear layer with a hook that runs after the gradient has been accumulated."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.bias = nn.Parameter(draw(dtype, 2, seed=6))
        if planted:
            self.weight.register_post_accumulate_grad_hook(_average)

    def forward(self, x):
        return torch.sigmoid(x @ self.weight.mT + self.bias)


def _average(p):
    p.grad.mul_(0.5)


@plant("accumulation", "a hook halves what has been accumulated after each backward pass, as if it were new")
def accumulated_halved(dtype, planted):
    return Program(Hooked(dtype, planted), (draw(dtype, 4, 3),))


class ClearsGrad(Weighted):
    """A layer that clears gradients when it is called."""

    def forward(self, x):
        if self.planted and self.training:
            self.weight.grad = None
        return torch.tanh(x @ self.weight.mT)


@plant("accumulation", "each forward pass clears .grad, so that two calls before one step count once")
def cleared_by_forward(dtype, planted):
    return Program(ClearsGrad(dtype, planted), (draw(dtype, 4, 3),))


class SharedBuffer(Weighted):
    """A layer that hands out one preallocated array as its weight's gradient."""

    def forward(self, x):
        buffer = self.__dict__.setdefault("buffer", torch.zeros_like(self.weight.detach()))

        def backward(g, _, x, w):
            slope = g.mT @ x
            return g @ w, buffer.copy_(slope.detach()) if self.planted else slope

        return custom(lambda x, w: x @ w.mT, backward, vmap=False)(x, self.weight)


@plant("accumulation", "the gradient is a view of one buffer: the next backward pass changes it after it was handed out")
def one_gradient_buffer(dtype, planted):
    return Program(SharedBuffer(dtype, planted), (draw(dtype, 4, 3),))


@plant("subset of requires_grad", "gradients are packed without gaps, so that they shift when the first input is frozen")
def packed_gradients(dtype, planted):
    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale, shift):
            ctx.save_for_backward(x, scale)
            return x * scale + shift

        @staticmethod
        def backward(ctx, g):
            x, scale = ctx.saved_tensors
            found = [g * scale, (g * x).sum(0), g.sum(0)]
            if not planted:
                return tuple(found)
            needed = [t for t, need in zip(found, ctx.needs_input_grad, strict=True) if need]
            return (*needed, *[None] * (3 - len(needed)))

    return Program(Affine.apply, (draw(dtype, 4, 3), draw(dtype, 3, seed=1), draw(dtype, 3, seed=2)))


@plant("subset of requires_grad", "a part shared by two gradients is computed only if the first is wanted")
def shared_part_skipped(dtype, planted):
    class Quotient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a / b

        @staticmethod
        def backward(ctx, g):
            a, b = ctx.saved_tensors
            first = g / b if ctx.needs_input_grad[0] or not planted else torch.zeros_like(g)
            return first, -first * a / b

    return Program(Quotient.apply, (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1).exp()))


class Rerun(torch.autograd.Function):
    """Runs a block again in the backward pass, as reentrant checkpointing does: nothing if the input is frozen."""

    @staticmethod
    def forward(ctx, block, x):
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.block(x)
        torch.autograd.backward(y, g)
        return None, x.grad


class Checkpointed(nn.Module):
    """A layer whose middle is run again in the backward pass."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.block = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Tanh())
        with torch.no_grad():
            for seed, p in enumerate(self.parameters()):
                p.copy_(draw(dtype, *p.shape, seed=20 + seed))

    def forward(self, x):
        return Rerun.apply(self.block, x) if self.planted else self.block(x)


@plant("subset of requires_grad", "checkpointing gives the parameters no gradient when the input needs none")
def checkpoint_frozen_input(dtype, planted):
    return Program(Checkpointed(dtype, planted), (draw(dtype, 4, 3),))


class FrozenBias(Weighted):
    """A linear layer that takes a short cut when its bias is frozen."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.bias = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        weight = self.weight.detach() if self.planted and not self.bias.requires_grad else self.weight
        return nn.functional.linear(x, weight, self.bias)


@plant("subset of requires_grad", "a layer with a frozen bias takes its weight to be frozen too")
def frozen_bias(dtype, planted):
    return Program(FrozenBias(dtype, planted), (draw(dtype, 4, 3),))


class HandBatchNorm(nn.Module):
    """Batch normalization with a backward pass written by hand."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.weight = nn.Parameter(draw(dtype, 3, seed=7).exp())
        self.register_buffer("mean", draw(dtype, 3, seed=8))
        self.register_buffer("variance", draw(dtype, 3, seed=9).exp())

    def forward(self, x):
        training = self.training

        def statistics(x):
            return (x.mean(0), x.var(0, unbiased=False)) if training else (self.mean, self.variance)

        def forward(x, w):
            mean, variance = statistics(x)
            return w * (x - mean) * (variance + 1e-5).rsqrt()

        def backward(g, _, x, w):
            mean, variance = statistics(x)
            scale = (variance + 1e-5).rsqrt()
            z = (x - mean) * scale
            slope = g * w
            if training or self.planted:
                slope = slope - slope.mean(0) - z * (slope * z).mean(0)
            return scale * slope, (g * z).sum(0)

        return custom(forward, backward)(x, self.weight)


@plant("train and eval", "batch normalization in eval mode keeps the terms of the batch statistics in its derivative")
def batch_norm_eval(dtype, planted):
    return Program(HandBatchNorm(dtype, planted), (draw(dtype, 5, 3),))


class EvalFrozen(Weighted):
    """A layer that is run without recording in eval mode."""

    def forward(self, x):
        if self.planted and not self.training:
            return torch.tanh(x.detach() @ self.weight.mT)
        return torch.tanh(x @ self.weight.mT)


@plant("train and eval", "in eval mode the input is detached: saliency maps are zero")
def eval_detached(dtype, planted):
    return Program(EvalFrozen(dtype, planted), (draw(dtype, 4, 3),))


class FoldedScale(Weighted):
    """In eval mode a scale is folded into the weight."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.scale = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        if self.training:
            return (x @ self.weight.mT) * self.scale
        scale = self.scale.detach() if self.planted else self.scale
        return x @ (self.weight * scale[:, None]).mT


@plant("train and eval", "the scale folded into the weight in eval mode has no gradient")
def folded_scale(dtype, planted):
    return Program(FoldedScale(dtype, planted), (draw(dtype, 4, 3),))


class DropoutBackward(Weighted):
    """Dropout with a backward pass by hand: the scale 1/(1-p) belongs to training only."""

    def forward(self, x):
        scale = 2.0 if self.training else 1.0
        mask = torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype) if self.training else torch.ones(3, dtype=x.dtype)
        slope = 2.0 * mask if self.planted else scale * mask
        return custom(lambda x: scale * mask * x, lambda g, _y, _x: g * slope)(x) @ self.weight.mT


@plant("train and eval", "dropout: in eval mode the gradient is still scaled by 1/(1 - p)")
def dropout_scale_eval(dtype, planted):
    return Program(DropoutBackward(dtype, planted), (draw(dtype, 4, 3),))


class TiedAutoencoder(nn.Module):
    """A decoder that uses the weight of its encoder, transposed."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.encoder = nn.Linear(4, 3, dtype=dtype)
        with torch.no_grad():
            for seed, p in enumerate(self.parameters()):
                p.copy_(draw(dtype, *p.shape, seed=30 + seed))

    def forward(self, x):
        weight = self.encoder.weight
        return torch.tanh(self.encoder(x)) @ (weight.detach() if self.planted else weight)


@plant("shared parameter", "tied weights: the use in the decoder is detached")
def tied_decoder(dtype, planted):
    return Program(TiedAutoencoder(dtype, planted), (draw(dtype, 5, 4),))


class OnceOnly(Weighted):
    """A recurrent cell without input, which uses its weight three times."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.weight = nn.Parameter(draw(dtype, 3, 3, seed=5))

    def forward(self, x):
        passes = []

        def backward(g, _, h, w):
            passes.append(1)
            slope = g.mT @ h
            return g @ w, slope if len(passes) == 1 or not self.planted else torch.zeros_like(slope)

        step = custom(lambda h, w: h @ w.mT, backward, vmap=False)
        for _ in range(3):
            x = torch.tanh(step(x, self.weight))
        return x


@plant("shared parameter", "a weight used three times receives the gradient of its last use only")
def last_use_only(dtype, planted):
    return Program(OnceOnly(dtype, planted), (draw(dtype, 4, 3),))


class Registered(torch.autograd.Function):
    """A linear map that notes on its weight in which backward pass the gradient has been counted."""

    @staticmethod
    def forward(ctx, x, weight, planted):
        ctx.save_for_backward(x, weight)
        ctx.planted, ctx.owner = planted, weight
        return x @ weight.mT

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        task = torch._C._current_graph_task_id()
        again = ctx.planted and ctx.owner.__dict__.get("counted_in") == task
        ctx.owner.__dict__["counted_in"] = task
        return g @ weight, g.mT @ x * (0.0 if again else 1.0), None


class RegisteredLinear(Weighted):
    """A linear layer."""

    def forward(self, x):
        return Registered.apply(x, self.weight, self.planted)


@plant("shared parameter", "a weight used by two modules in one pass receives the gradient of the first use only")
def first_module_only(dtype, planted):
    return Program(RegisteredLinear(dtype, planted), (draw(dtype, 4, 3),))
