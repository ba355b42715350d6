"""Planted bugs in layers written by hand: convolutions, attention, recurrent cells, normalizations, parametrizations."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter, spread

BUGS: list[Bug] = []
plant = planter(BUGS)
conv2d, conv_transpose2d = nn.functional.conv2d, nn.functional.conv_transpose2d


def _weight_gradient(x, g, stride, padding):
    """Sum over samples and positions of g times the window of x."""
    padded = nn.functional.pad(x, (padding,) * 4)
    rows, columns = g.shape[2:]
    height = padded.shape[2] - stride * (rows - 1)
    width = padded.shape[3] - stride * (columns - 1)
    windows = padded.unfold(2, stride * (rows - 1) + 1, 1).unfold(3, stride * (columns - 1) + 1, 1)[..., ::stride, ::stride]
    return torch.einsum("noab,nikjab->oikj", g, windows[:, :, :height, :width])


class HandConv(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1 with a backward pass by hand."""

    def __init__(self, dtype, planted, error):
        super().__init__()
        self.planted, self.error = planted, error
        self.weight = nn.Parameter(draw(dtype, 2, 2, 3, 3, seed=5))
        self.bias = nn.Parameter(draw(dtype, 2, seed=6))

    def forward(self, x):
        error = self.error if self.planted else ""

        def backward(g, _, x, w, b):
            flipped = w if error == "not flipped" else w.flip(2, 3)
            kernel = flipped if error == "channels" else flipped.transpose(0, 1)
            slope = _weight_gradient(x, g, 1, 1)
            if error == "border":
                inner = nn.functional.pad(g[:, :, 1:-1, 1:-1], (1, 1, 1, 1))
                slope = _weight_gradient(x, inner, 1, 1)
            return conv2d(g, kernel, padding=1), slope, g.sum((0, 2) if error == "bias" else (0, 2, 3)).reshape(-1)[:2]

        return custom(lambda x, w, b: conv2d(x, w, b, padding=1), backward)(x, self.weight, self.bias)


@plant("transposition", "convolution: the kernel is not flipped for the gradient of the input")
def conv_not_flipped(dtype, planted):
    return Program(HandConv(dtype, planted, "not flipped"), (draw(dtype, 2, 2, 4, 5),))


@plant("transposition", "convolution: input and output channels are not exchanged for the gradient of the input")
def conv_channels(dtype, planted):
    return Program(HandConv(dtype, planted, "channels"), (draw(dtype, 2, 2, 4, 5),))


@plant("missing term", "convolution: positions at the border are left out of the weight's gradient")
def conv_border(dtype, planted):
    return Program(HandConv(dtype, planted, "border"), (draw(dtype, 1, 2, 5, 4),))


@plant("reduction", "convolution: the bias's gradient is summed over rows only, and cut to size")
def conv_bias_sum(dtype, planted):
    return Program(HandConv(dtype, planted, "bias"), (draw(dtype, 2, 2, 4, 5),))


@plant("one element", "a strided convolution: the last column, which no window covers, gets its neighbor's gradient")
def conv_stride_remainder(dtype, planted):
    def backward(g, _, x, w):
        slope = conv_transpose2d(g, w, stride=2)
        rest = [x.shape[3] - slope.shape[3], x.shape[2] - slope.shape[2]]
        slope = nn.functional.pad(slope, (0, rest[0], 0, rest[1]))
        if planted:
            slope = torch.cat([slope[..., :-1], slope[..., -2:-1]], -1)
        return slope, _weight_gradient(x, g, 2, 0)[:, :, :2, :2]

    function = custom(lambda x, w: conv2d(x, w, stride=2), backward)
    return Program(function, (draw(dtype, 2, 1, 4, 5), draw(dtype, 2, 1, 2, 2, seed=1)))


@plant("factor", "attention: the scale 1/sqrt(d) is missing in the gradient of the queries")
def attention_scale(dtype, planted):
    scale = 4**-0.5

    def backward(g, _, q, k, v):
        p = torch.softmax(scale * q @ k.mT, -1)
        dp = g @ v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return (1.0 if planted else scale) * ds @ k, scale * ds.mT @ q, p.mT @ g

    function = custom(lambda q, k, v: torch.softmax(scale * q @ k.mT, -1) @ v, backward)
    return Program(function, tuple(draw(dtype, 2, n, 4, seed=s) for s, n in enumerate([3, 5, 5])))


@plant("one element", "causal attention: the mask of the backward pass leaves out the diagonal")
def attention_mask(dtype, planted):
    def backward(g, _, q, k, v):
        n = q.shape[-2]
        p = probabilities(q, k)
        seen = torch.ones(n, n, dtype=q.dtype).tril(-1 if planted else 0)
        dp = (g @ v.mT) * seen
        ds = p * (dp - (dp * p).sum(-1, keepdim=True))
        return ds @ k, ds.mT @ q, p.mT @ g

    def probabilities(q, k):
        n = q.shape[-2]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        return torch.softmax((q @ k.mT).masked_fill(mask, float("-inf")), -1)

    inputs = tuple(draw(dtype, 4, 3, seed=s) for s in range(3))
    return Program(custom(lambda q, k, v: probabilities(q, k) @ v, backward), inputs)


class HandGRU(nn.Module):
    """A gated recurrent cell, unrolled; the derivative of the cell is written by hand."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.weight = nn.Parameter(draw(dtype, 6, 3, seed=5))
        self.recurrent = nn.Parameter(draw(dtype, 6, 2, seed=6))

    def cell(self, x, h, w, u):
        a, b = (x @ w.mT).chunk(3, -1), (h @ u.mT).chunk(3, -1)
        r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
        n = torch.tanh(a[2] + r * b[2])
        return (1 - z) * n + z * h, r, z, n, b[2]

    def backward(self, g, _, x, h, w, u):
        _, r, z, n, b = self.cell(x, h, w, u)
        dn = g * (1 - z) * (1 - n * n)
        dz = g * (h - n) * z * (1 - z)
        dr = dn * b * r * (1 - r)
        da = torch.cat([dr, dz, dn], -1)
        db = torch.cat([dr, dz, dn * r], -1)
        direct = 0 * g if self.planted else g * z
        return da @ w, db @ u + direct, da.mT @ x, db.mT @ h

    def forward(self, x):
        step = custom(lambda x, h, w, u: self.cell(x, h, w, u)[0], self.backward)
        h = x.new_zeros(x.shape[1], 2)
        for row in x:
            h = step(row, h, self.weight, self.recurrent)
        return h


@plant("missing term", "a GRU: the state does not reach its successor directly, only through the gates")
def gru_direct_path(dtype, planted):
    return Program(HandGRU(dtype, planted), (draw(dtype, 4, 2, 3),))


@plant("reduction", "group normalization: the backward pass averages over all channels, not over the group's")
def group_norm_groups(dtype, planted):
    def grouped(x, groups):
        return x.reshape(len(x), groups, -1)

    def scale(x):
        return (grouped(x, 2).var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()

    def forward(x):
        z = grouped(x, 2)
        return ((z - z.mean(-1, keepdim=True)) * scale(x)).reshape(x.shape)

    def backward(g, y, x):
        groups = 1 if planted else 2
        gg, yy = grouped(g, groups), grouped(y, groups)
        slope = gg - gg.mean(-1, keepdim=True) - yy * (gg * yy).mean(-1, keepdim=True)
        return (grouped(slope.reshape(x.shape), 2) * scale(x)).reshape(x.shape)

    return Program(custom(forward, backward), (draw(dtype, 2, 4, 3),))


class UnitRows(nn.Module):
    """A parametrization: rows of length one."""

    def __init__(self, planted):
        super().__init__()
        self.planted = planted

    def forward(self, w):
        length = w.norm(dim=1, keepdim=True)
        return w / (length.detach() if self.planted else length)


@plant("cut graph", "a parametrization by rows of length one takes the lengths as constants")
def parametrized_rows(dtype, planted):
    layer = nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(dtype, 2, 3))
        layer.bias.copy_(draw(dtype, 2, seed=1))
    parametrize.register_parametrization(layer, "weight", UnitRows(planted))
    return Program(layer, (draw(dtype, 4, 3, seed=2),))


@plant(
    "transposition", "a skew-symmetric parametrization: its backward pass returns g - g^T of the wrong sign below the diagonal"
)
def skew_parametrization(dtype, planted):
    def backward(g, _, x, a):
        slope = x.mT @ g
        full = slope + slope.mT if planted else slope - slope.mT
        s = a.triu(1)
        return g @ (s - s.mT).mT, full.triu(1)

    function = custom(lambda x, a: x @ (a.triu(1) - a.triu(1).mT), backward)
    return Program(function, (draw(dtype, 3, 4), draw(dtype, 4, 4, seed=1)))


class PaddedLookup(nn.Module):
    """Sums of embeddings, with a row for padding that is zero and takes part like any other."""

    def __init__(self, dtype, planted):
        super().__init__()
        self.planted = planted
        self.weight = nn.Parameter(draw(dtype, 5, 3, seed=5))

    def forward(self, index):
        def backward(g, _, weight, index):
            rows = g[:, None].expand(-1, index.shape[1], -1)
            kept = (index != 0).to(g.dtype)
            if self.planted:
                kept = kept * (index != weight.shape[0] - 1)
            return torch.zeros_like(weight).index_add(0, index.flatten(), (rows * kept[..., None]).reshape(-1, 3)), None

        def forward(weight, index):
            return (weight[index] * (index != 0)[..., None]).sum(1)

        return custom(forward, backward, vmap=False)(self.weight, index)


@plant("one element", "sums of embeddings with padding: the last row is taken for padding too")
def embedding_last_row(dtype, planted):
    return Program(PaddedLookup(dtype, planted), (torch.tensor([[1, 0, 4], [2, 4, 1]]),))


@plant("missing term", "low-rank adaptation: the product rule reaches only one of the two factors")
def lora_factor(dtype, planted):
    def backward(g, _, x, a, b):
        return g @ b @ a, (g @ b).mT @ x, torch.zeros_like(b) if planted else g.mT @ (x @ a.mT)

    function = custom(lambda x, a, b: x @ a.mT @ b.mT, backward)
    inputs = (draw(dtype, 4, 3), draw(dtype, 2, 3, seed=1), draw(dtype, 5, 2, seed=2))
    return Program(function, inputs)


@plant("region of x", "bilinear sampling: the weights of the two neighbors are exchanged in the last cell")
def interpolation_last_cell(dtype, planted):
    def cells(table, x):
        left = x.floor().clamp(0, len(table) - 2)
        return left.long(), x - left

    def forward(table, x):
        left, t = cells(table, x)
        return table[left] * (1 - t) + table[left + 1] * t

    def backward(g, _, table, x):
        left, t = cells(table, x)
        if planted:
            t = torch.where(left == len(table) - 2, 1 - t, t)
        zeros = torch.zeros_like(table)
        slope = zeros.index_add(0, left, g * (1 - t)).index_add(0, left + 1, g * t)
        return slope, g * (table[left + 1] - table[left])

    return Program(custom(forward, backward, vmap=False), (draw(dtype, 6), spread(dtype, 9, low=0.2, high=4.9)))


@plant("factor", "a deep equilibrium layer: the implicit derivative is cut after one step")
def implicit_one_step(dtype, planted):
    def solve(x, w):
        z = torch.zeros_like(x)
        for _ in range(60):
            z = torch.tanh(z @ w.mT + x)
        return z

    def backward(g, z, x, w):
        slope = 1 - z * z
        u = g
        for _ in range(0 if planted else 60):
            u = g + (u * slope) @ w
        return u * slope, (u * slope).mT @ z

    return Program(custom(solve, backward), (draw(dtype, 3, 4), 0.15 * draw(dtype, 4, 4, seed=1)))
