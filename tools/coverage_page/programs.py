"""Cases: weights that are functions of parameters, and programs in which parameters and samples are used in unusual ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.fft import irfft, rfft
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tools.coverage_page.case import Case, P, layer, normal, program, tokens

_x = partial(normal, 5)
_L = partial(nn.Linear, 5, 3)


def _weight(label: str, function: Any, *shapes: tuple[int, ...], tolerance: float = 1e-12) -> Case:
    parts: dict[str, Any] = {name: partial(P, *shape) for name, shape in zip("wv", shapes, strict=False)}
    return Case(label, program(function, _x, **parts), tolerance=tolerance)


WEIGHTS = [
    _weight("`W.T`", lambda s, x: x @ s.w.T, (3, 5)),
    _weight("`W[:3]`, another part unused", lambda s, x: F.linear(x, s.w[:3]), (7, 5)),
    _weight("`W.chunk(2)`, both parts", lambda s, x: F.linear(F.linear(x, s.w.chunk(2)[0]), s.w.chunk(2)[1]), (10, 5)),
    _weight("one flat vector, cut and viewed", lambda s, x: F.linear(x, s.w[:15].view(3, 5), s.w[15:]), (18,)),
    _weight("a cast: `W.float()`", lambda s, x: F.linear(x.float(), s.w.float()).double(), (3, 5), tolerance=1e-6),
    _weight("`W.permute(...)`", lambda s, x: torch.einsum("ni,aoi->no", x, s.w.permute(1, 2, 0)), (5, 2, 3)),
    _weight("`W ** 2`", lambda s, x: x @ s.w**2, (5, 3)),
    _weight("`B @ A`", lambda s, x: x @ (s.w @ s.v), (5, 2), (2, 3)),
    Case("low-rank update, `W + B @ A`", program(
        lambda s, x: F.linear(x, s.a.weight + s.w @ s.v, s.a.bias), _x, a=_L, w=partial(P, 3, 2), v=partial(P, 2, 5))),
    Case("`parametrizations.weight_norm`", layer(lambda: parametrizations.weight_norm(_L()), x=_x)),
    Case("`utils.weight_norm` (hooks)", layer(lambda: nn.utils.weight_norm(_L()), x=_x)),
    Case("`spectral_norm`, evaluation", layer(lambda: parametrizations.spectral_norm(_L()), x=_x)),
    Case("`parametrizations.orthogonal`", layer(lambda: parametrizations.orthogonal(_L()), x=_x)),
    Case("`functional_call` with other weights", program(
        lambda s, x: functional_call(s.a, {"weight": s.a.weight * 2}, (x,)), _x, a=_L)),
    _weight("rounded, straight through", lambda s, x: x @ (s.w + (s.w.round() - s.w).detach()), (5, 3)),
    _weight("a filter: `irfft(rfft(x) * rfft(w))`", lambda s, x: irfft(rfft(x) * rfft(s.w), n=5), (5,)),
    _weight("`view_as_complex(W)`", lambda s, x: (x.to(torch.complex128) @ torch.view_as_complex(s.w)).abs(), (5, 3, 2)),
    _weight("`cat` of two parameters", lambda s, x: F.linear(x, torch.cat([s.w, s.v])), (1, 5), (2, 5)),
]  # fmt: skip


class _Product(torch.autograd.Function):
    """A custom Function, whose backward is a Python method."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] @ w.T, x.T @ grads[0]


def _tied(s: Any, i: Tensor) -> Tensor:
    return F.linear(s.table(i).mean(1).tanh(), s.table.weight)


def _reused(s: Any, x: Tensor) -> Tensor:
    return s.b(s.a(s.a(x).tanh()))


def _checkpointed(s: Any, x: Tensor) -> Tensor:
    return s.b(checkpoint(s.a, x, use_reentrant=False).tanh())  # pyright: ignore[reportOptionalMemberAccess]


def _saved(s: Any, x: Tensor) -> Tensor:
    with save_on_cpu():
        return s.a(x).exp()


def _autocast(s: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return s.b(s.a(x).tanh()).to(x.dtype)


def _branch(s: Any, x: Tensor) -> Tensor:
    return s.a(x) if s.a.weight.sum().item() > 1e6 else s.b(x)


def _in_place(s: Any, x: Tensor) -> Tensor:
    out = s.a(x)
    out[:, 1] = s.b(x)[:, 0] * out[:, 1].clone()
    return torch.relu_(out.add_(s.shift))


def _routed(s: Any, x: Tensor) -> Tensor:
    chosen, out = x[:, 0] > 0, x.new_zeros(len(x), 3)
    out[chosen], out[~chosen] = s.a(x[chosen]), s.b(x[~chosen])
    return out


def _gated(s: Any, x: Tensor) -> Tensor:
    return (s.gate(x).softmax(1).unsqueeze(2) * torch.stack([s.a(x), s.b(x)], 1)).sum(1)


def _force(s: Any, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(s.b(s.a(x).tanh()).sum(), x, create_graph=True)[0]


def _force_by_func(s: Any, x: Tensor) -> Tensor:
    return vmap(grad(lambda one: s.b(s.a(one).tanh()).sum()))(x)


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    return model


def _shifted() -> nn.Module:
    model = nn.Linear(5, 3)
    model.register_buffer("shift", torch.randn(3))
    model.forward = lambda x: F.linear(x, model.weight, model.bias) * model.shift  # pyright: ignore
    return model


_square = partial(nn.Linear, 5, 5)
PROGRAMS = [
    Case("tied embedding and head", program(_tied, lambda: tokens(6, below=3), table=lambda: nn.Embedding(3, 4))),
    Case("a layer used twice", program(_reused, _x, a=_square, b=_L)),
    Case("a frozen parameter", layer(_frozen, x=_x)),
    Case("an unused layer", program(lambda s, x: s.a(x), _x, a=_L, b=_L)),
    Case("buffers", layer(_shifted, x=_x)),
    Case("several inputs", program(lambda s, p, q: s.a(p) * s.b(q), lambda: (normal(5), normal(5)), a=_L, b=_L)),
    Case("residual, gated", program(lambda s, x: s.b(x + s.a(x) * s.w), _x, a=_square, b=_L, w=partial(P, 1))),
    Case("in-place writes", program(_in_place, _x, a=_L, b=lambda: nn.Linear(5, 1), shift=partial(P, 3))),
    Case("a branch on `.item()`", program(_branch, _x, a=_L, b=_L)),
    Case("`.detach()` between layers", program(lambda s, x: s.b(s.a(x).detach()), _x, a=_square, b=_L)),
    Case("custom `autograd.Function`", program(lambda s, x: _Product.apply(s.a(x), s.w), _x, a=_square, w=partial(P, 5, 3))),
    Case("`checkpoint(..., use_reentrant=False)`", program(_checkpointed, _x, a=_square, b=_L)),
    Case("saved tensor hooks (`save_on_cpu`)", program(_saved, _x, a=_L)),
    Case("`autocast` to bfloat16", program(_autocast, _x, a=_square, b=_L), torch.float32, 0.03),
    Case("a derivative by the inputs inside (forces)", program(_force, _x, a=_square, b=_L)),
    Case("the same by `vmap(grad(...))`", program(_force_by_func, _x, a=_square, b=_L)),
    Case("an ensemble by `vmap` over weights", program(
        lambda s, x: vmap(lambda w: (x @ w).sin())(s.w).sum(0), _x, w=partial(P, 2, 5, 3))),
    Case("complex numbers inside", program(lambda s, x: torch.fft.fft(s.a(x)).abs(), _x, a=_L)),
    Case("mixture of experts, all evaluated", program(_gated, _x, a=_L, b=_L, gate=lambda: nn.Linear(5, 2))),
    Case("routing by a boolean mask", program(_routed, _x, a=_L, b=_L)),
    Case("samples sorted inside", program(
        lambda s, x: s.b(s.a(x[x[:, 0].argsort()]).tanh())[x[:, 0].argsort().argsort()], _x, a=_square, b=_L)),
    Case("the last token of each sample", program(
        lambda s, x: s.a(x).sin()[torch.arange(len(x)), (x[:, 0, 0] > 0).long()], lambda: normal(2, 5), a=_L)),
]  # fmt: skip
