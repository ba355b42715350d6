"""Cases: attention, transformers and recurrent layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from tools.coverage_page.case import Case, P, layer, normal, program

_sequence = partial(normal, 3, 6)


def _attention(label: str, kdim: int = 6, vdim: int = 6, need_weights: bool = False, **options: Any) -> Case:
    function = lambda s, q, k, v: s.attention(q, k, v, need_weights=need_weights)[0]  # noqa: E731 - a program is a function
    make = lambda: nn.MultiheadAttention(6, 2, kdim=kdim, vdim=vdim, batch_first=True, **options)  # noqa: E731
    return Case(label, program(function, lambda: (_sequence(), normal(5, kdim), normal(5, vdim)), attention=make))


def _causal(s: Any, x: Tensor) -> Tensor:
    heads = [part.unflatten(2, (2, 3)).transpose(1, 2) for part in s.qkv(x).chunk(3, 2)]
    return F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)


def _learned_queries(s: Any, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(s.q.expand(len(x), -1, -1), x, x)


ATTENTION = [
    Case("`MultiheadAttention`, self", program(
        lambda s, x: s.attention(x, x, x, need_weights=False)[0], _sequence,
        attention=lambda: nn.MultiheadAttention(6, 2, batch_first=True))),
    Case("`MultiheadAttention`, self, `batch_first=False`", program(
        lambda s, x: s.attention(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), _sequence,
        attention=lambda: nn.MultiheadAttention(6, 2))),
    _attention("`MultiheadAttention`, cross"),
    _attention("`MultiheadAttention`, cross, `need_weights=True`", need_weights=True),
    _attention("`MultiheadAttention`, `kdim`, `vdim`", 4, 5),
    _attention("`MultiheadAttention`, `add_bias_kv`, `add_zero_attn`", add_bias_kv=True, add_zero_attn=True),
    Case("`scaled_dot_product_attention`, causal", program(_causal, _sequence, qkv=lambda: nn.Linear(6, 18))),
    Case("`scaled_dot_product_attention`, learned queries", program(_learned_queries, _sequence, q=lambda: P(2, 6))),
    Case("`TransformerEncoderLayer`", layer(nn.TransformerEncoderLayer, 6, 2, 5, batch_first=True, x=_sequence)),
    Case("`TransformerEncoderLayer`, `norm_first`, gelu, `batch_first=False`", program(
        lambda s, x: s.layer(x.transpose(0, 1)).transpose(0, 1), _sequence,
        layer=lambda: nn.TransformerEncoderLayer(6, 2, 5, activation="gelu", norm_first=True))),
    Case("`TransformerDecoderLayer`", layer(
        nn.TransformerDecoderLayer, 6, 2, 5, batch_first=True, x=lambda: (_sequence(), normal(5, 6)))),
    Case("`Transformer`", layer(
        nn.Transformer, 6, 2, 1, 1, 5, batch_first=True, x=lambda: (_sequence(), normal(5, 6)))),
]  # fmt: skip


def _last(s: Any, x: Tensor) -> Tensor:
    state = s.rnn(x)[1]
    return (state[-1] if isinstance(state, tuple) else state).transpose(0, 1)


def _whole(s: Any, x: Tensor) -> Tensor:
    return s.rnn(x)[0]


def _recurrent(label: str, cls: Any, function: Any = _whole, single: bool = False, **options: Any) -> Case:
    make = program(function, partial(normal, 4, 6), rnn=lambda: cls(6, 3, batch_first=True, **options))
    return Case(label, make, torch.float32, 1e-5) if single else Case(label, make)


def _steps(s: Any, x: Tensor) -> Tensor:
    state: Any = None
    for step in x.unbind(1):
        state = s.cell(step, state)
    return state[0] if isinstance(state, tuple) else state


def _packed(s: Any, x: Tensor) -> Tensor:
    lengths = 1 + (x[:, 0, 0] > 0).long() + 2 * (x[:, 0, 1] > 0).long()
    return s.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1].transpose(0, 1)


def _cell(cls: Any, **options: Any) -> Case:
    name = cls.__name__ + "".join(f", {key}={value}" for key, value in options.items())
    return Case(f"`{name}`, step by step", program(_steps, partial(normal, 3, 6), cell=lambda: cls(6, 3, **options)))


RECURRENT = [
    _recurrent("`RNN`", nn.RNN),
    _recurrent("`RNN`, relu, two layers, both directions", nn.RNN, nonlinearity="relu", num_layers=2, bidirectional=True),
    _recurrent("`GRU`", nn.GRU),
    _recurrent("`GRU`, two layers, both directions, last state", nn.GRU, _last, num_layers=2, bidirectional=True),
    _recurrent("`LSTM`, float64", nn.LSTM),
    _recurrent("`LSTM`, float64, both directions, projections", nn.LSTM, bidirectional=True, proj_size=2),
    _recurrent("`LSTM`, float32 (one fused op)", nn.LSTM, single=True),
    _recurrent("`LSTM`, float32, two layers, both directions, last cell", nn.LSTM, _last, True, num_layers=2,
               bidirectional=True),
    _recurrent("`LSTM`, float32, no bias", nn.LSTM, single=True, bias=False),
    _recurrent("`LSTM`, float32, projections", nn.LSTM, single=True, proj_size=2),
    Case("`LSTM`, float32, learned initial state", program(
        lambda s, x: s.rnn(x, (s.start.expand(1, len(x), -1).contiguous(),) * 2)[0], partial(normal, 4, 6),
        rnn=lambda: nn.LSTM(6, 3, batch_first=True), start=partial(P, 3)), torch.float32, 1e-5),
    _cell(nn.RNNCell), _cell(nn.GRUCell), _cell(nn.LSTMCell, bias=False),
    _recurrent("`GRU` on packed sequences", nn.GRU, _packed),
]  # fmt: skip
