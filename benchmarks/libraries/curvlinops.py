"""curvlinops: Hessian and GGN operators over a data set of one batch, without its check for determinism."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch import Tensor

from benchmarks.libraries import Task
from benchmarks.models import Problem

DISTRIBUTION = "curvlinops-for-pytorch"


def _operator(make: Any, problem: Problem) -> Any:
    data = [(problem.inputs, problem.targets)]
    params = list(problem.model.parameters())
    return make(problem.model, problem.loss, params, data, check_deterministic=False, num_data=len(problem.inputs))


def _named(problem: Problem) -> Callable[[list[Tensor]], dict[str, Tensor]]:
    return lambda product: dict(zip(problem.params, product, strict=True))


def _first(make: Any) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        v = list(problem.vector.values())
        return Task(lambda: _operator(make, problem) @ v, _named(problem))

    return prepare


def _kept(make: Any) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        A, v = _operator(make, problem), list(problem.vector.values())
        return Task(lambda: A @ v, _named(problem))

    return prepare


def _block(make: Any) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        A = _operator(make, problem)
        V = [block.movedim(0, -1).contiguous() for block in problem.vectors.values()]  # columns are the last axis
        return Task(lambda: A @ V, lambda product: _named(problem)([block.movedim(-1, 0) for block in product]))

    return prepare


TASKS: dict[str, Callable[[Any], Task]] = {
    "hvp_first": _first(HessianLinearOperator),
    "hvp_kept": _kept(HessianLinearOperator),
    "hvp_block": _block(HessianLinearOperator),
    "ggn_first": _first(GGNLinearOperator),
    "ggn_kept": _kept(GGNLinearOperator),
    "ggn_block": _block(GGNLinearOperator),
}
