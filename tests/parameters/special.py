"""Models that other libraries get wrong or refuse, each with its inputs; none draws random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

OUT = 3


class Free(nn.Module):
    """A module from a function of itself and its inputs, with any parts and parameters."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self, *inputs, **named)


class TwoProducts(torch.autograd.Function):
    """Two outputs, of which a model may use one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, w)
        return x @ w, (2 * x) @ w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        g = grads[0] + 2 * grads[1]
        return g @ w.T, x.T @ g


def P(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def L(inputs: int = 5, outputs: int = OUT, **options: Any) -> nn.Linear:
    return nn.Linear(inputs, outputs, **options)


def _tied(s: Any, tokens: Tensor) -> Tensor:
    return F.linear(torch.tanh(s.table(tokens).mean(1)), s.table.weight)


def _routed(s: Any, x: Tensor) -> Tensor:
    chosen = x[:, 0] > 0
    out = x.new_zeros(len(x), OUT)
    out[chosen] = s.a(x[chosen])
    out[~chosen] = s.b(x[~chosen])
    return out


def _in_place(s: Any, x: Tensor) -> Tensor:
    out = s.a(x)
    out[:, 1] = s.b(x)[:, 0] * out[:, 1].clone()
    out.add_(s.shift)
    return torch.relu_(out)


def _packed(s: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return s.head(s.lstm(packed)[1][0][-1])


def _sorted_inside(s: Any, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return s.b(torch.tanh(s.a(x[order])))[order.argsort()]


def _last_token(s: Any, x: Tensor, last: Tensor) -> Tensor:
    return s.b(torch.tanh(s.a(x))[torch.arange(len(x)), last])


def _branch(s: Any, x: Tensor) -> Tensor:
    return s.a(x) if s.a.weight.sum().item() > 1e6 else s.b(x)


def _routed_only_some(s: Any, x: Tensor) -> Tensor:
    out, chosen = x.new_zeros(len(x), OUT), x[:, 0] > 0
    out[chosen] = s.a(x[chosen])
    return out


def _checkpointed(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.tanh(checkpoint(s.a, x, use_reentrant=False)))  # pyright: ignore[reportArgumentType]


def _time_major(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.tanh(s.a(x.transpose(0, 1))).mean(0))


def _lora(s: Any, x: Tensor) -> Tensor:
    return F.linear(x, s.a.weight + s.up @ s.down, s.a.bias)


def _sequential(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts)


def _conv() -> nn.Module:
    return _sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), L(64))


def _frozen() -> nn.Module:
    model = _sequential(L(5, 4), nn.Tanh(), L(4))
    model[0].weight.requires_grad_(False)
    return model


def _twin() -> nn.Module:
    model = _sequential(L(5, 5), nn.Tanh(), L(5, 5), nn.Tanh(), L(5))
    model[2].weight = model[0].weight
    return model


X = (5,)
MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "tied embedding and head": (lambda: Free(_tied, table=nn.Embedding(OUT, 4)), ("tokens", 7)),
    "tied, with padding": (lambda: Free(_tied, table=nn.Embedding(OUT, 4, padding_idx=1)), ("tokens", 7)),
    "tied linears": (_twin, X),
    "called twice": (lambda: Free(lambda s, x: s.b(s.a(torch.tanh(s.a(x)))), a=L(5, 5), b=L()), X),
    "raw parameter": (lambda: Free(lambda s, x: x @ s.w + s.v, w=P(5, OUT), v=P(OUT)), X),
    "another module's weight": (lambda: Free(lambda s, x: s.b(F.linear(x, s.a.weight[:4])), a=L(5, 6), b=L(4)), X),
    "W**2": (lambda: Free(lambda s, x: x @ s.w**2, w=P(5, OUT)), X),
    "W.t()": (lambda: Free(lambda s, x: x @ s.w.t(), w=P(OUT, 5)), X),
    "W @ x": (lambda: Free(lambda s, x: (s.w @ x.T).T, w=P(OUT, 5)), X),
    "B @ A": (lambda: Free(lambda s, x: x @ (s.B @ s.A), B=P(5, 2), A=P(2, OUT)), X),
    "low-rank update": (lambda: Free(_lora, a=L(), up=P(OUT, 2), down=P(2, 5)), X),
    "view after transpose": (lambda: Free(lambda s, x: F.linear(x[:, :2], s.w.t().view(2, 3).t()), w=P(1, 6)), X),
    "split weights": (lambda: Free(lambda s, x: F.linear(x, s.w.split([3, 6])[1][3:]), w=P(9, 5)), X),
    "second part of split weights": (lambda: Free(lambda s, x: F.linear(x, s.w.split([OUT, OUT])[1]), w=P(2 * OUT, 5)), X),
    "flat parameters": (lambda: Free(lambda s, x: F.linear(x, s.w[:15].view(3, 5), s.w[15:]), w=P(18)), X),
    "scalar parameters": (lambda: Free(lambda s, x: x[:, :OUT] * s.w + s.v, w=P(), v=P()), X),
    "permuted weight": (lambda: Free(lambda s, x: torch.einsum("ni,aoi->no", x, s.w.permute(1, 2, 0)), w=P(5, 2, OUT)), X),
    "weight_norm": (lambda: _sequential(parametrizations.weight_norm(L(5, 4)), nn.Tanh(), L(4)), X),
    "weight_norm by hooks": (lambda: _sequential(nn.utils.weight_norm(L(5, 4)), nn.Tanh(), L(4)), X),
    "spectral_norm": (lambda: _sequential(parametrizations.spectral_norm(L(5, 4)), nn.Tanh(), L(4)), X),
    "frozen": (_frozen, X),
    "unused": (lambda: Free(lambda s, x: s.a(x), a=L(), b=L()), X),
    "detached between": (lambda: Free(lambda s, x: s.b(s.a(x).detach()), a=L(5, 4), b=L(4)), X),
    "nested": (lambda: _sequential(_sequential(L(5, 4), _sequential(nn.Tanh())), nn.ModuleList([L(4)])[0]), X),
    "two inputs": (lambda: Free(lambda s, p, q: s.a(p) * s.b(q), a=L(), b=L(4)), ((5,), (4,))),
    "named inputs": (lambda: Free(lambda s, p, q: s.a(p) * s.b(q), a=L(), b=L(4)), {"q": (4,), "p": (5,)}),
    "sequence first": (lambda: Free(_time_major, a=L(5, 4), b=L(4)), (7, 5)),
    "custom Function, first output": (lambda: Free(lambda s, x: TwoProducts.apply(x, s.w)[0], w=P(5, OUT)), X),
    "custom Function, second output": (lambda: Free(lambda s, x: TwoProducts.apply(x, s.w)[1], w=P(5, OUT)), X),
    "custom Function, both": (lambda: Free(lambda s, x: sum(TwoProducts.apply(x, s.w)), w=P(5, OUT)), X),
    "checkpointed": (lambda: Free(_checkpointed, a=L(5, 4), b=L(4)), X),
    "branch on .item()": (lambda: Free(_branch, a=L(), b=L()), X),
    "in place": (lambda: Free(_in_place, a=L(), b=L(5, 1), shift=P(OUT)), X),
    "in-place activation": (lambda: _sequential(L(5, 4), nn.ReLU(inplace=True), L(4)), X),
    "boolean routing": (lambda: Free(_routed, a=L(), b=L()), X),
    "routing past the parameters": (lambda: Free(_routed_only_some, a=L()), X),
    "packed sequences": (lambda: Free(_packed, lstm=nn.LSTM(5, 4, batch_first=True), head=L(4)), ((7, 5), "lengths")),
    "sorted inside": (lambda: Free(_sorted_inside, a=L(5, 4), b=L(4)), X),
    "flipped and back": (lambda: Free(lambda s, x: s.a(x.flip(0)).flip(0), a=L()), X),
    "last token": (lambda: Free(_last_token, a=L(5, 4), b=L(4)), ((7, 5), "lengths")),
    "distances to parameters": (lambda: Free(lambda s, x: torch.cdist(x, s.w), w=P(OUT, 5)), X),
    "indexed parameters": (lambda: Free(lambda s, i: s.w[i].sum(1), w=P(4, OUT)), ("tokens", 2)),
    "where": (lambda: Free(lambda s, x: torch.where(x > 0, s.w, s.v)[:, :OUT], w=P(5), v=P(1)), X),
    "sparse input": (lambda: Free(lambda s, x: torch.sparse.mm(x.to_sparse(), s.w), w=P(5, OUT)), X),
    "sparse rows": (lambda: Free(lambda s, x: x.to_sparse_csr() @ s.w, w=P(5, OUT)), X),
    "sparse gradient": (lambda: Free(lambda s, i: s.e(i).sum(1), e=nn.Embedding(4, OUT, sparse=True)), ("tokens", 7)),
    "channels last": (lambda: _conv().to(memory_format=torch.channels_last), (3, 6, 6)),
    "convolution": (_conv, (3, 6, 6)),
    "group norm without positions": (lambda: _sequential(L(5, 4), nn.GroupNorm(2, 4), L(4)), X),
    "batch norm without positions": (lambda: _sequential(L(5, 4), nn.BatchNorm1d(4), L(4)), X),
    "bilinear": (lambda: nn.Bilinear(5, 4, OUT), ((5,), (4,))),
    "one layer a group": (lambda: Free(lambda s, x: torch.einsum("nga,gao->no", x, s.w), w=P(2, 5, OUT)), (2, 5)),
    "quotients": (lambda: Free(lambda s, x: s.v / (x[:, :OUT] ** 2 + s.w**2 + 1), w=P(1), v=P(OUT)), X),
    "weights of a bag": (lambda: Free(lambda s, i: s.e(i, per_sample_weights=s.w[i].softmax(1)),
                                      e=nn.EmbeddingBag(4, OUT, mode="sum"), w=P(4)), ("tokens", 7)),
    "PReLU": (lambda: _sequential(L(5, 4), nn.PReLU(4), L(4)), X),
    "residual": (lambda: Free(lambda s, x: s.b(x + s.a(x) * s.gate), a=L(5, 5), b=L(), gate=P(1)), X),
    "output used twice": (lambda: Free(lambda s, x: (lambda h: h * h.exp())(s.a(x)), a=L()), X),
}  # fmt: skip


def make(name: str, count: int, seed: int = 0) -> tuple[nn.Module, Any]:
    """A model in eval mode and float64, and its inputs."""
    factory, shapes = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory().double().eval()

    def one(shape: Any) -> Tensor:
        if shape == "lengths":
            return torch.randint(1, 7, (count,), generator=generator)
        if shape[0] == "tokens":
            return torch.randint(0, OUT, (count, shape[1]), generator=generator)
        return torch.randn(count, *shape, generator=generator, dtype=torch.float64)

    if isinstance(shapes, dict):
        return model, {key: one(shape) for key, shape in shapes.items()}
    return model, tuple(map(one, shapes)) if isinstance(shapes[0], tuple) else one(shapes)


def batch_size(inputs: Any) -> int:
    """The number of samples of a tensor, tuple or dict of inputs."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0])
