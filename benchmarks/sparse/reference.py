"""What results are compared with: products with the exact derivative by torch.autograd, without any of the ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.sparse.cases import CASES, Array, point
from benchmarks.sparse.problems_torch import PROBLEMS

TOLERANCE = 1e-9  # of the largest element; float64, and sums in other orders


@dataclass(frozen=True)
class Reference:
    """A value, and the products with one vector from the right and one from the left."""

    value: Array
    v: Array
    u: Array
    right: Array
    left: Array

    def error(self, value: Array, right: Array, left: Array) -> float:
        """The largest difference of the three, each relative to its largest element."""
        pairs = ((value, self.value), (right, self.right), (left, self.left))
        if any(np.shape(found) != np.shape(wanted) for found, wanted in pairs):
            return float("inf")
        errors = [np.abs(found - wanted).max() / np.abs(wanted).max() for found, wanted in pairs]
        return float("inf") if np.isnan(errors).any() else float(max(errors))


def path_of(folder: str, name: str, n: int) -> Path:
    """Where the reference of a case and size lies."""
    return Path(folder) / f"{name}-{n}.npz"


def write(folder: str, name: str, n: int) -> None:
    """Compute a reference, and write it."""
    x = torch.from_numpy(point(name, n)).requires_grad_()
    f = PROBLEMS[name](n)
    value = f(x)
    rows = value
    if CASES[name].of == "hessian":
        (rows,) = torch.autograd.grad(value, x, create_graph=True)
    rng = np.random.default_rng(0)
    v, u = rng.standard_normal(x.numel()), rng.standard_normal(rows.numel())
    cotangent = torch.from_numpy(u).requires_grad_()
    (left,) = torch.autograd.grad(rows, x, cotangent, create_graph=True)
    (right,) = torch.autograd.grad(left, cotangent, torch.from_numpy(v))
    found = {"value": value, "right": right, "left": left}
    np.savez(path_of(folder, name, n), v=v, u=u, **{key: t.detach().numpy() for key, t in found.items()})


def read(folder: str, name: str, n: int) -> Reference:
    """What `write` has written."""
    with np.load(path_of(folder, name, n)) as stored:
        return Reference(**{key: stored[key] for key in ("value", "v", "u", "right", "left")})
