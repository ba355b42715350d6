"""Planted bugs of memory: what is saved, cached or written to between the passes of one or several calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


class Weighted(nn.Module):
    """A weight of shape [2, 3], and whether the error is there."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.planted = planted
        self.weight = nn.Parameter(draw(dtype, 2, 3, seed=5))


def _square(y: Tensor) -> Tensor:
    """y*y, which saves y."""
    return custom(lambda y: y * y, lambda g, _, y: 2 * g * y)(y)


@plant("saved tensor changed", "an in-place ReLU through .data changes what the square before it has saved")
def relu_over_saved(dtype, planted):
    def f(x):
        y = x * 1.5
        z = _square(y)
        if planted:
            y.data.relu_()
        return z.sum(1)

    return Program(f, (draw(dtype, 4, 3),))


@plant("saved tensor changed", "the result of exp is centered through .data, and exp has saved it")
def centered_over_saved(dtype, planted):
    def f(x):
        y = x.exp()
        z = y * 1.0
        if planted:
            y.data.sub_(y.data.mean())
        return z

    return Program(f, (draw(dtype, 4, 3),))


class Workspace(Weighted):
    """Writes what the backward pass needs into one work space for all calls."""

    def forward(self, x):
        space = self._space(x) if self.planted else None

        def backward(g, _, x, w):
            z = x if space is None else space
            return (g @ w) * z.cos(), g.mT @ z.sin()

        return custom(lambda x, w: x.sin() @ w.mT, backward, vmap=False)(x, self.weight)

    def _space(self, x):
        space = self.__dict__.get("space")
        if space is None or space.shape != x.shape:
            space = self.__dict__["space"] = torch.empty_like(x)
        return space.copy_(x.detach())


@plant("interleaved calls", "one work space for all calls: a second forward pass overwrites what the first has put there")
def one_workspace(dtype, planted):
    return Program(Workspace(dtype, planted), (draw(dtype, 4, 3),))


class LastInput(Weighted):
    """Keeps its last input on itself for the backward pass, as layers of older libraries did."""

    def forward(self, x):
        self.__dict__["last"] = x.detach()

        def backward(g, _, x, w):
            z = self.__dict__["last"] if self.planted else x
            return g @ w, g.mT @ z

        return custom(lambda x, w: x @ w.mT, backward, vmap=False)(x, self.weight)


@plant("interleaved calls", "the input is kept on the module: a later call replaces it")
def input_on_module(dtype, planted):
    return Program(LastInput(dtype, planted), (draw(dtype, 4, 3),))


@plant("interleaved calls", "what is saved stands on the class, shared by all calls")
def saved_on_class(dtype, planted):
    class Softplus(torch.autograd.Function):
        slope: Tensor | None = None

        @staticmethod
        def forward(ctx, x):
            Softplus.slope = torch.sigmoid(x)
            ctx.save_for_backward(x)
            return nn.functional.softplus(x)

        @staticmethod
        def backward(ctx, g):
            return g * (Softplus.slope if planted else torch.sigmoid(ctx.saved_tensors[0]))

    return Program(Softplus.apply, (draw(dtype, 4, 3),))


@plant("input changed", "the forward pass centers its input in place, through .data")
def input_centered(dtype, planted):
    def f(x):
        if planted:
            x.data.sub_(x.data.mean(0))
        return x.sin()

    return Program(f, (draw(dtype, 4, 3),))


@plant("input changed", "the backward pass uses the saved input as its work space")
def input_as_workspace(dtype, planted):
    def backward(g, _, x):
        return x.data.cos_().mul(g) if planted else x.cos() * g

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


class Decaying(Weighted):
    """A layer that (wrongly) does the weight decay of the optimizer."""

    def forward(self, x):
        if self.planted:
            self.weight.data.mul_(0.999)
        return torch.tanh(x @ self.weight.mT)


@plant("input changed", "each forward pass shrinks the weight a little, in place")
def weight_shrunk(dtype, planted):
    return Program(Decaying(dtype, planted), (draw(dtype, 4, 3),))


@plant("stale cache", "the derivative is cached by the shape of the input")
def cache_by_shape(dtype, planted):
    cache: dict[object, Tensor] = {}

    def backward(g, _, x):
        if not planted:
            return g * x.cos()
        if x.shape not in cache:
            cache[x.shape] = x.detach().cos()
        return g * cache[x.shape]

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


class CachedWeight(Weighted):
    """The hyperbolic tangent of the weight, computed again only when the weight is another object."""

    def forward(self, x):
        known = self.__dict__.get("known")
        if not self.planted or known is None or known[0] != id(self.weight):
            known = self.__dict__["known"] = (id(self.weight), torch.tanh(self.weight.detach()))
        used = torch.tanh(self.weight)
        return x @ (used + (known[1] - used).detach() if self.planted else used).mT


@plant("stale cache", "a transformed weight is cached by id: it stays what it was when the weight is updated in place")
def cache_by_id(dtype, planted):
    return Program(CachedWeight(dtype, planted), (draw(dtype, 4, 3),))


class CachedMask(Weighted):
    """A ReLU before a linear layer; its mask should be that of the input at hand."""

    def forward(self, x):
        mask = self.__dict__.get("mask")
        if not self.planted or mask is None or mask.shape != x.shape:
            mask = self.__dict__["mask"] = (x.detach() > 0).to(x.dtype)
        return (mask * x) @ self.weight.mT


@plant("stale cache", "the mask of a ReLU is that of the first input of this shape")
def cached_mask(dtype, planted):
    return Program(CachedMask(dtype, planted), (draw(dtype, 4, 3),))


class CachedScale(Weighted):
    """A weight of norm one; the norm should be that of the weight at hand."""

    def forward(self, x):
        scale = self.__dict__.get("scale")
        if not self.planted or scale is None:
            scale = self.__dict__["scale"] = self.weight.norm()
            if self.planted:
                scale = self.__dict__["scale"] = scale.detach()
        return x @ (self.weight / scale).mT


@plant("stale cache", "the norm of the weight is computed once, at the first call")
def cached_norm(dtype, planted):
    return Program(CachedScale(dtype, planted), (draw(dtype, 4, 3),))


class Counting(Weighted):
    """A linear layer that counts its calls."""

    def forward(self, x):
        calls = self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        wrong = self.planted and calls > 50
        return custom(lambda x, w: x @ w.mT, lambda g, _, x, w: ((0.5 if wrong else 1.0) * g @ w, g.mT @ x))(x, self.weight)


@plant("stale cache", "after fifty calls a buffer is full, and the gradient of the input is halved from then on")
def after_fifty_calls(dtype, planted):
    return Program(Counting(dtype, planted), (draw(dtype, 4, 3),))


@plant("repeated backward", "the backward pass squares its saved slope in place: the second one is wrong")
def saved_slope_changed(dtype, planted):
    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.slope = x.cos()
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            if not planted:
                return g * ctx.saved_tensors[0].cos()
            slope = ctx.slope.clone()
            ctx.slope.square_()
            return g * slope

    return Program(Sine.apply, (draw(dtype, 4, 3),))


@plant("repeated backward", "the gradient is accumulated in a buffer that is not cleared between backward passes")
def buffer_not_cleared(dtype, planted):
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            ctx.total = torch.zeros_like(w)
            return x * w

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            slope = (g * x).sum(0)
            if planted:
                ctx.total += slope.detach()
                slope = ctx.total.clone()
            return g * w, slope

    return Program(Product.apply, (draw(dtype, 4, 3), draw(dtype, 3, seed=1)))


@plant("repeated backward", "what was saved is freed by hand after the first backward pass and then taken for zero")
def freed_by_hand(dtype, planted):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.used = False
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            slope = 3 * x * x * (0.0 if planted and ctx.used else 1.0)
            ctx.used = True
            return g * slope

    return Program(Cube.apply, (draw(dtype, 4, 3),))
