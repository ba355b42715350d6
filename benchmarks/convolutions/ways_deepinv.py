"""deepinv's pseudo-inverse of a linear operator that is given as two functions."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

from torch import Tensor

from benchmarks.convolutions.cases import Case
from benchmarks.convolutions.ways import Way

ABSENT = (
    "torchvision",
    "torchvision.utils",
    "torchvision.datasets",
    "torchvision.datasets.folder",
    "torchvision.datasets.utils",
    "torchvision.transforms",
    "torchvision.transforms.functional",
)
LIMITS = {"max_iter": 500, "tol": 1e-12}  # by default deepinv stops at 50 steps or a residual of 1e-4


class Deepinv(Way):
    """`deepinv.physics.LinearPhysics.A_dagger`.

    Args:
        solver: ``"CG"``, deepinv's default, or ``"lsqr"``.
    """

    def __init__(self, case: Case, weight: Tensor, solver: str) -> None:
        super().__init__(case, weight)
        self.solver = solver

    def prepare(self) -> None:
        physics = _package().physics
        self.physics = physics.LinearPhysics(
            A=lambda x, **_: self.case.forward(self.weight, x), A_adjoint=lambda y, **_: self.case.adjoint(self.weight, y)
        )
        self.about["steps"] = f"at most {LIMITS['max_iter']}"

    def solve(self, y: Tensor) -> Tensor:
        return self.physics.A_dagger(y, solver=self.solver, **LIMITS)


def _package() -> ModuleType:
    """deepinv, which imports torchvision for its data sets and transformations; what is measured here uses none of it."""
    for name in ABSENT:
        module = MagicMock()
        module.__spec__ = ModuleSpec(name, None)
        sys.modules.setdefault(name, module)
    import deepinv

    return deepinv
