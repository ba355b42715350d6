"""deepinv's pseudo-inverse of a linear operator that is given as two functions."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from benchmarks.convolutions.cases import Case
from benchmarks.convolutions.ways import Way

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
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
    """deepinv. It imports torchvision, whose compiled part may be for another build of torch; then two names must be there."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import deepinv

    return deepinv
