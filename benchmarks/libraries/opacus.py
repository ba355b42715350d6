"""Opacus: per-sample gradients by hooks; norms and clipping by its "ghost" clipping (no per-sample gradient formed).

Layers that it has a replacement for (`nn.LSTM`) are replaced by it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from benchmarks.libraries import Task, per_sample
from benchmarks.models import Problem

DISTRIBUTION = "opacus"


def _copy(problem: Problem) -> nn.Module:
    if any(isinstance(layer, nn.LSTM) for layer in problem.model.modules()):
        return ModuleValidator.fix(problem.model)
    return copy.deepcopy(problem.model)


def _hooks(finish: Callable[[dict[str, Tensor]], Any]) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        inner, loss = _copy(problem), problem.sum_loss
        model = GradSampleModule(inner, loss_reduction="sum")

        def run() -> Any:
            model.zero_grad(set_to_none=True)
            loss(model(problem.inputs), problem.targets).backward()
            result = finish({name: param.grad_sample for name, param in inner.named_parameters()})
            model.zero_grad(set_to_none=True)
            return result

        return Task(run)

    return prepare


def _output_jacobian(problem: Problem) -> Task:
    """For one output a sample: the per-sample gradients of their sum."""
    inner = _copy(problem)
    model = GradSampleModule(inner, loss_reduction="sum")

    def run() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        model(problem.inputs).sum().backward()
        result = {name: param.grad_sample for name, param in inner.named_parameters()}
        model.zero_grad(set_to_none=True)
        return result

    return Task(run)


def _ghost(problem: Problem) -> Task:
    model, loss = GradSampleModuleFastGradientClipping(_copy(problem), loss_reduction="sum"), problem.sum_loss

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss(model(problem.inputs), problem.targets).backward()
        return model.get_norm_sample()

    return Task(run)


def _clipped_sum(problem: Problem) -> Task:
    """Two backward passes: one for the norms, one of the losses times their factors, as Opacus does it in training."""
    inner = _copy(problem)
    model = GradSampleModuleFastGradientClipping(inner, loss_reduction="sum", max_grad_norm=problem.max_norm)

    def run() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        losses = problem.sample_losses(model(problem.inputs))
        losses.sum().backward(retain_graph=True)
        model.zero_grad(set_to_none=True)
        model.disable_hooks()
        (losses * model.get_clipping_coef()).sum().backward()
        model.enable_hooks()
        result = {name: param.grad for name, param in inner.named_parameters()}
        model.zero_grad(set_to_none=True)
        return result

    return Task(run)


TASKS: dict[str, Callable[[Any], Task]] = {
    "dense": _hooks(lambda rows: rows),
    "norms": _ghost,
    "squares": _hooks(per_sample.squares),
    "gram": _hooks(per_sample.gram),
    "clipped_sum": _clipped_sum,
    "output_jacobian": _output_jacobian,
}
