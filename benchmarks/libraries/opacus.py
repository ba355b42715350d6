"""Opacus: per-sample gradients by hooks, norms by its "ghost" clipping (no per-sample gradient formed)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from torch import Tensor

from benchmarks.libraries import Task, per_sample
from benchmarks.models import Problem

DISTRIBUTION = "opacus"


def _hooks(finish: Callable[[dict[str, Tensor]], Any]) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        inner = copy.deepcopy(problem.model)
        model = GradSampleModule(inner, loss_reduction="mean")  # undoes the mean: rows are unreduced

        def run() -> Any:
            model.zero_grad(set_to_none=True)
            problem.loss(model(problem.inputs), problem.targets).backward()
            result = finish({name: param.grad_sample for name, param in inner.named_parameters()})
            model.zero_grad(set_to_none=True)
            return result

        return Task(run)

    return prepare


def _ghost(problem: Problem) -> Task:
    model = GradSampleModuleFastGradientClipping(copy.deepcopy(problem.model), loss_reduction="mean")

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        problem.loss(model(problem.inputs), problem.targets).backward()
        return model.get_norm_sample()

    return Task(run)


TASKS: dict[str, Callable[[Any], Task]] = {
    "dense": _hooks(lambda rows: rows),
    "norms": _ghost,
    "squares": _hooks(per_sample.squares),
    "gram": _hooks(per_sample.gram),
}
