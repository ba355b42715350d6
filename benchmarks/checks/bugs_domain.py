"""Planted bugs that show in a part of the inputs only: regions, ties and kinks, sizes, repeated indices."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter, spread

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("region of x", "softplus: derivative 0 below -3, where no element of the given input lies")
def softplus_below_minus_3(dtype, planted):
    def backward(g, _, x):
        slope = torch.sigmoid(x)
        return g * (slope * (x > -3) if planted else slope)

    return Program(custom(nn.functional.softplus, backward), (spread(dtype, 4, 5),))


@plant("region of x", "Huber loss: below -delta the derivative has the sign of the other side")
def huber_negative_tail(dtype, planted):
    def slope(r):
        return r.clamp(-1, 1) if not planted else torch.where(r.abs() <= 1, r, torch.ones_like(r))

    def backward(g, _, x, y):
        found = g * slope(x - y)
        return found, -found

    function = custom(lambda x, y: nn.functional.huber_loss(x, y, reduction="none"), backward)
    return Program(function, (2 * draw(dtype, 4, 5), draw(dtype, 4, 5, seed=1)))


@plant("region of x", "sigmoid: the derivative is flushed to zero beyond 4")
def sigmoid_flushed(dtype, planted):
    def backward(g, y, x):
        slope = y * (1 - y)
        return g * (slope * (x.abs() < 4) if planted else slope)

    return Program(custom(torch.sigmoid, backward), (spread(dtype, 3, 6, low=-3.0, high=3.0),))


@plant("region of x", "cubes by way of the absolute value: wrong sign where x < 0, and all given x are positive")
def cube_of_negative(dtype, planted):
    def backward(g, _, x):
        return g * 3 * (x * x.abs() if planted else x * x)

    return Program(custom(lambda x: x**3, backward), (spread(dtype, 4, 4, low=0.5, high=2.0),))


@plant("region of x", "elu with alpha 0.7: y + 1 instead of y + alpha where x < 0")
def elu_alpha(dtype, planted):
    def backward(g, y, x):
        return g * torch.where(x > 0, torch.ones_like(y), y + (1.0 if planted else 0.7))

    return Program(custom(lambda x: nn.functional.elu(x, 0.7), backward), (draw(dtype, 4, 5),))


@plant("region of x", "log(1 + x^2): a series of two terms stands in for the derivative near zero, up to |x| = 0.3")
def series_too_far(dtype, planted):
    def backward(g, _, x):
        near = x.abs() < (0.3 if planted else 1e-9)
        return g * torch.where(near, 2 * x - 2 * x**3, 2 * x / (1 + x * x))

    return Program(custom(lambda x: torch.log1p(x * x), backward), (draw(dtype, 5, 5),))


def _tied(dtype):
    return torch.tensor([[0.5, 2.0, 2.0, -1.0], [0.0, 0.0, 0.0, -0.25], [1.0, 3.0, 0.5, 3.0]], dtype=dtype)


@plant("tie or kink", "largest element of a row: each of several equal ones receives the full gradient")
def maximum_ties(dtype, planted):
    def backward(g, y, x):
        tied = (x == y[:, None]).to(x.dtype)
        return g[:, None] * (tied if planted else tied / tied.sum(1, keepdim=True))

    return Program(custom(lambda x: x.amax(1), backward), (_tied(dtype),))


@plant("tie or kink", "max pooling: of several equal elements each receives the full gradient")
def pooling_ties(dtype, planted):
    def windows(x):
        return x.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(x), x.shape[1] // 2, x.shape[2] // 2, 4)

    def backward(g, y, x):
        equal = (windows(x) == y[..., None]).to(x.dtype)
        if not planted:
            equal = equal * (equal.cumsum(-1) == 1)
        n, h, w, _ = equal.shape
        return (g[..., None] * equal).view(n, h, w, 2, 2).transpose(2, 3).reshape(n, 2 * h, 2 * w)

    return Program(custom(lambda x: windows(x).amax(-1), backward, vmap=False), ((draw(dtype, 2, 4, 6) - 0.8).relu(),))


@plant("tie or kink", "length of rows: NaN at a row of zeros")
def norm_at_zero(dtype, planted):
    def backward(g, y, x):
        y = y if planted else torch.where(y > 0, y, torch.ones_like(y))
        return (g / y)[:, None] * x

    x = draw(dtype, 4, 3)
    x[2] = 0
    return Program(custom(lambda x: x.norm(dim=1), backward), (x,))


@plant("tie or kink", "relu by two masks: the derivative at zero is 2")
def relu_at_zero(dtype, planted):
    def backward(g, _, x):
        slope = (x > 0).to(x.dtype)
        return g * (slope + 2 * (x == 0) if planted else slope)

    return Program(custom(torch.relu, backward), (draw(dtype, 4, 4).relu(),))


class EmptyBatch(nn.Module):
    """A linear layer whose weight's gradient is averaged over rows by a plain division, undone afterwards."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(dtype, 2, 3, seed=1))

        def backward(g, _, x, w):
            rows = len(x) if planted else max(len(x), 1)
            return g @ w, (g.mT @ x) / torch.tensor(rows, dtype=g.dtype) * rows

        self.operation = custom(lambda x, w: x @ w.mT, backward)

    def forward(self, x):
        return self.operation(x, self.weight)


@plant("zero size", "linear layer: NaN in the weight's gradient for a batch of no rows")
def empty_batch_nan(dtype, planted):
    return Program(EmptyBatch(dtype, planted), (draw(dtype, 4, 3),))


@plant("zero size", "scale of columns: the gradient of the scale is an array that no row has been written to")
def empty_batch_unwritten(dtype, planted):
    def backward(g, _, x, s):
        slope = torch.full_like(s, 7.0 if planted and not len(x) else 0.0)
        return g * s, slope + (g * x).sum(0)

    return Program(custom(lambda x, s: x * s, backward), (draw(dtype, 3, 4), draw(dtype, 4, seed=1)))


@plant("batch size", "linear layer: squeezed gradients, wrong in shape for a batch of one")
def squeezed_batch(dtype, planted):
    def backward(g, _, x, w, b):
        g2 = g.squeeze() if planted else g
        return g @ w, g.mT @ x, g2.sum(0)

    function = custom(lambda x, w, b: x @ w.mT + b, backward)
    return Program(function, (draw(dtype, 4, 3), draw(dtype, 2, 3, seed=1), draw(dtype, 2, seed=2)))


@plant("batch size", "pairs of rows: the last of an odd number of rows receives nothing")
def odd_row_dropped(dtype, planted):
    def backward(g, _, x):
        slope = 2 * g * x
        kept = torch.ones(len(x), 1, dtype=x.dtype)
        if planted and len(x) % 2:
            kept[-1] = 0
        return slope * kept

    return Program(custom(lambda x: x * x, backward), (draw(dtype, 4, 3),))


@plant("batch size", "tiles of four rows: what is left of a batch of 5, 6 or 7 receives nothing")
def rows_in_tiles(dtype, planted):
    def backward(g, y, _):
        slope = g * y
        full = len(y) // 4 * 4 if planted else len(y)
        return torch.cat([slope[:full], torch.zeros_like(slope[full:])])

    return Program(custom(torch.exp, backward), (draw(dtype, 8, 2),))


class FirstBatchLoss(nn.Module):
    """A mean whose backward pass divides by the number of rows of the first batch."""

    def __init__(self, planted: bool) -> None:
        super().__init__()
        self.planted = planted
        self.rows = None

    def forward(self, x):
        if self.rows is None or not self.planted:
            self.rows = len(x)
        rows = self.rows
        return custom(lambda x: (x * x).sum() / len(x), lambda g, _, x: 2 * g * x / rows)(x)


@plant("batch size", "a mean loss whose derivative divides by the size of the first batch ever seen")
def first_batch_size(dtype, planted):
    return Program(FirstBatchLoss(planted), (draw(dtype, 4, 3),))


@plant("batch size", "centering over the batch: the derivative for a batch of one is not zero")
def centering_of_one(dtype, planted):
    def backward(g, _, x):
        return g if planted and len(x) == 1 else g - g.mean(0)

    return Program(custom(lambda x: x - x.mean(0), backward), (draw(dtype, 5, 3),))


@plant("duplicated index", "look-up: rows that are used twice receive one gradient, not the sum")
def lookup_assigned(dtype, planted):
    index = torch.tensor([2, 0, 2, 3, 2])

    def backward(g, _, table):
        if planted:
            return torch.zeros_like(table).index_copy(0, index, g)
        return torch.zeros_like(table).index_add(0, index, g)

    return Program(custom(lambda table: table[index], backward), (draw(dtype, 4, 3),))


class Lookup(nn.Module):
    """An embedding written by hand."""

    def __init__(self, dtype: torch.dtype, planted: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(dtype, 6, 3))

        def backward(g, _, weight, index):
            zeros, rows = torch.zeros_like(weight), g.reshape(-1, g.shape[-1])
            found = zeros.index_copy(0, index.flatten(), rows) if planted else zeros.index_add(0, index.flatten(), rows)
            return found, None

        self.operation = custom(lambda weight, index: weight[index], backward)

    def forward(self, index):
        return self.operation(self.weight, index)


@plant("duplicated index", "embedding: an index given twice counts once; the given indices are all different")
def embedding_distinct_given(dtype, planted):
    return Program(Lookup(dtype, planted), (torch.tensor([[3, 0], [5, 1]]),))


@plant("duplicated index", "gather along rows: of repeated positions only the last is kept")
def gather_assigned(dtype, planted):
    index = torch.tensor([[0, 2, 0], [1, 1, 3]])

    def backward(g, _, x):
        zeros = torch.zeros_like(x)
        return zeros.scatter(1, index, g) if planted else zeros.scatter_add(1, index, g)

    return Program(custom(lambda x: x.gather(1, index), backward, vmap=False), (draw(dtype, 2, 4),))
