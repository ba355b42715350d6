"""Models in which weights take many ways to the data: slices, parts, permutations, functions of weights, several lookups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.parameters import oracle
from tests.parameters.special import MODELS, OUT, Free, L, P

N = 6


def _chain(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


def _attention(s: Any, x: Tensor) -> Tensor:
    return s.head(s.mha(x, x, x, need_weights=False)[0].mean(1))


def _cross_attention(s: Any, x: Tensor, y: Tensor) -> Tensor:
    return s.head(s.mha(x, y, y, need_weights=False)[0].mean(1))


def _time_major_attention(s: Any, x: Tensor) -> Tensor:
    steps = x.transpose(0, 1)
    return s.head(s.mha(steps, steps, steps, need_weights=False)[0].mean(0))


def _own_attention(s: Any, x: Tensor) -> Tensor:
    q, k, v = F.linear(x, s.w).chunk(3, -1)
    return s.head(F.scaled_dot_product_attention(q, k, v).mean(1))


def _unbound(s: Any, x: Tensor) -> Tensor:
    for w in s.w.unbind():
        x = torch.tanh(x @ w)
    return x[:, :OUT]


def _overlapping(s: Any, x: Tensor) -> Tensor:
    return F.linear(x[:, :3], s.w[:, 0:3]) + F.linear(x[:, 1:5], s.w[:, 1:5])


def _disjoint(s: Any, x: Tensor) -> Tensor:
    return torch.tanh(F.linear(x[:, :2], s.w[:, :2])) * F.linear(x[:, 2:], s.w[:, 2:]) + s.w[0, 0]


def _masked(s: Any, x: Tensor, mask: Tensor) -> Tensor:
    return s.b((torch.tanh(s.a(x)) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


def _norm(s: Any, x: Tensor) -> Tensor:
    return F.linear(x, s.v * (s.g / s.v.norm(dim=1, keepdim=True)))


def _steps(s: Any, x: Tensor) -> Tensor:
    return s.head(s.layer(x)[0].square().sum(1))


def _two_tables(s: Any, i: Tensor, j: Tensor) -> Tensor:
    return torch.tanh(s.e(i).mean(1) + s.e(j).sum(1) * s.e.weight[0])


_CONV2 = (4, 6, 5)
X = (5,)
VARIED: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "positions": (lambda: _chain(L(5, 4), nn.Tanh(), L(4), nn.Flatten(1), L(7 * OUT)), (7, 5)),
    "few positions, wide": (lambda: _chain(L(5, 9), nn.Tanh(), L(9, 11), nn.Flatten(1), L(22)), (2, 5)),
    "grouped convolution": (
        lambda: _chain(nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), nn.Tanh(), nn.Flatten(), L(54)),
        _CONV2,
    ),
    "depthwise convolution": (lambda: _chain(nn.Conv2d(4, 8, 3, groups=4), nn.Tanh(), nn.Flatten(), L(96)), _CONV2),
    "transposed convolution": (
        lambda: _chain(nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), nn.Tanh(), nn.Flatten(), L(78)),
        (4, 6),
    ),
    "circular convolution": (
        lambda: _chain(nn.Conv1d(4, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Flatten(), L(18)),
        (4, 6),
    ),
    "repeated tokens": (lambda: _chain(nn.Embedding(4, 6), L(6, 5), nn.Tanh(), nn.Flatten(1), L(45)), ("tokens", 9)),
    "one token": (lambda: _chain(nn.Embedding(40, 6), nn.Flatten(1), L(6)), ("tokens", 1)),
    "a table in three roles": (lambda: Free(_two_tables, e=nn.Embedding(4, OUT)), (("tokens", 4), ("tokens", 3))),
    "bag of embeddings": (lambda: _chain(nn.EmbeddingBag(4, 6, mode="mean"), L(6)), ("tokens", 5)),
    "self-attention": (lambda: Free(_attention, mha=nn.MultiheadAttention(4, 2, batch_first=True), head=L(4)), (5, 4)),
    "cross-attention": (
        lambda: Free(_cross_attention, mha=nn.MultiheadAttention(4, 2, batch_first=True), head=L(4)),
        ((5, 4), (3, 4)),
    ),
    "time-major attention": (lambda: Free(_time_major_attention, mha=nn.MultiheadAttention(4, 2), head=L(4)), (5, 4)),
    "scaled dot products": (lambda: Free(_own_attention, w=P(12, 4), head=L(4)), (5, 4)),
    "columns": (lambda: Free(lambda s, x: F.linear(x, s.w[:, 2:7]), w=P(OUT, 9)), X),
    "columns of a transposed weight": (lambda: Free(lambda s, x: x @ s.w.t()[2:7], w=P(OUT, 9)), X),
    "one of several weights": (lambda: Free(lambda s, x: x @ s.w[1], w=P(4, 5, OUT)), X),
    "the last of several weights": (lambda: Free(lambda s, x: x @ s.w[-1], w=P(4, 5, OUT)), X),
    "unbound weights": (lambda: Free(_unbound, w=P(3, 5, 5)), X),
    "unbound along the last axis": (lambda: Free(lambda s, x: sum(x @ w for w in s.w.unbind(-1)), w=P(5, OUT, 2)), X),
    "overlapping slices": (lambda: Free(_overlapping, w=P(OUT, 5)), X),
    "disjoint slices": (lambda: Free(_disjoint, w=P(OUT, 5)), X),
    "a slice and the whole": (lambda: Free(lambda s, x: F.linear(x, s.w) + s.w[:, 0], w=P(OUT, 5)), X),
    "every other row": (lambda: Free(lambda s, x: F.linear(x, s.w[::2]), w=P(2 * OUT, 5)), X),
    "slice of a slice": (lambda: Free(lambda s, x: F.linear(x, s.w[1:][:OUT, 1:][:, :5].clone()), w=P(7, 8)), X),
    "narrowed and turned": (lambda: Free(lambda s, x: x @ s.w.permute(2, 0, 1)[:, 1, :OUT], w=P(2, 6, 5)), X),
    "chunks of a bias": (lambda: Free(lambda s, x: s.a(x) * s.b.chunk(2)[0] + s.b.chunk(2)[1], a=L(), b=P(2 * OUT)), X),
    "permuted factors": (
        lambda: Free(lambda s, x: torch.einsum("npi,iqo->npqo", x.unflatten(1, (5, 1)), s.w).sum((1, 2)), w=P(1, 4, OUT)),
        X,
    ),
    "einsum with heads": (
        lambda: Free(lambda s, x: torch.einsum("nti,hio->nho", x, s.w).tanh().sum(1), w=P(2, 5, OUT)),
        (7, 5),
    ),
    "turned before einsum": (lambda: Free(lambda s, x: torch.einsum("ni,oai->no", x, s.w.permute(2, 1, 0)), w=P(5, 2, OUT)), X),
    "low rank": (lambda: Free(lambda s, x: s.a(x) + F.linear(x, 0.5 * s.B @ s.A), a=L(), B=P(OUT, 2), A=P(2, 5)), (7, 5)),
    "weight norm of a convolution": (
        lambda: _chain(parametrizations.weight_norm(nn.Conv1d(4, 3, 3)), nn.Tanh(), nn.Flatten(), L(12)),
        (4, 6),
    ),
    "weight norm by hand": (lambda: Free(_norm, v=P(OUT, 5), g=P(OUT, 1)), (7, 5)),
    "masks": (lambda: Free(_masked, a=L(5, 4), b=L(4)), ((7, 5), ("bits", 7))),
    "named, with a mask": (lambda: Free(_masked, a=L(5, 4), b=L(4)), {"mask": ("bits", 7), "x": (7, 5)}),
    "numbers": (lambda: Free(lambda s, x: (x[:, :OUT] * s.w).tanh() * s.v + s.u, w=P(), v=P(), u=P(1)), X),
    "one number for all positions": (lambda: Free(lambda s, x: s.a((x * s.w).tanh()).mean(1), w=P(), a=L()), (7, 5)),
    "layer norm": (lambda: _chain(L(5, 4), nn.LayerNorm(4), L(4), nn.Flatten(1)), (7, 5)),
    "root mean square norm": (lambda: _chain(L(5, 4), nn.RMSNorm(4), L(4), nn.Flatten(1)), (7, 5)),
    "instance norm": (
        lambda: _chain(nn.Conv1d(4, 3, 3, bias=False), nn.InstanceNorm1d(3, affine=True), nn.Tanh(), nn.Flatten(), L(12)),
        (4, 6),
    ),
    "batch norm": (lambda: _chain(nn.Conv1d(4, 3, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), L(12)), (4, 6)),
    "group norm": (lambda: _chain(nn.Conv1d(4, 6, 3), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(), L(24)), (4, 6)),
    "LSTM": (lambda: Free(_steps, layer=nn.LSTM(5, 4, batch_first=True, bidirectional=True), head=L(8)), (4, 5)),
    "GRU": (lambda: Free(_steps, layer=nn.GRU(5, 4, batch_first=True, num_layers=2), head=L(4)), (4, 5)),
    "PReLU of channels": (lambda: _chain(nn.Conv1d(4, 3, 3), nn.PReLU(3), nn.Flatten(), L(12)), (4, 6)),
    "bilinear with positions": (lambda: Free(lambda s, p, q: s.b(p, q).sum(1), b=nn.Bilinear(5, 4, OUT)), ((7, 5), (7, 4))),
}

EVERY = {**MODELS, **VARIED}


def make(name: str, count: int = N, seed: int = 0) -> tuple[nn.Module, Any]:
    """A model in eval mode and float64 with random values everywhere, and its inputs."""
    factory, shapes = EVERY[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory().double().eval()
        oracle.randomize(model)

        def one(shape: Any) -> Tensor:
            if shape == "lengths":
                return torch.randint(1, 7, (count,))
            if shape[0] == "tokens":
                return torch.randint(0, OUT, (count, shape[1]))
            if shape[0] == "bits":
                return (torch.rand(count, shape[1]) < 0.6).double()
            return torch.randn(count, *shape, dtype=torch.float64)

        if isinstance(shapes, dict):
            return model, {key: one(shape) for key, shape in shapes.items()}
        return model, tuple(map(one, shapes)) if isinstance(shapes[0], tuple) else one(shapes)


def targets(model: nn.Module, inputs: Any, seed: int = 1) -> Tensor:
    """Random targets of the output's shape."""
    with torch.no_grad():
        output = oracle.run(model, inputs)
    return torch.randn(output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_parameter(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """Columns of rows ``[..., D]`` by the name of their parameter."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = rows.split([p.numel() for _, p in named], dim=-1)
    return {name: part for (name, _), part in zip(named, parts, strict=True)}
