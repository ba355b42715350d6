"""What a way of computing a derivative offers, and the ways by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.sparse.cases import Array, Case

Evaluate = Callable[[Any], Any]  # a point -> (value, matrix)


@dataclass(frozen=True)
class Way:
    """One way, in the library that it belongs to.

    Attributes:
        problems: makes a function of a size, by the name of its case.
        at: a NumPy array as a point.
        evaluator: ``(case, f, x)`` -> a function of points, ready to be called for the first time.
        finish: waits until a result is there; returns it.
        products: ``(matrix, v, u)`` -> the matrix times v, and its transpose times u, as NumPy arrays.
        detect: ``(case, f, x)`` -> a pattern, where the way has such a stage.
        color: ``(case, pattern)`` -> a colored pattern.
        describe: a colored pattern -> its counts ``{"colors": ..., "entries": ..., "bound": ...}``.
    """

    problems: dict[str, Callable[[int], Callable[[Any], Any]]]
    at: Callable[[Array], Any]
    evaluator: Callable[[Case, Any, Any], Evaluate]
    finish: Callable[[Any], Any]
    products: Callable[[Any, Array, Array], tuple[Array, Array]]
    detect: Callable[[Case, Any, Any], Any] | None = None
    color: Callable[[Case, Any], Any] | None = None
    describe: Callable[[Any], dict[str, int]] | None = None


MODULES = {
    "hesse": "ways_hesse",
    "native": "ways_hesse",
    "asdex": "ways_jax",
    "jax": "ways_jax",
    "reverse": "ways_dense",
    "forward": "ways_dense",
}
STAGED = ("hesse", "asdex")  # those that detect and color


def way(name: str) -> Way:
    """The way of this name; imports its library and no other."""
    return importlib.import_module(f"benchmarks.sparse.{MODULES[name]}").WAYS[name]
