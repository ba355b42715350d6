"""Functions of many kinds for the search for false zeros, each with the shape of its input, or shapes by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

REAL = torch.float64


def fixed(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def module(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().to(REAL).requires_grad_(False)


A, B, KERNEL, CUBE, TABLE = (
    fixed(4, 6),
    fixed(5, 5, seed=1),
    fixed(4, 2, 3, 2, seed=2),
    fixed(3, 4, 5, seed=3),
    fixed(6, 3, seed=4),
)
SPARSE = (A * (A > 0.3)).to_sparse_coo()
CLASSES = torch.tensor([[1, 2], [2, 2]])
INDEX = torch.tensor([3, 0, 0, 2])
MASK = torch.tensor([True, False, True, True, False, True])
GRID = 1.5 * fixed(1, 3, 2, 2, seed=5).tanh()
EYE = torch.eye(3, dtype=REAL)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return g


class Neighbours(torch.autograd.Function):
    """The backward pass couples what the forward pass does not."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g + g.roll(1)


class Clipped(torch.autograd.Function):
    """Two inputs and two outputs, one of which has no derivative."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        kept = x > 0
        ctx.mark_non_differentiable(kept)
        return torch.where(kept, x, y), kept

    @staticmethod
    def backward(ctx, g: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g, 0), g.flip(0)


def in_place(x: Tensor) -> Tensor:
    y = torch.zeros(7, dtype=x.dtype)
    y[:3] = x[:3] ** 2
    y[3] = x[4] * x[0]
    y[4:].add_(x[1:4])
    y.mul_(2)
    y[::2] *= x[5]
    return y


def written_through_views(x: Tensor) -> Tensor:
    y = x.clone().view(2, 3)
    column = y[:, 1]
    column.add_(2 * y[:, 2])
    y.t_()
    y[0].copy_(x[4:])
    return y.flatten()


def masked_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.masked_fill_(MASK, 1.0)
    y.mul_(x.flip(0))
    y[~MASK] = x[:2] * x[2:4]
    y.index_fill_(0, INDEX[:1], 2.0)
    return y


def masked_by_data(x: Tensor) -> Tensor:
    y = x.clone()
    y[x > 0] = 0.0
    return y * x.roll(1)


def filled(x: Tensor) -> Tensor:
    return torch.zeros(4, dtype=x.dtype).fill_(x[1]) * x + torch.full_like(x, 2.0)


def triangles_in_place(x: Tensor) -> Tensor:
    return x.clone().tril_(-1) + x.t().clone().triu_(1)[:, [1, 0, 2]]


def scan(x: Tensor) -> Tensor:
    state, out = x[0], []
    for element in x[1:]:
        state = (state * element).tanh()
        out.append(state)
    return torch.stack(out)


def newton(x: Tensor) -> Tensor:
    y = torch.ones_like(x)
    for _ in range(4):
        y = y - (y**3 + y - x) / (3 * y**2 + 1)
    return y


def stack_of_buffers(x: Tensor) -> Tensor:
    buffer = [torch.zeros((), dtype=x.dtype)] * 3
    for i, value in enumerate(x):
        buffer[i % 3] = buffer[(i + 1) % 3] * value + value
    return torch.stack(buffer)


def attention(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, 2 * x, x.flip(-1), is_causal=True)


def by_hand(x: Tensor) -> Tensor:
    scores = (x @ x.mT).masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1) @ x


def polynomial(x: Tensor) -> Tensor:
    return torch.view_as_real((torch.view_as_complex(x) ** 2 + 1j * torch.view_as_complex(x.flip(0))).conj().resolve_conj())


def filtered(x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * torch.arange(4), n=x.shape[-1])


def recurrent(cell: nn.Module):
    def run(x: Tensor) -> Tensor:
        state = None
        for row in x:
            state = cell(row, state)
        return state[0] if isinstance(state, tuple) else state

    return run


def whole(layer: nn.Module):
    return lambda x: layer(x)[0]


def energy(p: dict[str, Tensor]) -> Tensor:
    return (p["a"][1:] - p["a"][:-1]).pow(4).sum() + p["b"].exp().sum() * p["a"][0] + p["c"].prod()


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def contact(x: Tensor) -> Tensor:
    gap = x[:, None] - x
    return torch.where(gap.abs() < 1, (1 - gap.abs()) ** 3, 0.0).triu(1).sum() + x.pow(4).sum()


def two_layers(p: dict[str, Tensor]) -> Tensor:
    return ((fixed(5, 3) @ p["first"]).tanh() @ p["second"] - fixed(5, 1, seed=9)).square().mean()


LSTM, GRU, RNN = (module(lambda kind=kind: kind(3, 2)) for kind in (nn.LSTM, nn.GRU, nn.RNN))
CELLS = [module(lambda kind=kind: kind(3, 2)) for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)]
NET = module(lambda: nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.LayerNorm(5), nn.Linear(5, 2)))
CONVOLUTIONAL = module(
    lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
)
ENCODER = module(lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True))
HEADS = module(lambda: nn.MultiheadAttention(4, 2, batch_first=True))

FUNCTIONS = {
    "pointwise": (lambda x: x.sin() * x + 1, (5,)),
    "ties": (lambda x: torch.maximum(x.round(), x.flip(0).round()) * x, (6,)),
    "ties in a maximum": (lambda x: x.round().amax(1) * x.round().amin(1), (3, 4)),
    "clamp": (lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=x.roll(1)), (6,)),
    "where": (lambda x: torch.where(x > 0, x, x.flip(0)), (6,)),
    "where on another": (lambda x: torch.where(x[0] > x[1], x[0] ** 2, x[1]), (2, 4)),
    "constant mask": (lambda x: torch.where(MASK, x, x.flip(0) ** 2), (6,)),
    "masked_scatter": (lambda x: torch.zeros(6, dtype=REAL).masked_scatter(MASK, x * 2), (4,)),
    "masked_scatter by data": (lambda x: x.masked_scatter(x > 0, x * 2), (4,)),
    "boolean index": (lambda x: x[MASK] * 2, (6,)),
    "sort": (lambda x: x.sort(0)[0], (5, 2)),
    "sorted by another": (lambda x: x[0][x[1].argsort()], (2, 5)),
    "take_along_dim": (lambda x: torch.take_along_dim(x, x.argsort(1), 1), (3, 4)),
    "topk": (lambda x: x.topk(2)[0], (3, 4)),
    "median": (lambda x: x.median(0)[0], (5, 2)),
    "quantile": (lambda x: x.quantile(0.4, dim=0), (5, 2)),
    "cummax": (lambda x: x.cummax(0)[0], (5,)),
    "cumprod": (lambda x: x.cumprod(0), (4,)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (2, 4)),
    "argmax as an index": (lambda x: x[x.argmax()[None]] * x, (5,)),
    "table looked up by data": (lambda x: F.embedding(x[0].argsort() % 3, x), (3, 4)),
    "max_pool": (lambda x: F.max_pool2d(x, 2), (1, 2, 4, 6)),
    "max_pool with overlap": (lambda x: F.max_pool2d(x, 3, 1, 1), (1, 1, 3, 4)),
    "max_unpool": (lambda x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2), (1, 2, 6)),
    "average pool": (lambda x: F.avg_pool1d(x, 3, 2, 1), (2, 1, 6)),
    "adaptive pools": (lambda x: F.adaptive_avg_pool2d(x, (2, 3)) + F.adaptive_max_pool2d(x, (2, 3)), (1, 1, 5, 4)),
    "norm pool": (lambda x: F.lp_pool1d(x.abs(), 3.0, 2), (1, 2, 6)),
    "local response": (lambda x: F.local_response_norm(x, 3), (1, 4, 3)),
    "index_add": (lambda x: torch.zeros(5, dtype=REAL).index_add(0, INDEX, x), (4,)),
    "index_copy": (lambda x: x.index_copy(0, INDEX[[0, 1, 3]], x[:3] ** 2), (5, 2)),
    "index_put": (lambda x: x.index_put((INDEX[[0, 1, 3]],), x[1] * 2), (4, 2)),
    "put": (lambda x: x.put(INDEX, x.flatten()[:4] * 3, accumulate=True), (2, 3)),
    "scatter": (lambda x: x.scatter(1, INDEX[[0, 1, 3]].expand(2, 3), x[:, :3] ** 2), (2, 4)),
    "scatter_reduce": (lambda x: torch.ones(4, dtype=REAL).scatter_reduce(0, INDEX, x, "prod"), (4,)),
    "scatter where data says": (lambda x: torch.zeros(3, 4, dtype=REAL).scatter(1, x.argsort(1), x), (3, 4)),
    "add where data says": (lambda x: torch.zeros(5, dtype=REAL).index_add(0, x.argsort(), x), (5,)),
    "gather": (lambda x: x.gather(0, INDEX), (5,)),
    "softmax": (lambda x: x.softmax(1) * x.log_softmax(0), (3, 4)),
    "gumbel of fixed noise": (lambda x: ((x + TABLE.t()) / 0.5).softmax(-1), (3, 6)),
    "attention": (attention, (1, 2, 4, 3)),
    "attention by hand": (by_hand, (2, 4, 3)),
    "multi-head attention": (lambda x: HEADS(x, x, x)[0], (2, 3, 4)),
    "encoder": (ENCODER, (1, 3, 4)),
    "inverse": (lambda x: torch.linalg.inv(x + 6 * EYE), (2, 3, 3)),
    "solve": (lambda x: torch.linalg.solve(x[..., :3] + 6 * EYE, x[..., 3:]), (2, 3, 5)),
    "solve with a constant": (lambda x: torch.linalg.solve(B, x), (5, 2)),
    "triangular solve": (lambda x: torch.linalg.solve_triangular(EYE + TABLE[:3].tril(-1), x, upper=False), (3, 2)),
    "least squares": (lambda x: torch.linalg.lstsq(A.t(), x).solution, (6, 2)),
    "pseudo-inverse": (torch.linalg.pinv, (2, 3, 2)),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.mT + EYE), (2, 3, 3)),
    "qr": (lambda x: torch.linalg.qr(x)[1], (2, 4, 3)),
    "eigenvalues": (lambda x: torch.linalg.eigvalsh(x + x.mT), (2, 3, 3)),
    "singular values": (torch.linalg.svdvals, (2, 3, 3)),
    "determinants": (lambda x: torch.linalg.det(x) + torch.linalg.slogdet(x)[1], (2, 3, 3)),
    "matrix exponential": (torch.linalg.matrix_exp, (2, 2, 2)),
    "cross": (lambda x: torch.linalg.cross(x, x.roll(1, 0)), (3, 3)),
    "trace": (lambda x: x.trace()[None], (3, 4)),
    "sparse constant": (lambda x: SPARSE @ x, (6, 2)),
    "sparse constant and a vector": (lambda x: torch.mv(SPARSE, x), (6,)),
    "einsum": (lambda x: torch.einsum("ij,jk,ik->ik", x, x, x), (3, 3)),
    "bilinear": (lambda x: F.bilinear(x, x[:, :2], CUBE[:2, :, :2]), (3, 4)),
    "outer": (lambda x: torch.outer(x, x.flip(0)).addr(x, x), (3,)),
    "fft": (lambda x: torch.fft.rfft(x).abs(), (2, 5)),
    "filter": (filtered, (2, 6)),
    "fft of rows": (lambda x: torch.view_as_real(torch.fft.fft(x, dim=0) * 1j), (3, 2)),
    "stft": (lambda x: torch.stft(x, 4, 2, window=torch.ones(4, dtype=REAL), center=False, return_complex=True).abs(), (10,)),
    "complex": (lambda x: torch.view_as_complex(x).abs() + torch.view_as_complex(x).real, (4, 2)),
    "complex polynomial": (polynomial, (4, 2)),
    "polar": (lambda x: torch.view_as_real(torch.polar(x[0].exp(), x[1]) * torch.complex(x[1], x[0])), (2, 3)),
    "straight through": (lambda x: StraightThrough.apply(x) * x.flip(0), (5,)),
    "straight through by detach": (lambda x: x + (x.round() - x).detach(), (5,)),
    "backward of its own": (lambda x: Neighbours.apply(x)[1:] * x[:-1], (5,)),
    "two inputs, one output without": (lambda x: Clipped.apply(x[0], x[1])[0] * x[0], (2, 4)),
    "in place": (in_place, (6,)),
    "written through views": (written_through_views, (6,)),
    "masks in place": (masked_in_place, (6,)),
    "masks by data in place": (masked_by_data, (6,)),
    "triangles in place": (triangles_in_place, (3, 3)),
    "fill": (filled, (4,)),
    "out of an op": (lambda x: torch.cat([x.detach(), x]) * x.repeat(2), (4,)),
    "loop": (scan, (5,)),
    "Newton's iteration": (newton, (4,)),
    "ring of buffers": (stack_of_buffers, (7,)),
    "views": (lambda x: x.view(2, 3, 2).permute(2, 0, 1)[..., 1:].flatten().roll(1), (12,)),
    "second difference": (lambda x: x.diff(n=2), (7,)),
    "broadcast and strided": (lambda x: (x.sum() + x).view(2, 3)[:, ::2] * x[:2, None], (6,)),
    "unfold": (lambda x: x.unfold(0, 3, 2).prod(1), (9,)),
    "fold": (lambda x: F.fold(F.unfold(x, 2, padding=1), (3, 4), 2, padding=1), (1, 1, 3, 4)),
    "pads": (lambda x: F.pad(x, (2, 1), mode="reflect") * F.pad(x, (2, 1), mode="circular"), (1, 2, 4)),
    "convolution": (lambda x: F.conv2d(x, KERNEL, stride=(2, 1), padding=1, groups=2), (1, 4, 4, 3)),
    "transposed convolution": (lambda x: F.conv_transpose1d(x, KERNEL[..., 0], stride=2, padding=1, groups=2), (1, 4, 3)),
    "convolution with itself": (lambda x: F.conv1d(x[None], x[:, None, :2], groups=2), (2, 5)),
    "linear interpolation": (lambda x: F.interpolate(x, size=7, mode="linear", align_corners=True), (1, 2, 4)),
    "bicubic interpolation": (lambda x: F.interpolate(x, scale_factor=1.6, mode="bicubic"), (1, 1, 4, 3)),
    "antialiased interpolation": (lambda x: F.interpolate(x, size=(2, 5), mode="bilinear", antialias=True), (1, 1, 4, 3)),
    "nearest interpolation": (lambda x: F.interpolate(x, scale_factor=2), (1, 2, 3)),
    "grid_sample, grid fixed": (lambda x: F.grid_sample(x, GRID, align_corners=False), (1, 2, 3, 4)),
    "grid_sample": (lambda x: F.grid_sample(x[:, :, :3], x[:, :2, 3:].permute(0, 2, 3, 1), align_corners=True), (1, 2, 5, 3)),
    "LSTM cells": (recurrent(CELLS[0]), (3, 3)),
    "GRU cells": (recurrent(CELLS[1]), (3, 3)),
    "RNN cells": (recurrent(CELLS[2]), (3, 3)),
    "LSTM": (whole(LSTM), (3, 2, 3)),
    "GRU": (whole(GRU), (3, 2, 3)),
    "RNN": (whole(RNN), (3, 2, 3)),
    "layer norm": (lambda x: F.layer_norm(x, (4,), x[0]), (3, 4)),
    "rms norm": (lambda x: F.rms_norm(x, (4,)), (3, 4)),
    "group norm": (lambda x: F.group_norm(x, 2, x[0, :, 0]), (2, 4, 3)),
    "instance norm": (F.instance_norm, (2, 3, 5)),
    "batch norm": (lambda x: F.batch_norm(x, None, None, x[0], x[1], training=True), (4, 3)),
    "batch norm at rest": (lambda x: F.batch_norm(x, torch.zeros(3, dtype=REAL), torch.ones(3, dtype=REAL), x[0]), (4, 3)),
    "weight norm": (lambda x: torch._weight_norm(x[:, 1:].contiguous(), x[:, :1].contiguous(), 0) @ A[:, :4].t(), (3, 5)),
    "normalize": (lambda x: F.normalize(x, dim=1) + F.cosine_similarity(x, x.flip(0))[:, None], (3, 2)),
    "bag": (lambda x: F.embedding_bag(torch.tensor([0, 2, 1, 1]), x, torch.tensor([0, 2]), mode="max"), (3, 4)),
    "segments": (lambda x: torch.segment_reduce(x, "mean", lengths=torch.tensor([2, 0, 3])), (5, 2)),
    "distances": (lambda x: torch.cdist(x[:2], x[2:]) + torch.cdist(x[:2], x[2:], p=1.0), (5, 3)),
    "own distances": (F.pdist, (4, 2)),
    "losses by element": (lambda x: F.huber_loss(x, 2 * x.flip(0), reduction="none") + F.softplus(x), (4,)),
    "cross entropy by sample": (lambda x: F.cross_entropy(x, torch.tensor([1, 0, 2]), reduction="none"), (3, 4)),
    "CTC": (lambda x: F.ctc_loss(x.log_softmax(2), CLASSES, [5, 5], [2, 2], reduction="none"), (5, 2, 3)),
    "checkpoint": (lambda x: checkpoint(lambda t: t.sin() * t.flip(0), x, use_reentrant=False), (4,)),
    "vmap": (torch.func.vmap(lambda row: row.cumsum(0) * row[0]), (3, 4)),
    "jvp inside": (lambda x: torch.func.jvp(torch.sin, (x,), (x.flip(0),))[1], (4,)),
    "grad inside": (lambda x: torch.func.grad(lambda t: (t[1:] * t[:-1]).sum())(x), (5,)),
    "lists of tensors": (lambda x: torch.stack(torch._foreach_mul([x[0], x[1]], [x[1], x[2]])), (3, 2)),
    "network": (NET, (3, 4)),
    "convolutional network": (CONVOLUTIONAL.eval(), (1, 1, 4, 4)),
    "trees": (lambda p: {"y": p["w"] @ p["x"], "rest": [p["w"].sum(0), p["x"][0]]}, {"w": (2, 3), "x": (3,)}),
    "dtype between": (lambda x: (x.float() * 2).double() + x.flip(0).to(torch.complex128).real, (4,)),
}  # fmt: skip

SCALARS = {  # Hessians
    "chain": (energy, {"a": (4,), "b": (2,), "c": (3,)}),
    "Rosenbrock": (rosenbrock, (5,)),
    "contact": (contact, (5,)),
    "two layers": (two_layers, {"first": (3, 2), "second": (2, 1)}),
    "softmax loss": (lambda x: F.cross_entropy(x, torch.tensor([1, 0, 2])), (3, 4)),
    "squared error": (lambda x: F.mse_loss(x.cumsum(0), x.flip(0)), (4,)),
    "pooled": (lambda x: F.max_pool1d(x, 2).pow(3).sum() + F.avg_pool1d(x, 3).pow(3).sum(), (1, 2, 6)),
    "convolved": (lambda x: F.conv1d(x, KERNEL[..., 0], groups=2).pow(3).sum(), (1, 4, 4)),
    "normalized": (lambda x: F.layer_norm(x, (4,), x[0]).pow(3).sum(), (3, 4)),
    "normalized by batch": (lambda x: F.batch_norm(x, None, None, x[0], training=True).pow(3).sum(), (4, 2)),
    "normalized by group": (lambda x: F.group_norm(x, 2, x[0, :, 0]).pow(3).sum(), (2, 4, 2)),
    "attention": (lambda x: attention(x).pow(3).sum(), (1, 2, 3, 2)),
    "interpolated": (lambda x: F.interpolate(x, size=7, mode="linear").pow(3).sum(), (1, 2, 4)),
    "padded": (lambda x: F.pad(x, (2, 1), mode="reflect").pow(3).sum(), (1, 2, 4)),
    "looked up": (lambda x: F.embedding(INDEX, x).pow(3).sum(), (4, 2)),
    "scattered": (lambda x: torch.zeros(5, dtype=REAL).index_add(0, INDEX, x).pow(3).sum(), (4,)),
    "gathered by rank": (lambda x: (x.sort()[0] * torch.arange(5)).pow(3).sum(), (5,)),
    "scanned": (lambda x: scan(x).pow(3).sum(), (4,)),
    "in place": (lambda x: in_place(x).pow(3).sum(), (6,)),
    "inverse": (lambda x: torch.linalg.inv(x + 6 * EYE[:2, :2]).pow(3).sum(), (2, 2, 2)),
    "log-determinant": (lambda x: torch.logdet(x @ x.mT + EYE).sum(), (2, 3, 3)),
    "spectrum": (lambda x: torch.fft.rfft(x).abs().pow(3).sum(), (2, 4)),
    "sparse constant": (lambda x: (SPARSE @ x).pow(3).sum(), (6,)),
    "gated": (lambda x: F.glu(x, 1).pow(3).sum(), (2, 4)),
    "unfolded": (lambda x: x.unfold(0, 3, 2).prod(1).pow(2).sum(), (7,)),
    "cells": (lambda x: recurrent(CELLS[1])(x).pow(3).sum(), (2, 3)),
    "distances": (lambda x: (x[:2, None] - x[None, 2:]).square().sum(-1).sqrt().sum(), (4, 2)),
    "straight through": (lambda x: (StraightThrough.apply(x) * x.flip(0)).pow(2).sum(), (4,)),
    "hypot and friends": (lambda x: (torch.hypot(x[0], x[1]) * torch.atan2(x[0], x[1]).lerp(x[1], x[0])).sum(), (2, 3)),
}  # fmt: skip
