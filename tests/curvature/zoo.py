"""The architecture zoo of curvature: small models of every kind in float64, with inputs and labels. Nothing imports hesse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.curvature import factors
from tests.parameters import oracle
from tests.parameters.special import Free, L

N, C = 8, 3
SIZES = (3, 1, 1, 2, 1)
"""Five uneven parts of the N samples."""

MERGED = ("lstm", "gru", "attention", "crossed attention", "encoder, norm last", "encoder, norm first")
"""Entries whose layers see samples on the second axis: one sample alone is captured without factors."""


@dataclass(frozen=True)
class Entry:
    """A model, what goes in, the shape of a sample's labels, how its output is picked, and a plain equivalent for the oracle.

    Attributes:
        factory: makes the model.
        inputs: makes N samples.
        positions: the axes of a sample's labels after the class axis of the output.
        output: picks the tensor out of what the model returns.
        plain: what the model computes, in operations that PyTorch differentiates right twice; None: the model itself.
        twice: whether PyTorch differentiates the model twice at all.
    """

    factory: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    positions: tuple[int, ...] = ()
    output: Callable[[Any], Tensor] | None = None
    plain: Callable[..., Tensor] | None = None
    twice: bool = True


class Plain(nn.Module):
    """The model as the oracle runs it: the same parameters in the same order, with a tensor as its result."""

    def __init__(self, model: nn.Module, entry: Entry) -> None:
        super().__init__()
        self.model, self.entry = model, entry

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        run = self.model if self.entry.plain is None else functools.partial(self.entry.plain, self.model)
        found = run(*inputs, **named)
        return found if self.entry.output is None else self.entry.output(found)


def values(*shape: int, seed: int = 2) -> Tensor:
    """Random numbers ``[N, *shape]``, float64."""
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(*shape: int, below: int = C, seed: int = 3) -> Tensor:
    """Random integers ``[N, *shape]``; all that are possible occur."""
    found = torch.randint(0, below, (N, *shape), generator=torch.Generator().manual_seed(seed))
    found.view(-1)[:below] = torch.arange(below)
    return found


def labels(*shape: int) -> Tensor:
    """Class labels ``[N, *shape]``."""
    return tokens(*shape, seed=1)


class LanguageModel(nn.Module):
    """Named inputs, an object as its result, the embedding table tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(C, 4)
        self.mix = nn.Linear(4, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        seen = self.wte(input_ids) * attention_mask.unsqueeze(2)
        hidden = torch.tanh(self.mix(seen.cumsum(1)))
        return SimpleNamespace(logits=F.linear(hidden, self.wte.weight), past=None)


def _twin() -> nn.Module:
    model = nn.Sequential(L(3, 3), nn.Tanh(), L(3, 3), nn.Tanh(), L(3))
    model[2].weight = model[0].weight
    return model


def _nested() -> nn.Module:
    return nn.Sequential(nn.Sequential(L(4, 3), nn.Sequential(nn.Tanh())), nn.ModuleList([L(3)])[0])


def _frozen() -> nn.Module:
    model = nn.Sequential(L(4, 3), nn.Tanh(), L(3, 4), nn.Tanh(), L(4))
    model[0].bias.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def _recurrent(s: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 3)
    for step in x.unbind(1):
        state = torch.tanh(s.cell(torch.cat([step, state], 1)))
    return s.head(state)


def _attention(s: Any, x: Tensor) -> Tensor:
    return s.head(s.attention(x, x, x, need_weights=False)[0].mean(1))


def _crossed(s: Any, x: Tensor, memory: Tensor) -> Tensor:
    return s.head(s.attention(x, memory, memory, need_weights=False)[0].mean(1))


def _fused(s: Any, x: Tensor) -> Tensor:
    q, k, v = s.qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
    return s.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2).sum(1))


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(3, 1, 2, 0.0, "gelu", batch_first=True, norm_first=norm_first)
    return Free(lambda s, x: s.head(s.layer(x).mean(1)), layer=layer, head=L(3))


def _lookup(s: Any, indices: Tensor) -> Tensor:
    return s.head(torch.tanh(s.table(indices)).mean(1))


def _bagged(s: Any, indices: Tensor) -> Tensor:
    return s.head(torch.tanh(s.table(indices)))


def _bag(s: Any, indices: Tensor) -> Tensor:
    return s.head(torch.tanh(F.embedding(indices, s.table.weight).mean(1)))


def _last(s: Any, x: Tensor) -> Tensor:
    return s.head(torch.tanh(s.memory(x)[0][:, -1]))


def _lstm_last(s: Any, x: Tensor) -> Tensor:
    return s.head(torch.tanh(factors.lstm(s.memory, x)[:, -1]))


def _gru_last(s: Any, x: Tensor) -> Tensor:
    return s.head(torch.tanh(factors.gru(s.memory, x)[:, -1]))


def _checkpointed(s: Any, x: Tensor) -> Tensor:
    return s.b(checkpoint(lambda z: torch.tanh(s.a(z)), x, use_reentrant=False))  # pyright: ignore[reportArgumentType]


def _normalized(s: Any, x: Tensor) -> Tensor:
    g, v = s[0].parametrizations.weight.original0, s[0].parametrizations.weight.original1
    return s[2](torch.tanh(F.linear(x, g * v / v.square().sum(1, keepdim=True).sqrt(), s[0].bias)))


def _lora(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.tanh(F.linear(x, s.a.weight + s.up @ s.down, s.a.bias)))


def _sequence(s: Any, x: Tensor) -> Tensor:
    return s.b(torch.tanh(s.a(x))).transpose(1, 2)


def _conv(layer: Callable[[], nn.Module], hidden: int, *parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(layer(), *parts, nn.Tanh(), nn.Flatten(), L(hidden))


def _param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape))


ZOO: dict[str, Entry] = {
    "mlp": Entry(lambda: nn.Sequential(L(4, 5), nn.Tanh(), L(5, C, bias=False)), lambda: values(4)),
    "tied linears": Entry(_twin, lambda: values(3)),
    "frozen": Entry(_frozen, lambda: values(4)),
    "unused": Entry(lambda: Free(lambda s, x: s.b(s.a(x).sin()), a=L(4, 2), u=L(2, 2), b=L(2)), lambda: values(4)),
    "nested": Entry(_nested, lambda: values(4)),
    "re-used": Entry(lambda: Free(_recurrent, cell=L(5, 3), head=L(3)), lambda: values(3, 2)),
    "lstm": Entry(lambda: Free(_last, memory=nn.LSTM(3, 2, batch_first=True), head=L(2)), lambda: values(3, 3),
                  plain=_lstm_last),
    "gru": Entry(lambda: Free(_last, memory=nn.GRU(3, 2, batch_first=True), head=L(2)), lambda: values(3, 3),
                 plain=_gru_last),
    "attention": Entry(lambda: Free(_attention, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=L(4)),
                       lambda: values(3, 4)),
    "crossed attention": Entry(lambda: Free(_crossed, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=L(4)),
                               lambda: (values(2, 4), values(3, 4, seed=5))),
    "encoder, norm last": Entry(lambda: _encoder(False), lambda: values(2, 3)),
    "encoder, norm first": Entry(lambda: _encoder(True), lambda: values(2, 3)),
    "fused attention": Entry(lambda: Free(_fused, qkv=L(3, 12), head=L(4)), lambda: values(3, 3)),
    "embedding with padding": Entry(lambda: Free(_lookup, table=nn.Embedding(5, 3, padding_idx=1), head=L(3)),
                                    lambda: tokens(4, below=5)),
    "bag of embeddings": Entry(lambda: Free(_bagged, table=nn.EmbeddingBag(5, 3), head=L(3)), lambda: tokens(4, below=5),
                               plain=_bag),
    "convolution 1d, dilated": Entry(_conv(lambda: nn.Conv1d(2, 3, 2, dilation=2, padding=1), 15), lambda: values(2, 5)),
    "convolution 2d, strided": Entry(_conv(lambda: nn.Conv2d(2, 3, (2, 3), stride=(2, 1), padding=(0, 1)), 24),
                                     lambda: values(2, 4, 4)),
    "convolution 3d": Entry(_conv(lambda: nn.Conv3d(1, 2, 2), 8), lambda: values(1, 3, 2, 3)),
    "grouped": Entry(_conv(lambda: nn.Conv2d(4, 6, (1, 2), groups=2), 12), lambda: values(4, 2, 2)),
    "depthwise": Entry(_conv(lambda: nn.Conv1d(3, 6, 2, groups=3, padding=1, padding_mode="circular"), 30),
                       lambda: values(3, 4)),
    "transposed": Entry(_conv(lambda: nn.ConvTranspose2d(2, 3, (2, 3), stride=2, output_padding=1), 54),
                        lambda: values(2, 1, 2)),
    "transposed, grouped": Entry(_conv(lambda: nn.ConvTranspose1d(4, 6, 2, groups=2), 24), lambda: values(4, 3)),
    "max-pooling": Entry(_conv(lambda: nn.Conv2d(1, 3, 2), 6, nn.MaxPool2d((1, 2))), lambda: values(1, 2, 5)),
    "group norm": Entry(lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), L(8)),
                        lambda: values(2, 3)),
    "layer norm": Entry(lambda: nn.Sequential(L(4, 5), nn.LayerNorm(5), nn.Tanh(), L(5)), lambda: values(4)),
    "batch norm": Entry(lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), L(8)),
                        lambda: values(2, 3)),
    "checkpointed": Entry(lambda: Free(_checkpointed, a=L(4, 3), b=L(3)), lambda: values(4)),
    "weight norm": Entry(lambda: nn.Sequential(parametrizations.weight_norm(L(4, 3)), nn.Tanh(), L(3)), lambda: values(4),
                         plain=_normalized),
    "low-rank update": Entry(lambda: Free(_lora, a=L(4, 3), b=L(3), up=_param(3, 2), down=_param(2, 4)), lambda: values(4)),
    "tied embedding and head": Entry(lambda: Free(lambda s, i: F.linear(torch.tanh(s.table(i)).mean(1), s.table.weight),
                                                  table=nn.Embedding(C, 4)), lambda: tokens(4)),
    "dict inputs": Entry(LanguageModel, lambda: {"input_ids": tokens(4), "attention_mask": tokens(4, below=2, seed=8)}, (4,),
                         output=lambda found: found.logits.transpose(1, 2)),
    "sequence targets": Entry(lambda: Free(_sequence, a=L(4, 3), b=L(3)), lambda: values(5, 4), (5,)),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An entry made: the model in eval mode, the model of the oracle, inputs, labels."""

    model: nn.Module
    plain: nn.Module
    inputs: Any
    labels: Tensor
    options: dict[str, Any]
    twice: bool

    @property
    def batch(self) -> tuple[Any, Tensor]:
        """Inputs and labels."""
        return self.inputs, self.labels

    def part(self, indices: Tensor | slice) -> tuple[Any, Tensor]:
        """Some samples."""
        return pick(self.inputs, indices), self.labels[indices]

    def split(self, sizes: Sequence[int] = SIZES) -> list[tuple[Any, Tensor]]:
        """Uneven batches."""
        return [self.part(part) for part in torch.arange(N).split(list(sizes))]


def pick(inputs: Any, indices: Any) -> Any:
    """Some samples of inputs."""
    if isinstance(inputs, dict):
        return {name: part[indices] for name, part in inputs.items()}
    return tuple(part[indices] for part in inputs) if isinstance(inputs, tuple) else inputs[indices]


def make(name: str) -> Case:
    """A fresh model with random parameters, the same at every call."""
    entry = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = oracle.randomize(entry.factory().double().eval())
    options = {} if entry.output is None else {"output": entry.output}
    return Case(model, Plain(model, entry), entry.inputs(), labels(*entry.positions), options, entry.twice)
