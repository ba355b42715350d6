"""Prints the identity of a Jacobian, and fingerprints of losses, as JSON: every process has to print the same."""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse.parameters.storing.identity import describe_value, identity_of


class Weighted(nn.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor, self.names = factor, {"b", "a", "c"}
        self.inner = nn.Linear(3, 2)
        with torch.no_grad():
            self.inner.weight.copy_(torch.arange(6.0).reshape(2, 3))
            self.inner.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor if "a" in {"a", "b", "c", "d"} else x


class Power:
    def __init__(self, exponent: float) -> None:
        self.exponent = exponent

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).abs() ** self.exponent).sum()

    def method(self, output: Tensor, target: Tensor) -> Tensor:
        return self(output, target)


def shifted(output: Tensor, target: Tensor, shift: float = 1.0) -> Tensor:
    known = {"x", "y", "z"}
    return sum(((output - target - shift) ** 2).sum() for name in ("x", "q") if name in known)  # pyright: ignore


def losses() -> dict[str, Any]:
    weight = torch.tensor([1.0, 2.0])
    return {
        "none": None,
        "module": nn.CrossEntropyLoss(weight=weight),
        "other weights": nn.CrossEntropyLoss(weight=weight + 1),
        "other options": nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1),
        "builtin": torch.nn.functional.mse_loss,
        "function": shifted,
        "lambda": lambda output, target: (output * weight - target).sum(),
        "other constant": lambda output, target: (output * weight - 2 * target).sum(),
        "partial": functools.partial(shifted, shift=2.0),
        "other partial": functools.partial(shifted, shift=3.0),
        "object": Power(2.0),
        "other object": Power(3.0),
        "method": Power(2.0).method,
        "custom module": Weighted(),
        "other factor": Weighted(3.0),
    }


def main() -> dict[str, Any]:
    data = [(torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 1, 0]))]
    J = hesse.parameter_jacobian(Weighted(), nn.CrossEntropyLoss(), data)
    return {
        "identity": identity_of(J, {"projection": None}),
        "losses": {name: describe_value(loss) for name, loss in losses().items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(main()))
