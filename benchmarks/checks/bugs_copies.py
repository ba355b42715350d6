"""Planted bugs of copies and files, dtypes, random numbers, and of a module's own diagonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.bugs_memory import Weighted
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


class TiedCopy(nn.Module):
    """Two names for one weight."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.first = nn.Parameter(draw(dtype, 3, 3, seed=5))
        self.second = self.first

    def forward(self, x):
        return torch.tanh(x @ self.first) @ self.second.mT

    def __deepcopy__(self, memo):
        copy = TiedCopy(self.first.dtype, self.planted)
        copy.first = nn.Parameter(self.first.detach().clone())
        copy.second = nn.Parameter(self.second.detach().clone()) if self.planted else copy.first
        return copy.train(self.training)


@plant("copy or storage", "deepcopy unties two names of one weight")
def copy_unties(dtype, planted):
    return Program(TiedCopy(dtype, planted), (draw(dtype, 4, 3),))


class BoundToItself(Weighted):
    """Keeps a function that is bound to the weight it was made with."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        if planted:
            self.apply_weight = _Bound(self.weight)

    def forward(self, x):
        return torch.sin(self.apply_weight(x) if self.planted else x @ self.weight.mT)


class _Bound:
    """x -> x W^T for one W, which a copy shares with its original."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, x):
        return x @ self.weight.mT

    def __deepcopy__(self, memo):
        return self


@plant("copy or storage", "the copy of a module computes with the weight of the original")
def copy_uses_original(dtype, planted):
    return Program(BoundToItself(dtype, planted), (draw(dtype, 4, 3),))


class Standardized(Weighted):
    """Scales its input by the size of the batch's columns; in eval mode by the running mean of that."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.register_buffer("running", torch.ones(3, dtype=dtype), persistent=not planted)

    def forward(self, x):
        scale = x.square().mean(0).add(0.1).sqrt() if self.training else self.running
        if self.training:
            with torch.no_grad():
                self.running = 0.9 * self.running + 0.1 * scale.detach()
        return torch.tanh((x / scale) @ self.weight.mT)


@plant("copy or storage", "running statistics, which eval mode uses, are missing in the state_dict")
def buffer_not_saved(dtype, planted):
    return Program(Standardized(dtype, planted), (draw(dtype, 4, 3),))


class PlainTensor(Weighted):
    """Has a temperature which is a plain attribute, set after construction."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        temperature = torch.tensor(1.7, dtype=dtype)
        if planted:
            self.__dict__["temperature"] = temperature
        else:
            self.register_buffer("temperature", temperature)

    def forward(self, x):
        return torch.sigmoid(x @ self.weight.mT / self.temperature)

    def __getstate__(self):
        state = dict(self.__dict__)
        if self.planted:
            state["temperature"] = torch.ones_like(self.temperature)
        return state


@plant("copy or storage", "pickle loses an attribute: a temperature of 1.7 comes back as 1")
def pickle_loses_temperature(dtype, planted):
    return Program(PlainTensor(dtype, planted), (draw(dtype, 4, 3),))


class ModeLost(Weighted):
    """Behaves differently in eval mode."""

    def forward(self, x):
        y = x @ self.weight.mT
        return torch.tanh(y) if self.training else y

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.planted:
            self.training = True


@plant("copy or storage", "copies and pickles of a module in eval mode are in train mode")
def mode_lost(dtype, planted):
    return Program(ModeLost(dtype, planted).eval(), (draw(dtype, 4, 3),))


class LoadsTransposed(Weighted):
    """Stores its weight transposed, for an old file format."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.weight = nn.Parameter(draw(dtype, 3, 3, seed=5))

    def forward(self, x):
        return x @ self.weight.mT

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].mT

    def _load_from_state_dict(self, state_dict, prefix, *others):
        if not self.planted:
            state_dict = {**state_dict, prefix + "weight": state_dict[prefix + "weight"].mT}
        super()._load_from_state_dict(state_dict, prefix, *others)


@plant("copy or storage", "the state_dict holds a square weight transposed, and loading does not turn it back")
def loads_transposed(dtype, planted):
    return Program(LoadsTransposed(dtype, planted), (draw(dtype, 4, 3),))


class SharesGrad(Weighted):
    """Copies itself by hand."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.gain = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        return torch.tanh(x @ self.weight.mT) * self.gain

    def __deepcopy__(self, memo):
        copy = SharesGrad(self.weight.dtype, self.planted)
        copy.weight = self.weight if self.planted else nn.Parameter(self.weight.detach().clone())
        copy.gain = nn.Parameter(self.gain.detach().clone())
        return copy.train(self.training)


@plant("copy or storage", "deepcopy is shallow for one parameter: both modules accumulate into the same .grad")
def copy_is_shallow(dtype, planted):
    return Program(SharesGrad(dtype, planted), (draw(dtype, 4, 3),))


@plant("dtype", "the backward pass computes in float32 what was given in float64", (torch.float64,))
def backward_in_float32(dtype, planted):
    def backward(g, _, x, y):
        if planted:
            return (g.float() * y.float().cos()).to(g.dtype), (-g.float() * (x.float() * y.float().sin())).to(g.dtype)
        return g * y.cos(), -g * x * y.sin()

    return Program(custom(lambda x, y: x * y.cos(), backward), (draw(dtype, 4, 3), draw(dtype, 4, 3, seed=1)))


@plant("dtype", "the backward pass rounds to bfloat16 on its way")
def backward_in_bfloat16(dtype, planted):
    def backward(g, _, x, w):
        if planted:
            return (g.bfloat16() @ w.bfloat16()).to(g.dtype), (g.bfloat16().mT @ x.bfloat16()).to(g.dtype)
        return g @ w, g.mT @ x

    return Program(custom(lambda x, w: x @ w.mT, backward), (draw(dtype, 4, 3), draw(dtype, 2, 3, seed=1)))


@plant("dtype", "a sum over a long axis is accumulated in float16")
def accumulated_in_float16(dtype, planted):
    def backward(g, _, x, b):
        return g, (g.half().cumsum(0, dtype=torch.float16)[-1].to(g.dtype) if planted else g.sum(0))

    return Program(custom(lambda x, b: x + b, backward, vmap=False), (draw(dtype, 40, 3), draw(dtype, 3, seed=1)))


@plant("dtype", "the slope of a straight line is kept as an integer")
def slope_as_integer(dtype, planted):
    def backward(g, _, x, a):
        return g * (a.long() if planted else a), (g * x).sum(0)

    return Program(custom(lambda x, a: x * a, backward), (draw(dtype, 4, 3), torch.tensor([1.5, -2.25, 3.75], dtype=dtype)))


class RandomBackward(Weighted):
    """Dropout written by hand."""

    def forward(self, x):
        if not self.training:
            return x @ self.weight.mT
        mask = (torch.rand_like(x) > 0.3).to(x.dtype)

        def backward(g, _, x):
            drawn = (torch.rand_like(x) > 0.3).to(x.dtype) if self.planted else mask
            return g * drawn / 0.7

        return custom(lambda x: x * mask / 0.7, backward, vmap=False)(x) @ self.weight.mT


@plant("non-determinism", "dropout draws a second mask in the backward pass")
def dropout_mask_again(dtype, planted):
    return Program(RandomBackward(dtype, planted), (draw(dtype, 5, 3),))


@plant("non-determinism", "the backward pass adds noise of the relative size 1e-3")
def noise_in_backward(dtype, planted):
    def backward(g, _, x):
        slope = g * x.cos()
        return slope * (1 + 1e-3 * torch.randn_like(slope)) if planted else slope

    return Program(custom(torch.sin, backward, vmap=False), (draw(dtype, 4, 3),))


@plant("non-determinism", "one call in four skips a term of the gradient, as a race between threads would")
def race_between_threads(dtype, planted):
    def backward(g, _, x):
        lost = planted and torch.rand(()) < 0.25
        return torch.cat([g[:-1] * 2 * x[:-1], (0.0 if lost else 2.0) * g[-1:] * x[-1:]])

    return Program(custom(lambda x: x * x, backward, vmap=False), (draw(dtype, 4, 3),))


class WithDiagonal(Weighted):
    """A layer that gives its own diagonal: the sum over outputs of squared derivatives, by parameter."""

    def __init__(self, dtype, planted):
        super().__init__(dtype, planted)
        self.bias = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        return torch.tanh(x @ self.weight.mT + self.bias)

    def diag_hessian(self, x):
        slope = (1 - self(x) ** 2).detach()
        if self.planted:
            return {"weight": (slope.mT @ x).square(), "bias": slope.square().sum(0)}
        return {"weight": slope.square().mT @ x.square(), "bias": slope.square().sum(0)}


@plant("diagonal of the module", "the own diagonal squares the sum over samples instead of summing squares")
def diagonal_squared_sum(dtype, planted):
    return Program(WithDiagonal(dtype, planted), (draw(dtype, 4, 3),))


class ConvWithDiagonal(nn.Module):
    """A convolution that gives its own diagonal."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.weight = nn.Parameter(draw(dtype, 2, 1, 3, seed=5))
        self.bias = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        return nn.functional.conv1d(x, self.weight, self.bias)

    def diag_hessian(self, x):
        windows = x.detach().unfold(2, 3, 1)
        weight = windows.square().sum((0, 2)).expand(2, 1, 3).clone()
        positions = len(x) * (1 if self.planted else windows.shape[2])
        return {"weight": weight, "bias": torch.full_like(self.bias, float(positions)).detach()}


@plant("diagonal of the module", "a convolution's own diagonal counts the positions of its bias once")
def diagonal_of_bias(dtype, planted):
    return Program(ConvWithDiagonal(dtype, planted), (draw(dtype, 2, 1, 6),))
