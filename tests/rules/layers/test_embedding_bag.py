"""Bags of embeddings: every mode and option, bags of one size and of many."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.rules.forms import Lookup
from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from tests.parameters.special import Free
from tests.rules.layers.comparing import compare, seeded, tokens, weight

MODES = ["sum", "mean", "max"]


def ragged(table: Tensor, index: Tensor, lengths: Tensor, last: bool = False, **options: Any) -> Tensor:
    """Bags of the first tokens of every sample, as many as `lengths` says, by offsets."""
    inside = torch.arange(index.shape[1]) < lengths.unsqueeze(1)
    ends = lengths.cumsum(0)
    offsets = F.pad(ends, (1, 0)) if last else F.pad(ends, (1, 0))[:-1]
    if "per_sample_weights" in options:
        options["per_sample_weights"] = options["per_sample_weights"][inside]
    return F.embedding_bag(index[inside], table, offsets, include_last_offset=last, **options)


@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("mode", MODES)
def test_bags_of_one_size(mode: str, padding_idx: int | None) -> None:
    layer = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=padding_idx).double()
    nn.init.normal_(layer.weight)
    compare(layer, tokens(8, 4, below=5))


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_bags_of_many_sizes_and_empty_ones(mode: str, last: bool, padding_idx: int | None) -> None:
    lengths = torch.tensor([3, 0, 6, 1, 2, 0])
    model = Free(lambda s, i, n: ragged(s.w, i, n, last=last, mode=mode, padding_idx=padding_idx), w=weight(5, 3))
    compare(model, tokens(6, 6, below=5), lengths)


@pytest.mark.parametrize("mode", MODES)
def test_one_token_all_over(mode: str) -> None:
    compare(nn.EmbeddingBag(5, 3, mode=mode).double(), torch.full((4, 6), 2))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_padding(mode: str) -> None:
    index = tokens(4, 3, below=5)
    index[1] = 2
    layer = nn.EmbeddingBag(5, 3, mode=mode, padding_idx=2).double()
    compare(layer, index)


def test_nothing_but_empty_bags() -> None:
    model = Free(lambda s, i, n: ragged(s.w, i, n, mode="max") + s.v, w=weight(5, 3), v=weight(3))
    compare(model, tokens(4, 2, below=5), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("mode", MODES)
def test_equal_values_of_different_tokens(mode: str) -> None:
    layer = nn.EmbeddingBag(5, 3, mode=mode).double()
    nn.init.constant_(layer.weight, 0.3)
    compare(layer, tokens(6, 4, below=5))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_several_bags_a_sample(mode: str, scaled: bool, first: bool) -> None:
    def call(s: Any, i: Tensor) -> Tensor:
        bags = i if first else i.transpose(0, 1)
        out = s.bag(bags.reshape(-1, i.shape[2])).reshape(*bags.shape[:2], 3)
        return out if first else out.transpose(0, 1)

    layer = nn.EmbeddingBag(5, 3, mode=mode, scale_grad_by_freq=scaled and mode != "max").double()
    compare(Free(call, bag=layer), tokens(6, 2, 4, below=5))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_given_weights(padding_idx: int | None, sparse: bool) -> None:
    layer = nn.EmbeddingBag(5, 3, mode="sum", padding_idx=padding_idx, sparse=sparse).double()
    nn.init.normal_(layer.weight)
    compare(Free(lambda s, i, p: s.bag(i, per_sample_weights=p), bag=layer), tokens(6, 4, below=5), seeded(6, 4))
    lengths = torch.tensor([4, 2, 0, 1, 3, 3])
    model = Free(
        lambda s, i, p, n: ragged(s.w, i, n, mode="sum", per_sample_weights=p, padding_idx=padding_idx), w=weight(5, 3)
    )
    compare(model, tokens(6, 4, below=5), seeded(6, 4), lengths)


def test_weights_that_are_functions_of_parameters() -> None:
    index, x = tokens(6, 4, below=5), seeded(6, 7)
    bag = partial(F.embedding_bag, mode="sum")
    by_place = Free(lambda s, i: bag(i, s.w, per_sample_weights=s.v.expand_as(i)), w=weight(5, 3), v=weight(4))
    compare(by_place, index)
    by_token = Free(lambda s, i: bag(i, s.w, per_sample_weights=s.v[i]), w=weight(5, 3), v=weight(5))
    compare(by_token, index)
    attention = Free(
        lambda s, i, x: s.bag(i, per_sample_weights=s.head(x).softmax(1)),
        bag=nn.EmbeddingBag(5, 3, mode="sum").double(), head=nn.Linear(7, 4).double(),
    )  # fmt: skip
    compare(attention, index, x)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 1])
def test_frequency_within_a_sample(mode: str, padding_idx: int | None) -> None:
    options: dict[str, Any] = {"mode": mode, "scale_grad_by_freq": True, "padding_idx": padding_idx}
    compare(nn.EmbeddingBag(5, 3, **options).double(), tokens(6, 5, below=4))
    lengths = torch.tensor([4, 2, 0, 5, 3, 3])
    compare(Free(lambda s, i, n: ragged(s.w, i, n, **options), w=weight(5, 3)), tokens(6, 5, below=4), lengths)


def test_frequency_and_given_weights() -> None:
    layer = nn.EmbeddingBag(5, 3, mode="sum", scale_grad_by_freq=True).double()
    compare(Free(lambda s, i, p: s.bag(i, per_sample_weights=p), bag=layer), tokens(6, 5, below=4), seeded(6, 5))


def test_short_integers() -> None:
    compare(nn.EmbeddingBag(5, 3).double(), tokens(6, 5, below=4).int())


def test_a_bag_and_a_lookup_of_one_table() -> None:
    model = Free(lambda s, i: F.embedding_bag(i, s.w, mode="max") * F.embedding(i, s.w).sum(1), w=weight(5, 3))
    compare(model, tokens(6, 4, below=5))


def test_long_bags_are_counted_exactly_in_low_precision() -> None:
    w = weight(5, 3).to(torch.bfloat16)
    y = F.embedding_bag(tokens(2, 301, below=5), w.detach().requires_grad_(), mode="mean")
    node: Any = y.grad_fn
    meeting = Meeting(node, 0, {0: torch.ones_like(y)}, {0: SampleAxis(0, 1, 1)}, w.shape)
    form = layer_rules.lookup(node.name())(meeting)
    assert isinstance(form, Lookup)
    assert form.g.double().sum(1).sub(1).abs().max() < 4e-3
