"""Training steps that take over ten milliseconds on one thread, to time what watching them costs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Step


def _training(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Step:
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    x, y = batch

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def mlp() -> Step:
    """Two hidden layers of 512, 256 samples."""
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return _training(net, (torch.randn(256, 784), torch.randint(0, 10, (256,))))


def cnn() -> Step:
    """Three convolutions with batch normalization and pooling, 32 images of 32 x 32."""

    def block(into: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]

    net = nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(1024, 10))
    return _training(net, (torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))))


class _Classifier(nn.Module):
    def __init__(self, layers: int, width: int, length: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.table, self.place = nn.Embedding(100, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.encoder, self.head = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.table(tokens) + self.place).mean(1))


def transformer() -> Step:
    """Four layers of width 128 on 8 sequences of 64."""
    return _training(_Classifier(4, 128, 64), (torch.randint(0, 100, (8, 64)), torch.randint(0, 10, (8,))))


def deep_transformer() -> Step:
    """Twelve layers of width 64 on 4 sequences of 32: the hard case, many small operations."""
    return _training(_Classifier(12, 64, 32), (torch.randint(0, 100, (4, 32)), torch.randint(0, 10, (4,))))


STEPS: dict[str, Callable[[], Step]] = {
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
    "deep_transformer": deep_transformer,
}
TITLES = {
    "mlp": "MLP, 256 samples",
    "cnn": "CNN, 32 images",
    "transformer": "transformer, 4 layers",
    "deep_transformer": "transformer, 12 narrow layers",
}
