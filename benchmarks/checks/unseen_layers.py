"""Unseen planted bugs of layers: convolution, attention, recurrence, look-up, losses on top, and what they broadcast."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.checks.bug import Bug, Program
from benchmarks.checks.planting import custom, draw, planter

BUGS: list[Bug] = []
plant = planter(BUGS)


@plant("factor", "grouped queries: the keys' gradient is averaged over the heads that share them, not summed")
def grouped_queries(dtype, planted):
    def forward(q, k):
        return torch.einsum("bhqd,bkd->bhqk", q, k) / math.sqrt(q.shape[-1])

    def backward(g, _, q, k):
        g = g / math.sqrt(q.shape[-1])
        slope = torch.einsum("bhqk,bhqd->bkd", g, q)
        return torch.einsum("bhqk,bkd->bhqd", g, k), slope / q.shape[1] if planted else slope

    return Program(custom(forward, backward), (draw(dtype, 2, 3, 2, 4), draw(dtype, 2, 5, 4, seed=1)))


@plant(
    "transposition", "weight normalization of a square weight: lengths of rows in the forward pass, of columns in the backward"
)
def weight_norm_axis(dtype, planted):
    def forward(v, gain):
        return gain[:, None] * v / v.norm(dim=1, keepdim=True)

    def backward(g, _, v, gain):
        axis = 0 if planted else 1
        length = v.norm(dim=axis, keepdim=True)
        along = (g * v).sum(axis, keepdim=True) / length
        scale = gain.unsqueeze(axis)
        return scale * (g - along * v / length) / length, along.squeeze(axis)

    function = custom(forward, backward)
    return Program(
        lambda x, v, gain: x @ function(v, gain).mT, (draw(dtype, 5, 3), *(draw(dtype, *s, seed=1) for s in ((3, 3), (3,))))
    )


@plant("transposition", "attention over as many keys as queries: the softmax is differentiated along the queries")
def softmax_axis(dtype, planted):
    def backward(g, p, _):
        return p * (g - (g * p).sum(-2 if planted else -1, keepdim=True))

    softmax = custom(lambda s: torch.softmax(s, -1), backward)
    return Program(lambda q, k, v: softmax(q @ k.mT) @ v, tuple(draw(dtype, 2, 4, 4, seed=k) for k in range(3)))


@plant("missing term", "a linear recurrence in chunks of four steps: the adjoint state is not carried from chunk to chunk")
def scan_carry(dtype, planted):
    def states(a, b):
        h, found = torch.zeros_like(b[:, 0]), []
        for t in range(b.shape[1]):
            h = a[:, t] * h + b[:, t]
            found.append(h)
        return torch.stack(found, 1)

    def backward(g, y, a, b):
        u, found = torch.zeros_like(g[:, 0]), []
        for t in range(g.shape[1] - 1, -1, -1):
            carried = u * a[:, t + 1] if t + 1 < g.shape[1] and not (planted and t % 4 == 3) else torch.zeros_like(u)
            u = g[:, t] + carried
            found.append(u)
        slope = torch.stack(found[::-1], 1)
        return slope * nn.functional.pad(y[:, :-1], (1, 0)), slope

    function = custom(states, backward)
    return Program(lambda a, b: function(torch.sigmoid(a), b), (draw(dtype, 2, 10), draw(dtype, 2, 10, seed=1)))


@plant("reduction", "divergence with reduction 'batchmean': the derivative divides by all elements")
def batchmean(dtype, planted):
    def forward(x, p):
        return (p * (p.log() - x)).sum() / len(x)

    def backward(g, _, x, p):
        return -g * p / (x.numel() if planted else len(x)), g * (p.log() - x + 1) / len(x)

    p = torch.softmax(draw(dtype, 4, 5, seed=1), 1)
    return Program(custom(forward, backward), (torch.log_softmax(draw(dtype, 4, 5), 1), p))


@plant("reduction", "a loss of tokens: the mean is over those that are not padding, its derivative divides by all")
def padded_tokens(dtype, planted):
    def counted(target):
        return (target >= 0).sum().clamp_min(1)

    def forward(x, target):
        own = torch.log_softmax(x, -1).gather(-1, target.clamp_min(0)[..., None])[..., 0]
        return -torch.where(target >= 0, own, torch.zeros_like(own)).sum() / counted(target)

    def backward(g, _, x, target):
        wanted = (target.clamp_min(0)[..., None] == torch.arange(x.shape[-1])).to(x.dtype)
        slope = (torch.softmax(x, -1) - wanted) * (target >= 0)[..., None]
        return g * slope / (target.numel() if planted else counted(target)), None

    target = torch.tensor([[1, 0, 2, -100], [2, -100, -100, -100], [0, 1, 1, 2]])
    return Program(custom(forward, backward), (draw(dtype, 3, 4, 3), target))


@plant("reduction", "a masked mean over time: the derivative divides by the longest length, not by each sample's own")
def masked_mean(dtype, planted):
    def mask(x, lengths):
        return (torch.arange(x.shape[1]) < lengths[:, None]).to(x.dtype)[..., None]

    def forward(x, lengths):
        return (x.sin() * mask(x, lengths)).sum(1) / lengths[:, None].clamp_min(1)

    def backward(g, _, x, lengths):
        count = torch.full_like(lengths, x.shape[1]) if planted else lengths.clamp_min(1)
        return (g / count[:, None])[:, None] * x.cos() * mask(x, lengths), None

    return Program(custom(forward, backward), (draw(dtype, 3, 5, 2), torch.tensor([2, 5, 3])))


@plant("broadcast", "slopes of distances, one for each head: summed over queries, but averaged over keys")
def head_slopes(dtype, planted):
    def distance(s):
        return (torch.arange(s.shape[-2])[:, None] - torch.arange(s.shape[-1])).abs().to(s.dtype)

    def backward(g, _, s, slopes):
        per_key = (g * distance(s)).sum((0, 2))
        return g, -(per_key.mean(-1) if planted else per_key.sum(-1))[:, None, None]

    function = custom(lambda s, slopes: s - slopes * distance(s), backward)
    return Program(lambda s, m: torch.softmax(function(s, m), -1), (draw(dtype, 2, 3, 4, 5), draw(dtype, 3, 1, 1, seed=1)))


@plant(
    "broadcast", "a gain that is broadcast over two axes: the gradient is summed over one, and the other is cut to its first"
)
def two_axes(dtype, planted):
    def backward(g, _, x, gain):
        slope = (g * x).sum(0, keepdim=True)
        return g * gain, (slope[:, :, :1] if planted else slope.sum(2, keepdim=True))

    return Program(custom(lambda x, gain: x * gain, backward), (draw(dtype, 4, 3, 5), draw(dtype, 1, 3, 1, seed=1)))


@plant("wrong argument", "LSTM: the gates are stored in the order i, f, g, o, and the backward pass takes f for i")
def gate_order(dtype, planted):
    def forward(gates, c):
        i, f, z, o = gates.chunk(4, 1)
        return torch.sigmoid(o) * torch.tanh(torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z))

    def backward(g, _, gates, c):
        i, f, z, o = (torch.tanh(t) if k == 2 else torch.sigmoid(t) for k, t in enumerate(gates.chunk(4, 1)))
        state = torch.tanh(f * c + i * z)
        u = g * o * (1 - state * state)
        first, second = u * z * i * (1 - i), u * c * f * (1 - f)
        if planted:
            first, second = second, first
        return torch.cat([first, second, u * i * (1 - z * z), g * state * o * (1 - o)], 1), u * f

    return Program(custom(forward, backward), (draw(dtype, 3, 8), draw(dtype, 3, 2, seed=1)))


@plant("wrong argument", "a dilated convolution: the weight's gradient is that of dilation 1")
def dilation_forgotten(dtype, planted):
    def backward(g, _, x, w):
        step, length = (1 if planted else 2), g.shape[2]
        taps = [torch.einsum("not,nct->oc", g, x[:, :, k * step : k * step + length]) for k in range(w.shape[2])]
        return nn.functional.conv_transpose1d(g, w, dilation=2), torch.stack(taps, 2)

    function = custom(lambda x, w: nn.functional.conv1d(x, w, dilation=2), backward)
    return Program(function, (draw(dtype, 2, 3, 9), draw(dtype, 2, 3, 3, seed=1)))


@plant("one element", "a padding index given as -1 is not counted from the end by the backward pass: its row is trained")
def negative_padding(dtype, planted):
    class Lookup(torch.autograd.Function):
        @staticmethod
        def forward(ctx, table, index):
            ctx.save_for_backward(index)
            ctx.rows = len(table)
            return table[index] * (index != len(table) - 1).to(table.dtype)[..., None]

        @staticmethod
        def backward(ctx, g):
            (index,) = ctx.saved_tensors
            if not planted:
                g = g * (index != ctx.rows - 1).to(g.dtype)[..., None]
            table = g.new_zeros(ctx.rows, g.shape[-1])
            return table.index_add(0, index.flatten(), g.reshape(-1, g.shape[-1])), None

    return Program(Lookup.apply, (draw(dtype, 6, 3), torch.tensor([[1, 4, 5], [0, 2, 5]])))


@plant("duplicated index", "messages on a graph: the backward pass goes by the adjacency matrix, where an edge counts once")
def multiple_edges(dtype, planted):
    def forward(x, source, target):
        return torch.zeros_like(x).index_add(0, target, x[source])

    def backward(g, _, x, source, target):
        if planted:
            adjacency = x.new_zeros(len(x), len(x)).index_put((target, source), x.new_ones(()))
            return adjacency.mT @ g, None, None
        return torch.zeros_like(g).index_add(0, source, g[target]), None, None

    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 0, 1, 3])
    return Program(custom(forward, backward, vmap=False), (draw(dtype, 4, 3), source, target))


@plant("duplicated index", "the mean of a bag of embeddings: a word that stands in a bag twice receives the share of one")
def word_twice(dtype, planted):
    def backward(g, _, table, bags):
        hits = (bags[..., None] == torch.arange(len(table))).to(g.dtype)
        share = hits.amax(1) if planted else hits.sum(1)
        return share.mT @ g / bags.shape[1], None

    function = custom(lambda table, bags: table[bags].mean(1), backward)
    return Program(function, (draw(dtype, 5, 2), torch.tensor([[0, 2, 2], [4, 1, 4], [3, 0, 1]])))


@plant("duplicated index", "rows added at an index: the gradient of rows that land on the same place reaches only the last")
def landing_twice(dtype, planted):
    def backward(g, _, x, index, rows):
        slope = g[index]
        if planted:
            last = torch.zeros(len(x), dtype=torch.long).scatter_reduce(0, index, torch.arange(len(index)), "amax")
            slope = slope * (last[index] == torch.arange(len(index)))[:, None]
        return g, None, slope

    function = custom(lambda x, index, rows: x.index_add(0, index, rows), backward, vmap=False)
    return Program(function, (draw(dtype, 6, 2), torch.tensor([4, 0, 3]), draw(dtype, 3, 2, seed=1)))


@plant("cut graph", "a rotation is put together by torch.tensor, which takes numbers and leaves their history behind")
def rotation_of_numbers(dtype, planted):
    def f(x, angle):
        c, s = angle.cos(), angle.sin()
        if planted:
            c, s = (torch.tensor([t.item() for t in part], dtype=dtype) for part in (c, s))
        return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)

    return Program(f, (draw(dtype, 4, 2), draw(dtype, 4, seed=1)))


@plant("cut graph", "a mixture of experts: the gates of the chosen ones are gathered from detached probabilities")
def detached_gates(dtype, planted):
    def f(x, router, experts):
        p = torch.softmax(x @ router, 1)
        index = p.detach().topk(2, 1).indices
        gates = (p.detach() if planted else p).gather(1, index)
        every = torch.tanh(torch.einsum("nd,edo->neo", x, experts))
        return (gates[..., None] * every.gather(1, index[..., None].expand(-1, -1, every.shape[2]))).sum(1)

    return Program(f, (draw(dtype, 4, 3), draw(dtype, 3, 4, seed=1), draw(dtype, 4, 3, 2, seed=2)))


@plant("cotangent ignored", "classifier and loss in one: the weight's gradient, taken in the forward pass, is not scaled")
def fused_classifier(dtype, planted):
    def forward(x, w, target):
        return nn.functional.cross_entropy(x @ w.mT, target)

    def backward(g, _, x, w, target):
        slope = (torch.softmax(x @ w.mT, 1) - (target[:, None] == torch.arange(len(w))).to(x.dtype)) / len(x)
        return g * slope @ w, (1.0 if planted else g) * slope.mT @ x, None

    return Program(custom(forward, backward), (draw(dtype, 5, 3), draw(dtype, 4, 3, seed=1), torch.tensor([0, 3, 1, 2, 3])))


@plant("cotangent ignored", "an auxiliary loss rides along: its gradient is set to its scale, whatever comes from behind")
def auxiliary_loss(dtype, planted):
    class Attach(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y, loss):
            return y.clone(), loss.clone()

        @staticmethod
        def backward(ctx, g, h):
            return g, torch.full_like(h, 0.01) if planted else h

    def f(x: Tensor):
        p = torch.softmax(x, 1)
        return Attach.apply(p.square(), p.mean(0).square().sum() * x.shape[1])

    return Program(f, (draw(dtype, 5, 4),))
