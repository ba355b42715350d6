"""hesse: `sparsity`, `coloring`, and prepared derivatives, replayed or compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.sparse.cases import Array, Case
from benchmarks.sparse.problems_torch import PROBLEMS
from benchmarks.sparse.ways import Evaluate, Way
from hesse import ColoredPattern, Sparsity, coloring, prepare_hessian, prepare_jacobian, sparsity


def _detect(case: Case, f: Any, x: Any) -> Sparsity:
    return sparsity(f, x, of=case.of)


def _color(case: Case, found: Sparsity) -> ColoredPattern:
    return coloring(found.pattern, kind="auto" if case.of == "jacobian" else "star")


def _describe(colored: ColoredPattern) -> dict[str, int]:
    """Counts; `bound`: columns need as many colors as the longest row has entries, rows as many as the longest column has."""
    pattern = colored.pattern
    longest = [int(np.diff(side.indptr).max(initial=0)) for side in (pattern, pattern.T)]
    return {"colors": colored.colors, "entries": pattern.nnz, "bound": min(longest)}


def _evaluator(mode: Literal["replay", "native"]) -> Callable[[Case, Any, Any], Evaluate]:
    def evaluator(case: Case, f: Any, x: Any) -> Evaluate:
        return (prepare_jacobian if case.of == "jacobian" else prepare_hessian)(f, x, compile=mode)

    return evaluator


def _products(matrix: torch.Tensor, v: Array, u: Array) -> tuple[Array, Array]:
    return (matrix @ torch.from_numpy(v)).numpy(), (matrix.t() @ torch.from_numpy(u)).numpy()


_REPLAY = Way(
    problems=PROBLEMS,
    at=torch.from_numpy,
    evaluator=_evaluator("replay"),
    finish=lambda result: result,
    products=_products,
    detect=_detect,
    color=_color,
    describe=_describe,
)
WAYS = {"hesse": _REPLAY, "native": replace(_REPLAY, evaluator=_evaluator("native"))}
