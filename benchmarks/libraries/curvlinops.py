"""curvlinops: its operators over a data set of one batch, without its check for determinism.

KFAC and EKFAC are computed when they are first used; here they are asked for their factors at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from curvlinops import EKFACLinearOperator, GGNLinearOperator, HessianLinearOperator, KFACLinearOperator
from torch import Tensor

from benchmarks.libraries import Task, kronecker
from benchmarks.models import Problem

DISTRIBUTION = "curvlinops-for-pytorch"


def _operator(make: Any, problem: Problem, **options: Any) -> Any:
    data = [(problem.inputs, problem.targets)]
    params = list(problem.model.parameters())
    return make(problem.model, problem.loss, params, data, check_deterministic=False, num_data=len(problem.inputs), **options)


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


SAMPLED = {"fisher_type": "mc", "mc_samples": 1, "kfac_approx": "expand", "separate_weight_and_bias": True}


def _kfac(problem: Problem) -> Task:
    seeds = itertools.count()

    def run() -> Any:
        A = _operator(KFACLinearOperator, problem, seed=next(seeds), num_per_example_loss_terms=1, **SAMPLED)
        A.compute_kronecker_factors()
        return A

    def read(A: Any) -> dict[str, Tensor]:
        found = {}
        for module, positions in A._mapping.items():
            outputs = A._gradient_covariances[module]
            for kind in positions:
                found[f"{module}.{kind}"] = (outputs, A._input_covariances[module]) if kind == "weight" else (outputs,)
        return kronecker.factors(found)

    return Task(run, read)


def _ekfac(problem: Problem) -> Task:
    seeds = itertools.count()

    def run() -> Any:
        A = _operator(EKFACLinearOperator, problem, seed=next(seeds), num_per_example_loss_terms=1, **SAMPLED)
        A.compute_kronecker_factors()
        A.compute_eigenvalue_correction()
        return A

    def read(A: Any) -> dict[str, Tensor]:
        found = {}
        for module, positions in A._mapping.items():
            P = A._gradient_covariances_eigenvectors[module]
            for kind, position in positions.items():
                Q = A._input_covariances_eigenvectors[module] if kind == "weight" else None
                found[f"{module}.{kind}"] = (P, Q, A._corrected_eigenvalues[module][position])
        return kronecker.corrected(found)

    return Task(run, read)


TASKS: dict[str, Callable[[Any], Task]] = {
    "hvp_first": _first(HessianLinearOperator),
    "hvp_kept": _kept(HessianLinearOperator),
    "hvp_block": _block(HessianLinearOperator),
    "ggn_first": _first(GGNLinearOperator),
    "ggn_kept": _kept(GGNLinearOperator),
    "ggn_block": _block(GGNLinearOperator),
    "kfac": _kfac,
    "ekfac": _ekfac,
}
