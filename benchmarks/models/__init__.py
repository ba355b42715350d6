"""What is measured on: nine models with their data, and two small functions. Plain torch, the same for all.

Weights and data come from a fixed seed, in float32; `Problem.double` is the same in float64, for references.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.models.functions import SmallFunctions, make_functions
from benchmarks.models.images import conv3d, depthwise, lenet, resnet18, three_c_three_d
from benchmarks.models.problem import BLOCK, CLASSES, Problem
from benchmarks.models.tokens import lstm, mlp, token_mlp, transformer
from benchmarks.quantities import WITH_CURVATURE

__all__ = ["BLOCK", "CLASSES", "MODELS", "Problem", "SmallFunctions", "make_functions", "make_problem"]

MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "mlp": mlp,
    "lenet": lenet,
    "transformer": transformer,
    "3c3d": three_c_three_d,
    "depthwise": depthwise,
    "tokens": token_mlp,
    "lstm": lstm,
    "resnet18": resnet18,
    "conv3d": conv3d,
}


def make_problem(name: str) -> Problem:
    """The model called `name` with its batch, always the same; vectors only where products are measured.

    The loss follows from the targets: cross entropy for class numbers, squared error for real numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model, inputs, targets = MODELS[name]()
        params = model.named_parameters() if name in WITH_CURVATURE else ()
        vectors = {n: torch.randn(BLOCK, *p.shape) for n, p in params}
    loss = nn.MSELoss() if targets.is_floating_point() else nn.CrossEntropyLoss()
    return Problem(model, loss, inputs, targets, vectors)
