"""Inner products of rows that are represented in different ways."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

import hesse
from hesse.parameters.contractions import gram
from tests.parameters import oracle


class Twice(nn.Module):
    """A convolution that is used once more where the first pixel says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, (2, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(x))
        return (torch.tanh(self.layer(y)) if x[0, 0, 0, 0].item() > 0 else y[:, :, 1:]).flatten(1)[:, :7]


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (1, 1), (-1, -1)])
@pytest.mark.parametrize("elements", [1, 2**10, 2**21])
def test_a_convolution_used_once_and_twice(signs: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_PATCH_ELEMENTS", "_BLOCK_ELEMENTS"):
        monkeypatch.setattr(sys.modules[gram.__module__], name, elements)
    torch.manual_seed(2)
    model, loss = Twice().double(), nn.MSELoss(reduction="sum")
    batches, rows, jacobians = [], [], []
    for sign, count in zip(signs, (4, 3), strict=True):
        x = torch.randn(count, 3, 5, 4, dtype=torch.float64)
        x[:, 0, 0, 0] = sign
        batches.append((x, torch.randn(count, 7, dtype=torch.float64)))
        rows.append(oracle.loss_rows(model, loss, *batches[-1]))
        jacobians.append(hesse.parameter_jacobian(model, loss, batches[-1]))
    assert oracle.difference(jacobians[0].gram(jacobians[1]), rows[0] @ rows[1].T) < 1e-12
    assert oracle.difference(jacobians[0].gram(), rows[0] @ rows[0].T) < 1e-12
