"""Forms hold factors: none of them is as large as the rows that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from tests.rules.layers.comparing import seeded, tokens, weight

N = 6
OPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int, int]] = {
    "bilinear": (lambda w: F.bilinear(seeded(N, 7), seeded(N, 8), w), (9, 7, 8), 0, 1),
    "embedding": (lambda w: F.embedding(tokens(N, 4, below=30), w, scale_grad_by_freq=True), (50, 5), 0, 0),
    "bag of sums": (lambda w: F.embedding_bag(tokens(N, 4, below=30), w, mode="sum"), (50, 5), 0, 0),
    "bag of maxima": (lambda w: F.embedding_bag(tokens(N, 4, below=30), w, mode="max"), (50, 5), 0, 0),
    "rows": (lambda w: w[tokens(N, 4, below=30)], (50, 5), 0, 0),
    "batched": (lambda w: torch.bmm(seeded(3, N, 7), w), (3, 7, 8), 1, 1),
    "batched and added up": (lambda w: torch.addbmm(torch.zeros(8).double(), seeded(3, N, 7), w), (3, 7, 8), 0, 2),
}


def storages(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif hasattr(value, "__dataclass_fields__"):
        for part in fields(value):
            yield from storages(getattr(value, part.name))


@pytest.mark.parametrize("name", OPS)
def test_forms_are_smaller_than_their_rows(name: str) -> None:
    call, shape, axis, index = OPS[name]
    y = call(weight(*shape))
    node: Any = y.grad_fn
    while node.name() not in layer_rules:
        node = node.next_functions[0][0]
    g = torch.ones([*node._input_metadata[0].shape], dtype=torch.float64)
    form = layer_rules.lookup(node.name())(Meeting(node, index, {0: g}, {0: SampleAxis(axis, 1, 1)}, torch.Size(shape)))
    assert form is not None and form.dense().numel() == N * math.prod(shape)
    held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.itemsize for t in storages(form)}.values())
    assert held < N * math.prod(shape) / 2
