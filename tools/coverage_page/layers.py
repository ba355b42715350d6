"""Cases: layers and their options."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.coverage_page.case import Case, P, layer, normal, program, tokens


def _einsum(equation: str, x: tuple[int, ...], w: tuple[int, ...]) -> Case:
    function = lambda s, data: torch.einsum(equation, data, s.w)  # noqa: E731 - a program is a function
    return Case(f"`einsum('{equation}', x, W)`", program(function, lambda: normal(*x), w=lambda: P(*w)))


def _on(function: Any, x: tuple[int, ...], *shapes: tuple[int, ...]) -> Any:
    """A program on normal inputs with parameters w, v."""
    parts: dict[str, Any] = {name: partial(P, *shape) for name, shape in zip("wv", shapes, strict=False)}
    return program(function, lambda: normal(*x), **parts)


PRODUCTS = [
    Case("`Linear` on `[N, i]`", layer(nn.Linear, 5, 3, x=lambda: normal(5))),
    Case("`Linear` on `[N, t, i]`", layer(nn.Linear, 5, 3, x=lambda: normal(4, 5))),
    Case("`Linear` on `[N, s, t, i]`, no bias", layer(nn.Linear, 5, 3, bias=False, x=lambda: normal(2, 4, 5))),
    Case("`Linear` on `[t, N, i]`", program(
        lambda s, x: s.a(x.transpose(0, 1)).transpose(0, 1), lambda: normal(4, 5), a=lambda: nn.Linear(5, 3))),
    Case("`Bilinear` on `[N, i]`", layer(nn.Bilinear, 5, 4, 3, x=lambda: (normal(5), normal(4)))),
    Case("`Bilinear` on `[N, t, i]`", layer(nn.Bilinear, 5, 4, 3, x=lambda: (normal(2, 5), normal(2, 4)))),
    Case("`x @ W + b`", _on(lambda s, x: x @ s.w + s.v, (5,), (5, 3), (3,))),
    Case("`(W @ x.T).T`", _on(lambda s, x: (s.w @ x.T).T, (5,), (3, 5))),
    Case("`x @ w`, a vector", _on(lambda s, x: x @ s.w, (5,), (5,))),
    Case("`addmv(b, x, w)`", _on(lambda s, x: torch.addmv(s.v, x, s.w, alpha=2), (5,), (5,), (1,))),
    Case("`addmm(b, x, W, beta=, alpha=)`", _on(
        lambda s, x: torch.addmm(s.v, x, s.w, beta=0.5, alpha=2), (5,), (5, 3), (3,))),
    Case("`bmm`, one weight a group", _on(
        lambda s, x: torch.bmm(x.transpose(0, 1), s.w).transpose(0, 1), (2, 5), (2, 5, 3))),
    Case("`baddbmm`", _on(
        lambda s, x: torch.baddbmm(s.v, x.transpose(0, 1), s.w).transpose(0, 1), (2, 5), (2, 5, 3), (2, 1, 3))),
    Case("`addbmm`", _on(lambda s, x: torch.addbmm(s.v, x.transpose(0, 1), s.w), (2, 5), (2, 5, 3), (3,))),
    _einsum("nga,gao->ngo", (2, 5), (2, 5, 3)),
    _einsum("ngk,pgk->np", (2, 5), (3, 2, 5)),
    Case("`x.to_sparse_csr() @ W`", _on(lambda s, x: x.to_sparse_csr() @ s.w, (5,), (5, 3))),
]  # fmt: skip

_image = partial(normal, 4, 7, 6)


def _conv(label: str, *args: Any, x: Any = _image, cls: Any = nn.Conv2d, **options: Any) -> Case:
    return Case(label, layer(cls, *args, x=x, **options))


CONVOLUTIONS = [
    _conv("`Conv1d`", 4, 3, 3, cls=nn.Conv1d, x=lambda: normal(4, 7)),
    _conv("`Conv2d`", 4, 3, (3, 2)),
    _conv("`Conv3d`", 4, 3, (3, 2, 1), cls=nn.Conv3d, x=lambda: normal(4, 5, 4, 3)),
    _conv("`Conv2d`, stride, padding, dilation", 4, 3, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    _conv("`Conv2d`, `padding='same'`, even kernel", 4, 3, (4, 2), padding="same"),
    *[_conv(f"`Conv2d`, `padding_mode='{mode}'`", 4, 3, 3, padding=(1, 2), padding_mode=mode)
      for mode in ("reflect", "replicate", "circular")],
    _conv("`Conv2d`, groups", 4, 6, 3, groups=2),
    _conv("`Conv2d`, depthwise, no bias", 4, 8, 3, groups=4, bias=False),
    _conv("`Conv2d`, channels last", 4, 3, 3, x=lambda: _image().to(memory_format=torch.channels_last)),
    _conv("`ConvTranspose1d`", 4, 3, 3, cls=nn.ConvTranspose1d, x=lambda: normal(4, 7)),
    _conv("`ConvTranspose2d`, stride, output padding, groups", 4, 6, 3, stride=2, output_padding=1, groups=2,
          cls=nn.ConvTranspose2d),
    _conv("`ConvTranspose3d`, dilation", 4, 3, 2, dilation=2, cls=nn.ConvTranspose3d, x=lambda: normal(4, 3, 4, 3)),
    Case("`Conv2d` on frames `[N * t, c, h, w]`", program(
        lambda s, x: s.a(x.flatten(0, 1)).unflatten(0, (-1, 2)), lambda: normal(2, 4, 5, 6), a=lambda: nn.Conv2d(4, 3, 3))),
]  # fmt: skip


def _bag(label: str, function: Any, **options: Any) -> Case:
    return Case(label, program(function, lambda: tokens(6), e=lambda: nn.EmbeddingBag(5, 3, **options)))


def _offsets(s: Any, i: Tensor) -> Tensor:
    """Bags of 0 to 6 tokens."""
    lengths = i[:, 0] * 2 % 7
    inside = torch.arange(i.shape[1]) < lengths.unsqueeze(1)
    return s.e(i[inside], F.pad(lengths.cumsum(0), (1, 0)))


TABLES = [
    Case("`Embedding`", layer(nn.Embedding, 5, 3, x=lambda: tokens(6))),
    Case("`Embedding` on `[N, s, t]`, `padding_idx`", layer(nn.Embedding, 5, 3, padding_idx=2, x=lambda: tokens(2, 6))),
    Case("`Embedding`, `scale_grad_by_freq`", layer(nn.Embedding, 5, 3, scale_grad_by_freq=True, x=lambda: tokens(6))),
    Case("`Embedding`, `sparse`", layer(nn.Embedding, 5, 3, sparse=True, x=lambda: tokens(6))),
    *[_bag(f"`EmbeddingBag`, `mode='{mode}'`", lambda s, i: s.e(i), mode=mode) for mode in ("sum", "mean", "max")],
    _bag("`EmbeddingBag`, bags of many lengths by offsets", _offsets, include_last_offset=True),
    _bag("`EmbeddingBag`, `padding_idx`, `scale_grad_by_freq`", lambda s, i: s.e(i), padding_idx=1, scale_grad_by_freq=True),
    _bag("`EmbeddingBag`, `sparse`", lambda s, i: s.e(i), mode="sum", sparse=True),
    Case("`EmbeddingBag`, learned `per_sample_weights`", program(
        lambda s, i: s.e(i, per_sample_weights=s.w[i].softmax(1)), lambda: tokens(6),
        e=lambda: nn.EmbeddingBag(5, 3, mode="sum"), w=lambda: P(5))),
    Case("`W[i]`", program(lambda s, i: s.w[i].sum(1), lambda: tokens(6), w=lambda: P(5, 3))),
    Case("`W.index_select(0, i)`", program(lambda s, i: s.w.index_select(0, i), lambda: tokens(), w=lambda: P(5, 3))),
    Case("`w.gather(0, i)`", program(lambda s, i: s.w.gather(0, i), lambda: tokens(), w=lambda: P(5))),
    Case("`w.take(i)`", program(lambda s, i: s.w.take(i), lambda: tokens(6), w=lambda: P(5))),
    Case("`W[i, j]`", program(lambda s, i: s.w[i, i.flip(1)], lambda: tokens(6), w=lambda: P(5, 5))),
    Case("`W[:, i].T`", program(lambda s, i: s.w[:, i].T, lambda: tokens(), w=lambda: P(3, 5))),
]  # fmt: skip

NORMALIZATIONS = [
    Case("`LayerNorm`", layer(nn.LayerNorm, 5, x=lambda: normal(3, 5))),
    Case("`LayerNorm` over two axes, no bias", layer(nn.LayerNorm, (3, 5), bias=False, x=lambda: normal(2, 3, 5))),
    Case("`RMSNorm`", layer(nn.RMSNorm, 5, x=lambda: normal(3, 5))),
    Case("`GroupNorm`", layer(nn.GroupNorm, 2, 4, x=lambda: normal(4, 3, 2))),
    Case("`InstanceNorm1d`, affine", layer(nn.InstanceNorm1d, 4, affine=True, x=lambda: normal(4, 6))),
    Case("`InstanceNorm2d`, affine, running statistics", layer(
        nn.InstanceNorm2d, 4, affine=True, track_running_stats=True, x=lambda: normal(4, 3, 2))),
    Case("`BatchNorm1d`, evaluation", layer(nn.BatchNorm1d, 5, x=lambda: normal(5))),
    Case("`BatchNorm3d`, evaluation", layer(nn.BatchNorm3d, 4, x=lambda: normal(4, 3, 2, 2))),
]  # fmt: skip

ELEMENTWISE = [
    Case("`PReLU`, one slope", layer(nn.PReLU, x=lambda: normal(3, 5))),
    Case("`PReLU`, a slope a channel", layer(nn.PReLU, 3, x=lambda: normal(3, 5))),
    Case("`w * x + v`", _on(lambda s, x: s.w * x + s.v, (3, 5), (5,), (3, 1))),
    Case("`x - v`, `sub(x, v, alpha=2)`", _on(lambda s, x: torch.sub(x - s.w, s.v, alpha=2), (3, 5), (5,), ())),
    Case("`x / w`, `v / x`", _on(lambda s, x: x / s.w + s.v / (x**2 + 1), (3, 5), (5,), (3, 1))),
    Case("`where(x > 0, w, v)`", _on(lambda s, x: torch.where(x > 0, s.w, s.v), (3, 5), (5,), (3, 1))),
    Case("`w.expand(N, -1)`", _on(lambda s, x: torch.cat([x, s.w.expand(len(x), -1)], 1).sin(), (5,), (3,))),
    Case("`w.repeat(N, 1)`", _on(lambda s, x: torch.cat([x, s.w.repeat(len(x), 1)], 1).sin(), (5,), (3,))),
    Case("`x.abs() ** w`", _on(lambda s, x: x.abs() ** s.w, (3, 5), (5,))),
    Case("`maximum(x, w)`", _on(lambda s, x: torch.maximum(x, s.w), (3, 5), (5,))),
    Case("`cdist(x, W)`", _on(lambda s, x: torch.cdist(x, s.w), (5,), (3, 5))),
]  # fmt: skip
