"""Bags by plain ops: the values of PyTorch's own op, and derivatives of every order against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.autodiff.plain_bags import PlainBags

TOKENS = torch.tensor([4, 1, 1, 0, 5, 2, 2, 1, 3])


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 1, -5])
@pytest.mark.parametrize("layout", ["table", "offsets", "offsets and end"])
def test_values_are_those_of_the_fused_op(mode: str, padding_idx: int | None, layout: str) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding_idx}
    tokens = TOKENS.reshape(3, 3) if layout == "table" else TOKENS
    if layout != "table":
        options |= {"offsets": torch.tensor([0, 4, 4, 7] + [9] * (layout == "offsets and end"))}
        options |= {"include_last_offset": layout == "offsets and end"}
    if mode == "sum":
        options["per_sample_weights"] = torch.linspace(-1, 2, 9, dtype=torch.float64).reshape(tokens.shape)
    expected = F.embedding_bag(tokens, weight, **options)
    with PlainBags():
        found = F.embedding_bag(tokens, weight, **options)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-14)


class Bags(nn.Module):
    """A bag, scored nonlinearly."""

    def __init__(self, mode: str, padding_idx: int | None) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(6, 3, mode=mode, padding_idx=padding_idx), nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bag(tokens)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_hessians_against_differences_of_gradients(mode: str, padding_idx: int | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Bags(mode, padding_idx).double()
    tokens, y = TOKENS[:8].reshape(4, 2), torch.tensor([0, 1, 1, 0])
    loss, params = nn.CrossEntropyLoss(), list(model.parameters())
    matrix = hesse.dense(hesse.loss_hessian(model, loss, (tokens, y)))
    G = hesse.ggn(model, loss, (tokens, y))
    assert torch.allclose(hesse.diagonal(G), hesse.dense(G).diagonal(), atol=1e-14)

    def gradient() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model(tokens), y), params)])

    columns, step = [], 1e-5
    for p in params:
        for i in range(p.numel()):
            ends = []
            for move in (step, -step):
                with torch.no_grad():
                    p.view(-1)[i] += move
                ends.append(gradient())
                with torch.no_grad():
                    p.view(-1)[i] -= move
            columns.append((ends[0] - ends[1]) / (2 * step))
    assert float((torch.stack(columns) - matrix).abs().max()) < 1e-8
    assert float((matrix - matrix.T).abs().max()) < 1e-14
