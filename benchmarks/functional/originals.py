"""The benchmark list of torch-autograd: logistic regression, MLP, auto-module MLP, CNN, LSTM; on one sample and on a batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hesse

Params = dict[str, Tensor]
Loss = Callable[[Any, Tensor, Tensor], Tensor]
RATE = 1e-3
BATCHES = 4  # a step takes one of these in turn

PIXELS, CLASSES = 32, 10
STEPS, INPUTS, HIDDEN = 20, 10, 100


@dataclass(frozen=True)
class Original:
    """A loss of parameters, an input and classes; what they are; and the batches to train on.

    `plain` is an `nn.Module` with the same parameters, where the hand-written program is one.
    """

    loss: Loss
    params: Params
    batches: Sequence[tuple[Tensor, Tensor]]
    plain: nn.Module | None = None


def double(original: Original) -> Original:
    """The same in double precision."""
    params = {name: p.double() for name, p in original.params.items()}
    return Original(original.loss, params, [(x.double(), y) for x, y in original.batches])


def logistic(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x @ params["w"] + params["b"], y)


def mlp(params: Params, x: Tensor, y: Tensor) -> Tensor:
    h = torch.tanh(x @ params["w1"] + params["b1"])
    h = torch.tanh(h @ params["w2"] + params["b2"])
    return F.cross_entropy(h @ params["w3"] + params["b3"], y)


def cnn(params: Params, x: Tensor, y: Tensor) -> Tensor:
    h = F.max_pool2d(torch.tanh(F.conv2d(x, params["k1"], params["b1"])), 2)
    h = F.max_pool2d(torch.tanh(F.conv2d(h, params["k2"], params["b2"])), 2)
    return F.cross_entropy(h.flatten(1) @ params["w"] + params["b"], y)


def lstm(params: Params, x: Tensor, y: Tensor) -> Tensor:
    h = c = x.new_zeros(x.shape[0], HIDDEN)
    for step in x.unbind(1):
        i, f, o, g = (torch.cat([step, h], 1) @ params["w"] + params["b"]).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
    return F.cross_entropy(h @ params["read"] + params["bias"], y)


SHAPES = {
    "logistic": {"w": (PIXELS**2, CLASSES), "b": (CLASSES,)},
    "mlp": {"w1": (PIXELS**2, 50), "b1": (50,), "w2": (50, 50), "b2": (50,), "w3": (50, CLASSES), "b3": (CLASSES,)},
    "cnn": {"k1": (16, 1, 5, 5), "b1": (16,), "k2": (16, 16, 5, 5), "b2": (16,), "w": (400, CLASSES), "b": (CLASSES,)},
    "lstm": {"w": (INPUTS + HIDDEN, 4 * HIDDEN), "b": (4 * HIDDEN,), "read": (HIDDEN, CLASSES), "bias": (CLASSES,)},
}
LOSSES = {"logistic": logistic, "mlp": mlp, "cnn": cnn, "lstm": lstm}
FLAT, IMAGE = (PIXELS**2,), (1, PIXELS, PIXELS)
INPUT = {"logistic": FLAT, "mlp": FLAT, "automodule": FLAT, "cnn": IMAGE, "lstm": (STEPS, INPUTS)}
BATCH = {"logistic": 128, "mlp": 128, "automodule": 128, "cnn": 32, "lstm": 32}
ROWS = [f"{name}_{size}" for name, size in itertools.product(INPUT, ("single", "batched"))]


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x @ weight.T + bias


def make_original(row: str) -> Original:
    """The entry of `ROWS`, with equal numbers at each call."""
    name, size = row.split("_")
    generator = torch.Generator().manual_seed(11)
    count = 1 if size == "single" else BATCH[name]
    batches = [
        (torch.randn(count, *INPUT[name], generator=generator), torch.randint(CLASSES, (count,), generator=generator))
        for _ in range(BATCHES)
    ]
    if name == "automodule":
        return _auto_module(batches, generator)
    params = {
        key: torch.randn(shape, generator=generator) / (_fan_in(shape) if len(shape) > 1 else 100.0) ** 0.5
        for key, shape in SHAPES[name].items()
    }
    return Original(LOSSES[name], params, batches)


def _fan_in(shape: Sequence[int]) -> float:
    return float(shape[0] if len(shape) == 2 else torch.Size(shape[1:]).numel())


def _auto_module(batches: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> Original:
    """The MLP of auto-modules, and of ordinary linear layers beside it."""
    affine_module = hesse.nn.AutoModule("Affine")
    ours, plain = nn.Sequential(), nn.Sequential()
    for inputs, outputs in ((PIXELS**2, 50), (50, 50), (50, CLASSES)):
        weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        bias = torch.randn(outputs, generator=generator) / 10
        linear = nn.Linear(inputs, outputs)
        linear.load_state_dict({"weight": weight, "bias": bias})
        ours += nn.Sequential(affine_module(affine, weight, bias), nn.Tanh())
        plain += nn.Sequential(linear, nn.Tanh())
    f, params = hesse.functional(ours[:-1])
    return Original(lambda params, x, y: F.cross_entropy(f(params, x), y), params, batches, plain[:-1])
