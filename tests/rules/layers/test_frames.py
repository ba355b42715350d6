"""Layers on images of which every sample has several, merged with the samples' axis: after each sample, or time-major."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hesse
from tests.parameters import oracle

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding_mode="circular", padding=1),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2, padding=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "batch norm": lambda: nn.BatchNorm2d(4),
}


class Frames(nn.Module):
    """A layer on every frame of ``[n, f, 4, h, w]``."""

    def __init__(self, layer: nn.Module, time_major: bool) -> None:
        super().__init__()
        self.layer, self.time_major = layer, time_major

    def forward(self, x: Tensor) -> Tensor:
        n, frames = x.shape[:2]
        merged = (x.transpose(0, 1) if self.time_major else x).flatten(0, 1)
        y = torch.tanh(self.layer(merged))
        y = y.unflatten(0, (frames, n)).transpose(0, 1) if self.time_major else y.unflatten(0, (n, frames))
        return y.flatten(1)[:, ::3]


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_rows_and_quantities(name: str, time_major: bool) -> None:
    torch.manual_seed(5)
    model = Frames(LAYERS[name](), time_major).double().eval()
    x = torch.randn(5, 3, 4, 6, 5, dtype=torch.float64)
    y = torch.randn(5, model(x).shape[1], dtype=torch.float64)
    loss = nn.MSELoss(reduction="sum")
    rows = oracle.loss_rows(model, loss, x, y)
    J = hesse.parameter_jacobian(model, loss, (x, y))
    assert set(J.paths.values()) == {"rule"}
    assert oracle.difference(J.dense(), rows) < 1e-12
    assert oracle.difference(J.norms(), rows.norm(dim=1)) < 1e-12
    assert oracle.difference(J.gram(), rows @ rows.T) < 1e-12
    u = torch.randn(5, dtype=torch.float64)
    assert oracle.difference(J.in_space.ravel(J.weighted_sum(u)), u @ rows) < 1e-12
    assert oracle.difference(J.in_space.ravel(J.sum_of_squares()), rows.square().sum(0)) < 1e-12
