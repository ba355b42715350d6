"""hesse. Making the operator is part of the work, except for "repeated" products with a kept operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hesse
from benchmarks.libraries import Task
from benchmarks.models import Problem, SmallFunctions

DISTRIBUTION = "hesse"


def _rows(problem: Problem) -> Any:
    return hesse.parameter_jacobian(problem.model, problem.loss, (problem.inputs, problem.targets))


def _per_sample(question: Callable[[Any], Any]) -> Callable[[Problem], Task]:
    return lambda problem: Task(lambda: question(_rows(problem)))


def _dense_out(problem: Problem) -> Task:
    buffer = torch.empty(len(problem.inputs), sum(p.numel() for p in problem.params.values()))
    return Task(lambda: _rows(problem).dense(out=buffer))


def _outputs(problem: Problem) -> Any:
    return hesse.parameter_jacobian(problem.model, None, problem.inputs)


def _clipped_sum(problem: Problem) -> Task:
    return Task(lambda: _rows(problem).clipped_sum(problem.max_norm))


def _output_jacobian(problem: Problem) -> Task:
    return Task(lambda: _outputs(problem).dense(), lambda J: J.flatten(0, -2))


def _kernel(problem: Problem) -> Task:
    return Task(lambda: _outputs(problem).gram())


def _operator(make: str, problem: Problem) -> Any:
    return getattr(hesse, make)(problem.model, problem.loss, (problem.inputs, problem.targets))


def _first(make: str) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        v = problem.vector
        return Task(lambda: _operator(make, problem) @ v)

    return prepare


def _kept(make: str) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        A, v = _operator(make, problem), problem.vector
        return Task(lambda: A @ v)

    return prepare


def _block(make: str) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        A = _operator(make, problem)
        return Task(lambda: A.mm(problem.vectors))

    return prepare


def _jacobian(small: SmallFunctions) -> Task:
    return Task(lambda: hesse.jacobian(small.f, small.x).jacobian)


def _hessian(small: SmallFunctions) -> Task:
    return Task(lambda: hesse.hessian(small.g, small.x).hessian)


TASKS: dict[str, Callable[[Any], Task]] = {
    "dense": _per_sample(lambda J: J.dense()),
    "dense_out": _dense_out,
    "norms": _per_sample(lambda J: J.norms()),
    "squares": _per_sample(lambda J: J.sum_of_squares()),
    "gram": _per_sample(lambda J: J.gram()),
    "clipped_sum": _clipped_sum,
    "output_jacobian": _output_jacobian,
    "kernel": _kernel,
    "hvp_first": _first("loss_hessian"),
    "hvp_kept": _kept("loss_hessian"),
    "hvp_block": _block("loss_hessian"),
    "ggn_first": _first("ggn"),
    "ggn_kept": _kept("ggn"),
    "ggn_block": _block("ggn"),
    "jacobian": _jacobian,
    "hessian": _hessian,
}
