"""Planted bugs of structure: broadcasting, reductions, cut graphs, exchanged arguments."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("broadcast", "a scale for all: its gradient is the mean over elements, not the sum")
def scale_mean(dtype, planted):
    def backward(g, _, x, s):
        slope = g * x
        return g * s, (slope.mean() if planted else slope.sum()).reshape(1)

    return Program(custom(lambda x, s: x * s, backward), (draw(dtype, 3, 4), draw(dtype, 1, seed=1)))


@plant("broadcast", "a bias: its gradient is that of the first row only")
def bias_first_row(dtype, planted):
    function = custom(lambda x, b: x + b, lambda g, _y, _x, _b: (g, g[0] if planted else g.sum(0)))
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 4, seed=1)))


@plant("broadcast", "column times row of the same length: summed over the wrong axis")
def outer_wrong_axis(dtype, planted):
    def backward(g, _, a, b):
        return (g * b).sum(0 if planted else 1)[:, None], (g * a).sum(0)[None]

    return Program(custom(lambda a, b: a * b, backward), (draw(dtype, 4, 1), draw(dtype, 1, 4, seed=1)))


@plant("broadcast", "a gain for each channel: its gradient leaves out the sum over positions")
def gain_of_channels(dtype, planted):
    def backward(g, _, x, gain):
        slope = g * x
        return g * gain[:, None], slope[:, :, 0].sum(0) if planted else slope.sum((0, 2))

    return Program(custom(lambda x, gain: x * gain[:, None], backward), (draw(dtype, 2, 3, 5), draw(dtype, 3, seed=1)))


@plant("reduction", "a loss with reduction 'sum' whose derivative is that of the mean")
def sum_as_mean(dtype, planted):
    def backward(g, _, x):
        return g * x.sign() / (x.numel() if planted else 1)

    return Program(custom(lambda x: x.abs().sum(), backward), (draw(dtype, 4, 3),))


@plant("reduction", "cross entropy with class weights: divided by the rows, not by the sum of their weights")
def weighted_cross_entropy(dtype, planted):
    target, weights = torch.tensor([0, 2, 1, 2]), torch.tensor([0.2, 1.0, 3.0], dtype=dtype)

    def backward(g, _, x):
        w = weights[target]
        slope = (torch.softmax(x, 1) - nn.functional.one_hot(target, 3)) * w[:, None]
        return g * slope / (len(x) if planted else w.sum())

    return Program(custom(lambda x: nn.functional.cross_entropy(x, target, weights), backward), (draw(dtype, 4, 3),))


@plant("reduction", "cross entropy with an ignored row: it counts in the denominator of the derivative")
def ignored_row_counts(dtype, planted):
    target = torch.tensor([1, -100, 0, 2, 2])

    def backward(g, _, x):
        used = (target >= 0).to(x.dtype)
        slope = (torch.softmax(x, 1) - nn.functional.one_hot(target.clamp(min=0), 3)) * used[:, None]
        return g * slope / (len(x) if planted else used.sum())

    return Program(custom(lambda x: nn.functional.cross_entropy(x, target), backward), (draw(dtype, 5, 3),))


@plant("reduction", "reduction 'none': the cotangents of the rows are added up, each row receives the sum")
def unreduced_summed(dtype, planted):
    def backward(g, _, x):
        g = g.sum().expand_as(g) if planted else g
        return 2 * g[:, None] * x

    return Program(custom(lambda x: x.square().sum(1), backward), (draw(dtype, 3, 4),))


@plant("cut graph", "logarithm of a sum of exponentials: the maximum that is added back is detached")
def logsumexp_detached(dtype, planted):
    def sound(x):
        top = x.amax(1, keepdim=True).detach()
        return (x - top).exp().sum(1).log() + top[:, 0]

    def wrong(x):
        top = x.amax(1, keepdim=True)
        return (x - top).exp().sum(1).log() + top.detach()[:, 0]

    return Program(wrong if planted else sound, (draw(dtype, 3, 4),))


@plant("cut graph", "normalization: the standard deviation is detached")
def deviation_detached(dtype, planted):
    def f(x):
        deviation = x.std(1, keepdim=True)
        return (x - x.mean(1, keepdim=True)) / (deviation.detach() if planted else deviation)

    return Program(f, (draw(dtype, 3, 5),))


@plant("cut graph", "a weight of the loss is read with item()")
def weight_by_item(dtype, planted):
    def f(x):
        weight = x.square().mean()
        return x.sin() * (weight.item() if planted else weight)

    return Program(f, (draw(dtype, 3, 4),))


@plant("cut graph", "one of two terms is computed under no_grad")
def term_under_no_grad(dtype, planted):
    def f(x, y):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not planted):
            energy = (x * y).sum(1)
        return energy + (x - y).square().sum(1)

    return Program(f, (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1)))


@plant("cut graph", "a trip through NumPy in the middle of the function")
def through_numpy(dtype, planted):
    def f(x):
        wave = torch.from_numpy(x.detach().numpy().copy()).sin() if planted else x.sin()
        return wave * x

    return Program(f, (draw(dtype, 4, 3),))


class Gate(nn.Module):
    """A gated layer."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.planted = planted
        self.value = nn.Linear(3, 2, dtype=dtype)
        self.gate = nn.Linear(3, 2, dtype=dtype)
        with torch.no_grad():
            for seed, p in enumerate(self.parameters()):
                p.copy_(draw(dtype, *p.shape, seed=10 + seed))

    def forward(self, x):
        weight = self.gate.weight.data if self.planted else self.gate.weight
        return self.value(x) * torch.sigmoid(nn.functional.linear(x, weight, self.gate.bias))


@plant("cut graph", "a gate reads its weight by .data, so that the weight is never trained")
def gate_by_data(dtype, planted):
    return Program(Gate(dtype, planted), (draw(dtype, 4, 3),))


@plant("wrong argument", "bilinear form: the gradients of the two inputs are exchanged")
def bilinear_exchanged(dtype, planted):
    def backward(g, _, a, b):
        first, second = g[:, None] * b.cos() * a, g[:, None] * b.sin()
        return (first, second) if planted else (second, first)

    function = custom(lambda a, b: (a * b.sin()).sum(1), backward)
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1)))


@plant("wrong argument", "attention: keys receive the gradient of the values")
def keys_for_values(dtype, planted):
    def backward(g, y, q, k, v):
        p = torch.softmax(q @ k.mT, -1)
        dv = p.mT @ g
        dp = g @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k, dv if planted else ds.mT @ q, dv

    function = custom(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, backward)
    return Program(function, tuple(draw(dtype, *shape, seed=s) for s, shape in enumerate([(3, 4), (5, 4), (5, 4)])))


@plant("wrong argument", "the exponent is used, but None is returned for it")
def exponent_none(dtype, planted):
    def backward(g, y, x, p):
        return g * p * x ** (p - 1), None if planted else (g * y * x.log()).sum().reshape(1)

    function = custom(lambda x, p: x**p, backward)
    return Program(function, (draw(dtype, 3, 4).exp(), torch.tensor([1.7], dtype=dtype)))


@plant("wrong argument", "linear interpolation: the weight's gradient takes (a - b) for (b - a)")
def interpolation_ends(dtype, planted):
    def backward(g, _, a, b, t):
        return g * (1 - t), g * t, (g * ((a - b) if planted else (b - a))).sum(1, keepdim=True)

    inputs = (draw(dtype, 3, 4), draw(dtype, 3, 4, seed=1), draw(dtype, 3, 1, seed=2))
    return Program(custom(lambda a, b, t: a + t * (b - a), backward), inputs)
