"""hesse. Making the operator is part of the work, except for "repeated" products with a kept operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hesse
from benchmarks.libraries import Task, kronecker
from benchmarks.models import Problem, SmallFunctions
from hesse.curvature import kfac
from hesse.curvature.ekfac import ekfac

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


def _diagonal(make: str) -> Callable[[Problem], Task]:
    return lambda problem: Task(lambda: hesse.diagonal(_operator(make, problem)))


def _diagonal_sampled(problem: Problem) -> Task:
    data, generator = (problem.inputs, problem.targets), torch.Generator().manual_seed(20)
    return Task(
        lambda: hesse.diagonal(hesse.ggn(problem.model, problem.loss, data, kind="sampled", samples=1, generator=generator))
    )


def _kronecker(make: Callable[..., Any], read: Callable[[Any], Any]) -> Callable[[Problem], Task]:
    def prepare(problem: Problem) -> Task:
        data, generator = (problem.inputs, problem.targets), torch.Generator().manual_seed(20)
        return Task(lambda: make(problem.model, problem.loss, data, kind="sampled", samples=1, generator=generator), read)

    return prepare


def _factors(K: Any) -> dict[str, torch.Tensor]:
    """By side; the whole matrix where a block has no factors. Blocks have an axis of groups, here of one."""
    pairs, matrices = {}, {}
    for place in K.places:
        if place.block.kind == "kronecker":
            pairs[place.name] = (place.block.left[0], place.block.right[0])
        else:
            matrices[place.name] = place.block.right[0]
    return kronecker.factors(pairs, matrices)


def _corrected(K: Any) -> dict[str, torch.Tensor]:
    sides, others = {}, {}
    for place in K.places:
        block = place.block.eigen
        if block.kind == "kronecker" and block.left.ndim == block.right.ndim == 3:
            sides[place.name] = (block.left[0], block.right[0], block.values[0])
        else:  # an embedding, with a diagonal for one side; or a block without factors
            others[place.name] = block.values.sum()
            if block.kind == "exact":
                others[place.name + kronecker.MATRIX] = block.dense()
    return kronecker.corrected(sides) | others


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
    "ggn_diagonal": _diagonal("ggn"),
    "hessian_diagonal": _diagonal("loss_hessian"),
    "ggn_diagonal_sampled": _diagonal_sampled,
    "kfac": _kronecker(kfac, _factors),
    "ekfac": _kronecker(ekfac, _corrected),
    "jacobian": _jacobian,
    "hessian": _hessian,
}
