"""Perplexities of counted characters, against counting with a dictionary."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch


@pytest.mark.parametrize("order", [0, 1, 2])
def test_perplexity_is_that_of_the_counts(example, order) -> None:
    generator = torch.Generator().manual_seed(order)
    training, test = torch.randint(4, (60,), generator=generator), torch.randint(5, (23,), generator=generator)
    codes, pairs, before = training.tolist(), Counter(), Counter()
    for place in range(order, len(codes)):
        context = tuple(codes[place - order : place])
        pairs[(*context, codes[place])] += 1
        before[context] += 1
    total, codes = 0.0, test.tolist()
    for place in range(order, len(codes)):
        context = tuple(codes[place - order : place])
        total -= math.log((pairs[(*context, codes[place])] + 0.3) / (before[context] + 0.3 * 5))
    expected = math.exp(total / (len(codes) - order))
    assert example("ngrams").perplexity(training, test, order, 5, smoothing=0.3) == pytest.approx(expected, rel=1e-6)
