"""Models and operators whose products are timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hesse

Model = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]
CLASSES = 10


def mlp(samples: int) -> Model:
    """20-50-50-10 with tanh."""
    layers = [nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, CLASSES)]
    return nn.Sequential(*layers), cross_entropy, (torch.randn(samples, 20), torch.randint(0, CLASSES, (samples,)))


def wide_mlp(samples: int) -> Model:
    """784-256-128-10 with GELU."""
    layers = [nn.Linear(784, 256), nn.GELU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, CLASSES)]
    return nn.Sequential(*layers), cross_entropy, (torch.randn(samples, 784), torch.randint(0, CLASSES, (samples,)))


def lenet(samples: int) -> Model:
    """LeNet-5 with tanh and average pooling on 1x28x28."""
    features = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    head = [nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, CLASSES)]
    data = torch.randn(samples, 1, 28, 28), torch.randint(0, CLASSES, (samples,))
    return nn.Sequential(*features, *head), cross_entropy, data


class Block(nn.Module):
    """Embedding of 32, one encoder layer with four heads, 50 tokens out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(32, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T] -> [N, T, 50]."""
        return self.head(self.layer(self.embed(tokens)))


def transformer(samples: int) -> Model:
    """`Block` on 16 tokens a sample."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output.transpose(1, 2), target)

    return Block().eval(), loss, (torch.randint(0, 50, (samples, 16)), torch.randint(0, 50, (samples, 16)))


CASES: dict[str, Callable[[], Model]] = {
    "MLP 20-50-50-10, N = 1": lambda: mlp(1),
    "MLP 20-50-50-10, N = 32": lambda: mlp(32),
    "MLP 20-50-50-10, N = 256": lambda: mlp(256),
    "MLP 784-256-128-10, N = 32": lambda: wide_mlp(32),
    "MLP 784-256-128-10, N = 256": lambda: wide_mlp(256),
    "LeNet-5, N = 8": lambda: lenet(8),
    "LeNet-5, N = 64": lambda: lenet(64),
    "Transformer block, N = 4": lambda: transformer(4),
    "Transformer block, N = 16": lambda: transformer(16),
}
OPERATORS = {"hessian": "H v", "ggn": "G v", "pushed": "J v", "pulled": "Jᵀ u"}


def operator(name: str, case: Model) -> Any:
    """One of `OPERATORS`."""
    model, loss, batch = case
    if name in ("hessian", "ggn"):
        return (hesse.loss_hessian if name == "hessian" else hesse.ggn)(model, loss, batch)
    f, params = hesse.functional(model)
    J = hesse.linearize(lambda p: f(p, batch[0]), params).jacobian
    return J if name == "pushed" else J.T
