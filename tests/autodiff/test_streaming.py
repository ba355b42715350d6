"""Roots in one batched pass and root by root give the same rows; batched passes that fail fall back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.autodiff import streaming
from tests.curvature import references
from tests.parameters import oracle
from tests.parameters.special import Free, L

LOSS = nn.CrossEntropyLoss()


class Doubled(torch.autograd.Function):
    """Its backward reads a number, which no batched pass can."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0] + 0 * float(grads[0].sum())


MODELS = {
    "plain": lambda: nn.Sequential(L(4, 5), nn.Tanh(), L(5, 4)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 3, 2), nn.Flatten(), L(3, 4)),
    "no batched backward": lambda: Free(lambda s, x: s.b(Doubled.apply(s.a(x))), a=L(4, 5), b=L(5, 4)),
    "re-used": lambda: Free(lambda s, x: s.a(torch.tanh(s.a(x))), a=L(4, 4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stacked", [True, False, "in parts"])
def test_rows(name: str, stacked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if stacked is False:
        monkeypatch.setattr(streaming, "_SMALL_BYTES", 0)
    if stacked == "in parts":
        monkeypatch.setattr(streaming, "_STACKED_BYTES", 1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MODELS[name]().double()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 2, 3])
    G = hesse.ggn(model, LOSS, (x, y))
    expected = references.ggn(model, LOSS, x, y)
    rows = G.rows()  # pyright: ignore[reportAttributeAccessIssue]
    assert rows.facts.shape == (6, 3)
    dense = rows.dense().flatten(0, 1)
    assert oracle.difference(dense.mT @ dense / G.mass, expected) < 1e-10
    assert oracle.difference(hesse.diagonal(G), expected.diagonal()) < 1e-10
    assert set(rows.paths.values()) <= {"rule", "masked"}
