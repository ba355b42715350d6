"""asdex, and dense derivatives by JAX; both under `jax.jit`, in double precision."""

from __future__ import annotations

from typing import Any

import asdex
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sparse.cases import Array, Case
from benchmarks.sparse.problems_jax import PROBLEMS
from benchmarks.sparse.ways import Evaluate, Way

jax.config.update("jax_enable_x64", True)


def _detect(case: Case, f: Any, x: Any) -> Any:
    return (asdex.jacobian_sparsity if case.of == "jacobian" else asdex.hessian_sparsity)(f, x)


def _color(case: Case, pattern: Any) -> Any:
    if case.of == "jacobian":
        return asdex.jacobian_coloring_from_sparsity(pattern)
    return asdex.hessian_coloring_from_sparsity(pattern)


def _describe(colored: Any) -> dict[str, int]:
    pattern = colored.sparsity
    longest = [int(np.bincount(side).max(initial=0)) for side in (pattern.rows, pattern.cols)]
    return {"colors": int(colored.num_colors), "entries": int(pattern.nnz), "bound": min(longest)}


def _evaluator(case: Case, f: Any, x: Any) -> Evaluate:
    return jax.jit((asdex.value_and_jacobian if case.of == "jacobian" else asdex.value_and_hessian)(f, x))


def _dense(case: Case, f: Any, x: Any) -> Evaluate:
    """Compiled ahead, so that the time of a call is the same at the first."""
    if case.of == "hessian":
        derivative = jax.hessian(f)
    else:
        derivative = jax.jacrev(f) if jax.eval_shape(f, x).size < x.size else jax.jacfwd(f)
    return jax.jit(lambda point: (f(point), derivative(point))).lower(x).compile()


def _products(matrix: Any, v: Array, u: Array) -> tuple[Array, Array]:
    return np.asarray(matrix @ jnp.asarray(v)), np.asarray(matrix.T @ jnp.asarray(u))


WAYS = {
    "asdex": Way(PROBLEMS, jnp.asarray, _evaluator, jax.block_until_ready, _products, _detect, _color, _describe),
    "jax": Way(PROBLEMS, jnp.asarray, _dense, jax.block_until_ready, _products),
}
