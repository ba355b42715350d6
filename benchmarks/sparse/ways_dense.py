"""Dense derivatives by torch.func, in chunks of the size that is fastest for the function."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vjp, vmap

from benchmarks.sparse.cases import Array, Case
from benchmarks.sparse.problems_torch import PROBLEMS
from benchmarks.sparse.ways import Evaluate, Way

CHUNKS = (16, 64, 256, 1024, 4096)
SLOWER = 1.5  # times the best, from which on larger chunks are not tried


def _reverse(case: Case, f: Any, x: Tensor) -> Evaluate:
    """`torch.func.jacrev` of the function, or of its gradient."""
    g = f if case.of == "jacobian" else grad(f)
    value, pull = vjp(g, x)
    chunk = fastest_chunk(lambda u: pull(u)[0], value)
    derivative = jacrev(g, chunk_size=chunk)
    return lambda point: (f(point), derivative(point))


def _forward(case: Case, f: Any, x: Tensor) -> Evaluate:
    """What `torch.func.jacfwd` computes, which takes no size of chunks."""
    g = f if case.of == "jacobian" else grad(f)

    def push(point: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda v: jvp(g, (point,), (v,))[1]

    chunk = fastest_chunk(push(x), x)

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor]:
        columns = vmap(push(point), chunk_size=chunk)(torch.eye(point.numel(), dtype=point.dtype))
        return f(point), columns.T

    return evaluate


def fastest_chunk(product: Callable[[Tensor], Tensor], like: Tensor) -> int:
    """How many products at once take the least time each, the better of two runs with each number; more only while it pays."""
    n = like.numel()
    best = (float("inf"), 1)
    for chunk in [*(c for c in CHUNKS if c < n), min(n, CHUNKS[-1])]:
        given = torch.eye(chunk, n, dtype=like.dtype)
        least = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            vmap(product)(given)
            least = min(least, (time.perf_counter() - start) / chunk)
        if least > SLOWER * best[0]:
            break
        best = min(best, (least, chunk))
    return best[1]


def _products(matrix: Tensor, v: Array, u: Array) -> tuple[Array, Array]:
    return (matrix @ torch.from_numpy(v)).numpy(), (matrix.T @ torch.from_numpy(u)).numpy()


def _way(evaluator: Callable[[Case, Any, Any], Evaluate]) -> Way:
    return Way(PROBLEMS, torch.from_numpy, evaluator, lambda result: result, _products)


WAYS = {"reverse": _way(_reverse), "forward": _way(_forward)}
