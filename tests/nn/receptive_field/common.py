"""Functions of a pixel and a weight, by name, and modules made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.nn import ReceptiveFieldConv1d, ReceptiveFieldConv2d, ReceptiveFieldConv3d

CLASSES = {1: ReceptiveFieldConv1d, 2: ReceptiveFieldConv2d, 3: ReceptiveFieldConv3d}
Function = Callable[[Any, Any], Tensor]


def product(pixel: Tensor, weight: Tensor) -> Tensor:
    return pixel * weight


def hidden_product(pixel: Tensor, weight: Tensor) -> Tensor:
    """A product that does not look like one: it goes the general way."""
    return torch.addcmul(torch.zeros_like(pixel), pixel, weight)


def tangent(pixel: Tensor, weight: Tensor) -> Tensor:
    return torch.tan(pixel + weight)


def plus(pixel: Tensor, weight: Tensor) -> Tensor:
    return pixel + weight


def squared(pixel: Tensor, weight: Tensor) -> Tensor:
    return (pixel - weight) ** 2


def distance(pixel: Tensor, weight: Tensor) -> Tensor:
    return (pixel - weight).abs()


def neuron(pixel: Tensor, weights: Tensor) -> Tensor:
    a, b = weights
    return a * torch.tanh(pixel * b)


def gate(pixel: Tensor, weights: Tensor) -> Tensor:
    return weights[0, 1] * pixel + torch.sigmoid(weights[1, 2] - pixel) * weights[0, 0]


FUNCTIONS: dict[str, tuple[Function, tuple[int, ...]]] = {
    "product": (product, ()),
    "hidden product": (hidden_product, ()),
    "tangent": (tangent, ()),
    "plus": (plus, ()),
    "squared": (squared, ()),
    "distance": (distance, ()),
    "neuron": (neuron, (2,)),
    "gate": (gate, (2, 3)),
}
REDUCTIONS = ("sum", "mean", "prod", "max", "min", "logsumexp")
