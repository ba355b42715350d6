"""Curvature operators keep the laws of operators."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import hesse
from hesse.check import assert_operator


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", ["loss_hessian", "ggn", "fisher"])
def test_laws(name: str, parts: int) -> None:
    make: Callable[..., Any] = getattr(hesse, name)
    options = {"kind": "empirical"} if name == "fisher" else {}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()
        x, y = torch.randn(7, 2, 5, dtype=torch.float64), torch.randint(0, 4, (7,))
    cuts = [0, 7] if parts == 1 else [0, 1, 5, 7]
    batches = [(x[a:b], y[a:b]) for a, b in pairwise(cuts)]
    data = batches[0] if parts == 1 else batches
    A = make(model, nn.CrossEntropyLoss(), data, **options)
    assert_operator(A)
    assert ("PSD" in {tag.name for tag in A.tags}) == (name != "loss_hessian")
