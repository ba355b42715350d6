"""What comparing the products of an operator shows: statements with both of their sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.check.check_report import Comparison, Finding
from hesse.check.diagnosis import diagnose
from hesse.core.space import Space
from hesse.core.tree import Tree


@dataclass(frozen=True)
class Sides:
    """Two ways to one result, as a law states it.

    Attributes:
        statement: the law in symbols.
        found, expected: the sides, in float64 or complex128: numbers, or vectors ``[..., dim]``.
        remedy: what to do where they differ.
        space: of the vectors, to name the element that is worst.
        scale: what the difference is measured against; by default the larger norm.
        allowed: relative difference of the norms that rounding may cause; None for the tolerance of the check.
    """

    statement: str
    found: Tensor
    expected: Tensor
    remedy: str
    space: Space | None = None
    scale: Tensor | None = None
    allowed: float | None = None

    def judge(self, law: str, tolerance: float) -> tuple[Comparison, Finding | None]:
        """The comparison, and the finding where the sides differ.

        Args:
            law: its name.
            tolerance: relative, of the check.
        """
        if self.found.shape != self.expected.shape:
            return Fact(self.statement, self._shapes(), self.remedy).judge(law, tolerance)
        error, allowed = self._error(), tolerance if self.allowed is None else self.allowed
        if error <= allowed:
            return Comparison(law, "", max(self.found.numel(), 1), error, allowed, "ok"), None
        flat, right = self.found.reshape(-1), self.expected.reshape(-1)
        worst = int((flat - right).abs().nan_to_num(torch.inf).argmax())
        leaf, index = _locate(self.space, worst)
        words = f"{self.statement} does not hold, {diagnose(flat, right)}; {self.remedy}"
        bar = allowed * float(right.norm() if self.scale is None else self.scale)
        finding = Finding(law, leaf, index, flat[worst].item(), right[worst].item(), bar, words)
        return Comparison(law, leaf, max(self.found.numel(), 1), error, allowed, "wrong"), finding

    def _error(self) -> float:
        gap = (self.found - self.expected).norm()
        if not gap.numel() or gap == 0:
            return 0.0
        size = torch.maximum(self.found.norm(), self.expected.norm()) if self.scale is None else self.scale
        error = float(gap / size)
        return error if error == error else math.inf

    def _shapes(self) -> str:
        return f"shape {tuple(self.found.shape)}, expected {tuple(self.expected.shape)}"


@dataclass(frozen=True)
class Fact:
    """Something that holds or not.

    Attributes:
        statement: what should hold.
        breach: what was found instead; empty where it holds.
        remedy: what to do then.
    """

    statement: str
    breach: str
    remedy: str

    def judge(self, law: str, tolerance: float) -> tuple[Comparison, Finding | None]:
        """As `Sides.judge`; facts have no tolerance."""
        if not self.breach:
            return Comparison(law, "", 1, 0.0, 0.0, "ok"), None
        words = f"{self.statement} does not hold: {self.breach}; {self.remedy}"
        return Comparison(law, "", 1, math.inf, 0.0, "wrong"), Finding(law, "", None, None, None, 0.0, words)


Evidence = Sides | Fact


def wide(space: Space, vector: Tree, batch_ndim: int = 0) -> Tensor:
    """A vector of a space, flat (``[*batch, dim]``), detached, on the CPU, in float64 or complex128.

    Args:
        space: of the vector.
        vector: a tree.
        batch_ndim: number of axes in front of every leaf.
    """
    flat = space.ravel(vector, batch_ndim).detach().cpu()
    return flat.to(torch.complex128 if flat.dtype.is_complex else torch.float64)


def _locate(space: Space | None, worst: int) -> tuple[str, tuple[int, ...] | None]:
    """The leaf and the index in it of an element of flat vectors."""
    if space is None or not space.dim:
        return "", None
    place = worst % space.dim
    for name, shape, size in zip(space.names, space.shapes, space.sizes, strict=True):
        if place < size:
            return name, tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape)) if shape else ()
        place -= size
    return "", None
