"""How long hesse's checks take on modules of everyday size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def times_of_checks(repeats: int = 25) -> dict[str, float]:
    """Seconds by title: a small layer at level quick (median, after a first call), LeNet (once)."""
    import hesse

    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    conv, image = nn.Conv2d(1, 2, 3), torch.randn(2, 1, 6, 6)
    rows: dict[str, tuple[Callable[[], Any], int]] = {
        "linear layer 5 -> 3, float64, quick": (lambda: hesse.check_module(layer, x, level="quick"), repeats),
        "convolution 1 -> 2, 3x3, float32, quick": (lambda: hesse.check_module(conv, image, level="quick"), repeats),
        "LeNet on 2 images, float32, quick": (lambda: hesse.check_module(lenet(), images(), level="quick"), 1),
        "LeNet on 2 images, float32, full": (lambda: hesse.check_module(lenet(), images(), level="full"), 1),
    }
    return {title: _median(call, count) for title, (call, count) in rows.items()}


def lenet() -> nn.Module:
    """LeNet-5 with tanh units, 61,706 parameters, on images of 28x28."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


def images() -> torch.Tensor:
    """Two images of noise."""
    return torch.randn(2, 1, 28, 28)


def _median(call: Callable[[], Any], count: int) -> float:
    seconds = []
    if count > 1:
        call()
    for _ in range(count):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
