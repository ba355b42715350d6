"""Families of layers: each draws one module with options from its signature, and says what goes in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.parameters.drawing import as_tuple, describe, draw_options, per_axis


@dataclass
class Drawn:
    """A layer, how it is called, the shapes of a sample's inputs (None: tokens), and why it has to be refused, if so."""

    layer: nn.Module
    label: str
    shapes: Sequence[tuple[int, ...]]
    call: Callable[..., Tensor] = lambda layer, *inputs: layer(*inputs)
    tokens: int = 0
    refused: str = ""


def linear(rng: random.Random) -> Drawn:
    given = {"in_features": 4, "out_features": 3}
    options = draw_options(nn.Linear, rng, given)
    shape = (*[rng.choice([2, 3]) for _ in range(rng.choice([0, 1, 2]))], 4)
    return Drawn(nn.Linear(**options), describe("Linear", options), [shape])


def bilinear(rng: random.Random) -> Drawn:
    options = draw_options(nn.Bilinear, rng, {"in1_features": 3, "in2_features": 4, "out_features": rng.choice([1, 2])})
    extra = tuple(rng.choice([1, 2, 3]) for _ in range(rng.choice([0, 1, 2])))
    first = not extra or rng.random() < 0.5

    def call(layer: nn.Module, *inputs: Tensor) -> Tensor:
        result = layer(*[x if first else x.transpose(0, 1) for x in inputs])
        return result if first else result.transpose(0, 1)

    label = describe("Bilinear", {**options, "extra": extra, "samples first": first})
    return Drawn(nn.Bilinear(**options), label, [(*extra, 3), (*extra, 4)], call)


def convolution(rng: random.Random) -> Drawn:
    axes, transposed = rng.choice([1, 2, 3]), rng.random() < 0.35
    cls: Any = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    groups = rng.choice([1, 1, 2, 3])
    kernel = per_axis(rng, axes, [1, 2, 3])
    mode = "zeros" if transposed else rng.choice(["zeros", "reflect", "replicate", "circular"])
    same = not transposed and rng.random() < 0.25
    stride = 1 if same else per_axis(rng, axes, [1, 2])
    dilation = per_axis(rng, axes, [1, 2])
    padding: Any = rng.choice(["same", "same", "valid"]) if same else per_axis(rng, axes, [0, 1, 2])
    highest = [max(s, d) - 1 for s, d in zip(as_tuple(stride, axes), as_tuple(dilation, axes), strict=True)]
    given = {
        "in_channels": groups * rng.choice([1, 2]), "out_channels": groups * rng.choice([1, 2]), "kernel_size": kernel,
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode,
        "output_padding": tuple(rng.randint(0, high) for high in highest),
    }  # fmt: skip
    options = draw_options(cls, rng, given)
    sizes = [5, 7, 6] if axes < 3 else [5, 6, 5]
    shape = (given["in_channels"], *sizes[:axes])
    return Drawn(cls(**options), describe(cls.__name__, options), [shape])


def embedding(rng: random.Random) -> Drawn:
    scaled = rng.random() < 0.3
    given = {
        "num_embeddings": 6, "embedding_dim": 3, "padding_idx": rng.choice([None, 0, 2, -1]),
        "max_norm": 1.0 if rng.random() < 0.08 else None, "scale_grad_by_freq": scaled,
        "sparse": not scaled and rng.random() < 0.3,  # PyTorch has no sparse gradient scaled by frequency
    }  # fmt: skip
    options = draw_options(nn.Embedding, rng, given)
    shape = tuple(rng.choice([2, 4, 7]) for _ in range(rng.choice([0, 1, 2])))
    refused = "max_norm" if given["max_norm"] else ""
    return Drawn(nn.Embedding(**options), describe("Embedding", options), [shape], tokens=6, refused=refused)


class Bag(nn.Module):
    """A bag of embeddings of the first tokens of a sample, with weights of a given kind."""

    def __init__(self, options: dict[str, Any], sizes: str, weights: str) -> None:
        super().__init__()
        self.bag, self.sizes, self.weights = nn.EmbeddingBag(**options), sizes, weights
        learned = {"by token": options["num_embeddings"], "by place": 7}
        if weights in learned:
            self.factors = nn.Parameter(torch.empty(learned[weights]))

    def forward(self, tokens: Tensor) -> Tensor:
        given = self._weights(tokens)
        if self.sizes == "rows":
            return self.bag(tokens, per_sample_weights=given)
        most = tokens.shape[1]
        lengths = tokens[:, 0] * 3 % (most + 1) if self.sizes == "of many lengths" else torch.full((len(tokens),), most)
        inside = torch.arange(most) < lengths.unsqueeze(1)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        offsets = offsets if self.bag.include_last_offset else offsets[:-1]
        return self.bag(tokens[inside], offsets, None if given is None else given[inside])

    def _weights(self, tokens: Tensor) -> Tensor | None:
        if self.weights == "constant":
            return torch.linspace(-0.5, 2.0, 7, dtype=torch.float64).expand_as(tokens)
        if self.weights == "by token":
            return self.factors[tokens]
        return self.factors.expand_as(tokens) if self.weights == "by place" else None


def embedding_bag(rng: random.Random) -> Drawn:
    mode = rng.choice(["sum", "mean", "max"])
    sizes = rng.choice(["rows", "of one length", "of many lengths"])
    weights = rng.choice(["", "constant", "by token", "by place"]) if mode == "sum" else ""
    one_by_one = sizes != "rows" and weights.startswith("by")  # picked by a mask: each sample alone, whose rows have to add up
    scaled = mode != "max" and not one_by_one and rng.random() < 0.25
    given = {
        "num_embeddings": 5, "embedding_dim": 3, "padding_idx": rng.choice([None, 0, 2, -1]), "mode": mode,
        "max_norm": 1.0 if rng.random() < 0.08 else None, "include_last_offset": sizes != "rows" and rng.random() < 0.5,
        "scale_grad_by_freq": scaled, "sparse": mode != "max" and not scaled and rng.random() < 0.3,
    }  # fmt: skip
    options = draw_options(nn.EmbeddingBag, rng, given)
    label = describe("EmbeddingBag", {**options, "bags": sizes, "weights": weights})
    return Drawn(Bag(options, sizes, weights), label, [(7,)], tokens=5, refused="max_norm" if given["max_norm"] else "")


class Weights(nn.Module):
    """Parameters that a function of them and of the inputs uses."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.weights)


PRODUCTS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    **{
        equation: (partial(torch.einsum, equation), (shape,))
        for equation, shape in {
            "ngk,gkp->ngp": (3, 4, 2), "ngk,pgk->np": (2, 3, 4), "ngk,kp->ngp": (4, 2), "ngk,gk->ngk": (3, 4),
            "ngk,p->npkg": (2,), "ngk,pk->npg": (2, 4),
        }.items()
    },
    "bmm": (lambda x, w: torch.bmm(x.transpose(0, 1), w).transpose(0, 1), ((3, 4, 2),)),
    "bmm, weight first": (lambda x, w: torch.bmm(w, x.permute(1, 2, 0)).permute(2, 0, 1), ((3, 2, 4),)),
    "baddbmm": (lambda x, v, w: torch.baddbmm(v, x.transpose(0, 1), w, beta=0.5, alpha=2.0).transpose(0, 1),
                ((3, 1, 2), (3, 4, 2))),
    "addbmm": (lambda x, v, w: torch.addbmm(v, x.transpose(0, 1), w, beta=0.5, alpha=2.0), ((2,), (3, 4, 2))),
    "matmul": (torch.matmul, ((4, 2),)),
    "matmul of a vector": (lambda x, w: torch.matmul(x, w), ((4,),)),
    "matmul of many": (lambda x, w: torch.matmul(x.unsqueeze(2), w), ((3, 4, 2),)),
    "addmv": (lambda x, v, w: torch.addmv(v, x[:, 0], w, beta=0.5, alpha=2.0).unsqueeze(1), ((1,), (4,))),
    "quotient": (lambda x, v, w: v / (x.square() + 1) + x / (w.square() + 1), ((3, 1), (4,))),
    "choice": (lambda x, v, w: torch.where(x > 0, v, w), ((3, 1), (4,))),
    "repeated": (lambda x, w: torch.cat([x, w.repeat(len(x), 1, 2)], 2), ((3, 2),)),
    "products of inputs": (lambda x, w: torch.einsum("nga,oab,ngb->ngo", x, w, x), ((2, 4, 4),)),
}  # fmt: skip


def product(rng: random.Random) -> Drawn:
    name = rng.choice(sorted(PRODUCTS))
    function, shapes = PRODUCTS[name]
    return Drawn(Weights(function, *shapes), name, [(3, 4)])


LOOKUPS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "W[i]": (lambda i, w: w[i], (5, 3)),
    "W[i] of a vector": (lambda i, w: w[i], (5,)),
    "W[i] of matrices": (lambda i, w: w[i], (5, 2, 3)),
    "W[-i]": (lambda i, w: w[-i], (5, 3)),
    "W[i, j]": (lambda i, w: w[i, i.flip(1)], (5, 5)),
    "W[:, i]": (lambda i, w: w[:, i].transpose(0, 1), (3, 5)),
    "index_select": (lambda i, w: w.index_select(0, i.flatten()).reshape(*i.shape, 3), (5, 3)),
    "gather": (lambda i, w: w.gather(0, i.flatten()).reshape(i.shape), (5,)),
    "gather of rows": (lambda i, w: w.gather(0, i), (5, 6)),
    "take": (lambda i, w: w.take(i), (5,)),
}  # fmt: skip


def lookup(rng: random.Random) -> Drawn:
    name = rng.choice(sorted(LOOKUPS))
    function, shape = LOOKUPS[name]
    return Drawn(Weights(function, shape), name, [(rng.choice([1, 2, 6]),)], tokens=5)


def normalization(rng: random.Random) -> Drawn:
    name = rng.choice(["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "BatchNorm"])
    if name in ("LayerNorm", "RMSNorm"):
        shape = (*[rng.choice([2, 3]) for _ in range(rng.choice([0, 1, 2]))], 5)
        cls: Any = getattr(nn, name)
        over = shape[-rng.randint(1, len(shape)) :]
        options = draw_options(cls, rng, {"normalized_shape": over[0] if len(over) == 1 else over})
        return Drawn(cls(**options), describe(name, options), [shape])
    axes = rng.choice([1, 2, 3])
    spatial = tuple(rng.choice([2, 3, 4]) for _ in range(axes))
    if name == "GroupNorm":
        options = draw_options(nn.GroupNorm, rng, {"num_groups": rng.choice([1, 2]), "num_channels": 4})
        return Drawn(nn.GroupNorm(**options), describe(name, options), [(4, *spatial[: rng.choice([0, axes])])])
    cls = getattr(nn, f"{name}{axes}d")
    track = True if name == "BatchNorm" else rng.random() < 0.5
    options = draw_options(cls, rng, {"num_features": 3, "track_running_stats": track})
    no_positions = name == "BatchNorm" and axes == 1 and rng.random() < 0.5
    return Drawn(cls(**options), describe(cls.__name__, options), [(3,) if no_positions else (3, *spatial)])


def prelu(rng: random.Random) -> Drawn:
    options = draw_options(nn.PReLU, rng, {"num_parameters": rng.choice([1, 3])})
    shape = (3, *[rng.choice([2, 4]) for _ in range(rng.choice([0, 1, 2]))])
    return Drawn(nn.PReLU(**options), describe("PReLU", options), [shape])


def attention(rng: random.Random) -> Drawn:
    kdim, vdim = rng.choice([None, 3]), rng.choice([None, 5])
    options = draw_options(
        nn.MultiheadAttention,
        rng,
        {
            "embed_dim": 4, "num_heads": rng.choice([1, 2]), "kdim": kdim, "vdim": vdim,
            "add_bias_kv": rng.random() < 0.3, "add_zero_attn": rng.random() < 0.3,
        },
    )  # fmt: skip
    first, need = options["batch_first"], rng.random() < 0.5

    def call(layer: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        inputs = [x if first else x.transpose(0, 1) for x in (query, key, value)]
        result = layer(*inputs, need_weights=need)[0]
        return result if first else result.transpose(0, 1)

    shapes = [(3, 4), (5, kdim or 4), (5, vdim or 4)]
    return Drawn(nn.MultiheadAttention(**options), describe("MultiheadAttention", options), shapes, call)


def transformer(rng: random.Random) -> Drawn:
    decoder = rng.random() < 0.4
    cls: Any = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    given = {"d_model": 4, "nhead": 2, "dim_feedforward": 5, "activation": rng.choice(["relu", "gelu", F.silu])}
    options = draw_options(cls, rng, given)
    first = options["batch_first"]

    def call(layer: nn.Module, *inputs: Tensor) -> Tensor:
        result = layer(*[x if first else x.transpose(0, 1) for x in inputs])
        return result if first else result.transpose(0, 1)

    return Drawn(cls(**options), describe(cls.__name__, options), [(3, 4), (2, 4)] if decoder else [(3, 4)], call)


def recurrent(rng: random.Random) -> Drawn:
    name = rng.choice(["RNN", "LSTM", "GRU"])
    layers = rng.choice([1, 2])
    given = {
        "mode": None, "input_size": 4, "hidden_size": 3, "num_layers": layers,
        "proj_size": rng.choice([0, 2]) if name == "LSTM" else 0, "dropout": rng.choice([0.0, 0.3]) if layers > 1 else 0.0,
    }  # fmt: skip
    options = draw_options(nn.RNNBase.__init__, rng, given)
    options.pop("mode")
    if name != "LSTM":
        options.pop("proj_size")
    if name == "RNN":
        options["nonlinearity"] = rng.choice(["tanh", "relu"])
    first, last = options["batch_first"], rng.random() < 0.3

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        result, state = layer(x if first else x.transpose(0, 1))
        if last:
            return (state[0] if isinstance(state, tuple) else state).transpose(0, 1)
        return result if first else result.transpose(0, 1)

    return Drawn(getattr(nn, name)(**options), describe(name, options), [(5, 4)], call)


def cell(rng: random.Random) -> Drawn:
    cls: Any = rng.choice([nn.RNNCell, nn.LSTMCell, nn.GRUCell])
    given = {"input_size": 4, "hidden_size": 3, "nonlinearity": rng.choice(["tanh", "relu"])}
    options = draw_options(cls, rng, given)

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = layer(step, state)
        return state[0] if isinstance(state, tuple) else state

    return Drawn(cls(**options), describe(cls.__name__, options), [(3, 4)], call)


FAMILIES = (
    linear, bilinear, convolution, convolution, embedding, embedding_bag, normalization, normalization, prelu, attention,
    transformer, recurrent, cell, product, lookup,
)  # fmt: skip
