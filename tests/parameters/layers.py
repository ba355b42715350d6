"""Families of layers: each draws one module with options from its signature, and says what goes in."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    options = draw_options(nn.Bilinear, rng, {"in1_features": 3, "in2_features": 4, "out_features": 2})
    extra = (3,) if rng.random() < 0.5 else ()
    return Drawn(nn.Bilinear(**options), describe("Bilinear", options), [(*extra, 3), (*extra, 4)])


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
    given = {
        "num_embeddings": 6, "embedding_dim": 3, "padding_idx": rng.choice([None, 0, 2, -1]),
        "max_norm": 1.0 if rng.random() < 0.08 else None, "scale_grad_by_freq": rng.random() < 0.08,
    }  # fmt: skip
    options = draw_options(nn.Embedding, rng, given)
    shape = tuple(rng.choice([2, 4]) for _ in range(rng.choice([0, 1, 2])))
    refused = "max_norm" if given["max_norm"] else "scale_grad_by_freq" if given["scale_grad_by_freq"] else ""
    return Drawn(nn.Embedding(**options), describe("Embedding", options), [shape], tokens=6, refused=refused)


def embedding_bag(rng: random.Random) -> Drawn:
    mode = rng.choice(["sum", "mean", "max"])
    given = {
        "num_embeddings": 5, "embedding_dim": 3, "padding_idx": rng.choice([None, 0, 2, -1]), "mode": mode,
        "max_norm": 1.0 if rng.random() < 0.08 else None, "include_last_offset": False,
        "scale_grad_by_freq": mode != "max" and rng.random() < 0.08, "sparse": mode != "max" and rng.random() < 0.3,
    }  # fmt: skip
    options = draw_options(nn.EmbeddingBag, rng, given)
    refused = "max_norm" if given["max_norm"] else "scale_grad_by_freq" if given["scale_grad_by_freq"] else ""
    weighted = mode == "sum" and rng.random() < 0.5

    def call(layer: nn.Module, tokens: Tensor) -> Tensor:
        weights = torch.linspace(0.5, 2.0, tokens.numel() // len(tokens), dtype=torch.float64).expand_as(tokens)
        return layer(tokens, per_sample_weights=weights) if weighted else layer(tokens)

    return Drawn(nn.EmbeddingBag(**options), describe("EmbeddingBag", options), [(7,)], call, 5, refused)


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
    transformer, recurrent, cell,
)  # fmt: skip
