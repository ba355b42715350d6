"""Embeddings with gradients scaled by frequency, and with tokens of other dtypes and ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hesse.rules.layers.embedding import frequency
from tests.parameters.special import Free
from tests.rules.layers.comparing import compare, tokens


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4)])
def test_padding_and_frequency(shape: tuple[int, ...], padding_idx: int | None, scaled: bool) -> None:
    layer = nn.Embedding(4, 3, padding_idx=padding_idx, scale_grad_by_freq=scaled).double()
    nn.init.normal_(layer.weight)
    compare(layer, tokens(6, *shape, below=4))


def test_frequency_within_a_sample_though_positions_come_first() -> None:
    layer = nn.Embedding(4, 3, scale_grad_by_freq=True).double()
    compare(Free(lambda s, i: s.e(i.mT).transpose(0, 1), e=layer), tokens(6, 5, below=4))


def test_a_table_used_twice_counts_each_use_alone() -> None:
    layer = nn.Embedding(4, 3, scale_grad_by_freq=True).double()
    compare(Free(lambda s, i: s.e(i[:, :3]).tanh().sum(1) * s.e(i[:, 3:]).sum(1), e=layer), tokens(5, 8, below=4))


def test_short_integers() -> None:
    compare(nn.Embedding(4, 3).double(), tokens(5, 6, below=4).int())


def test_frequency_is_a_count_by_sample() -> None:
    index = torch.tensor([[0, 1, 1, 3], [3, 3, 3, 0]])
    expected = torch.tensor([[1, 2, 2, 1], [3, 3, 3, 1]])
    assert torch.equal(frequency(torch.tensor([[0], [1]]), index, 4), expected)
