"""A block-diagonal matrix over parameters whose blocks are Kronecker products: what KFAC and EKFAC give."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.core.errors import StructureError, SymmetryError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.curvature.kronecker_blocks import Block, EigenBlock, FactorBlock
from hesse.linalg.answer import Answer
from hesse.linalg.diagonal import diagonal_rule
from hesse.linalg.eigenvalues import Eigenvalues, eigenvalues_rule
from hesse.linalg.solve_rules import Inner, solve_rule
from hesse.linalg.sum_rules import shift_rule
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.storage import storable
from hesse.rules.forms import inside

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Place:
    """A block and where it is: a box ``(start, stop)`` along every axis of a parameter (None: all of it)."""

    name: str
    box: Box | None
    block: Block


class KroneckerFactored(LinearOperator):
    """A symmetric positive semi-definite matrix that is block-diagonal over parameters; made by `kfac` and `ekfac`.

    Every block knows its eigenvalues, so that inverse, square root, determinant and damping are exact for it.

    Args:
        space: that of the parameters.
        places: the blocks; parameters (and what lies outside of the boxes) without one have `rest` times the identity.
        mass: the normalizer of the loss behind it.
        rest: the eigenvalue of everything that has no block.

    Attributes:
        kinds: parameter -> what its block is: "kronecker"; "exact", its own matrix; "blocks", that of each output
            channel; "diagonal"; "unused"; of boxes of several kinds "kronecker and exact".
    """

    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})

    def __init__(self, space: Space, places: tuple[Place, ...], mass: float = 1.0, rest: float = 0.0) -> None:
        self.in_space = self.out_space = space
        self.places, self.mass, self.rest = places, mass, rest
        found = {name: dict.fromkeys(p.block.kind for p in places if p.name == name) for name in space.names}
        self.kinds: Mapping[str, str] = {name: " and ".join(kinds) or "unused" for name, kinds in found.items()}

    def mv(self, v: Tree) -> Tree:
        return self._apply(v, 0)

    def mm(self, V: Tree) -> Tree:
        return self._apply(V, 1)

    def _apply(self, V: Tree, batch_ndim: int) -> Tree:
        parts = dict(zip(self.in_space.names, self.in_space.check(V, "vector", batch_ndim), strict=True))
        results = {name: part * self.rest for name, part in parts.items()}
        for place in self.places:
            part = parts[place.name] if place.box is None else inside(parts[place.name], place.box)
            rows = part.flatten(batch_ndim) if batch_ndim else part.reshape(1, -1)
            found = place.block.apply(rows.to(_dtype(place.block))).reshape(part.shape).to(part.dtype)
            if place.box is None:
                results[place.name] = found
            else:
                inside(results[place.name], place.box).copy_(found)
        return self.out_space.rebuild(list(results.values()))

    def transpose(self) -> LinearOperator:
        return self

    def damped(self, damping: float, method: Literal["exact", "heuristic"] = "exact") -> KroneckerFactored:
        """The matrix plus damping.

        Args:
            damping: c, not negative.
            method: "exact": plus c times the identity, through eigenvalues. "heuristic": each factor is damped on its own
                (Martens, Grosse 2015, section 6.3); blocks that are no products of factors are damped exactly.

        Raises:
            StructureError: another method, a negative number, or "heuristic" of a matrix that is known by eigenvalues (EKFAC).

        Cost: nothing but arithmetic; "exact": the eigenvectors of every factor, once.
        """
        if method not in ("exact", "heuristic") or not damping >= 0:
            raise StructureError(
                "damped(damping, method) takes a number >= 0 and 'exact' or 'heuristic'.",
                f"{damping!r}, {method!r}",
                "pass one of these",
            )
        if method == "exact":
            return self._mapped(lambda values: values + damping, self.rest + damping)
        if any(hasattr(place.block, "values") for place in self.places):
            raise StructureError("Heuristic damping needs the factors.", "a matrix known by eigenvalues", "pass method='exact'")
        places = tuple(Place(place.name, place.box, place.block.damped(damping)) for place in self.places)
        return KroneckerFactored(self.in_space, places, self.mass, self.rest + damping)

    def power(self, exponent: float) -> KroneckerFactored:
        """The matrix to a power; negative ones need a regular matrix.

        Raises:
            SymmetryError: a negative power of a matrix that is singular to working precision.

        Cost: the eigenvectors of every factor, once.
        """
        if exponent < 0:
            self._require_regular(f"The power {exponent:g}")
        return self._mapped(
            lambda values: values.clamp(min=0) ** exponent, float(self.rest**exponent) if self._has_rest else 0.0
        )

    def inverse(self) -> KroneckerFactored:
        """The inverse: `power` of -1. Damp first: ``K.damped(1e-3).inverse()``."""
        return self.power(-1.0)

    def sqrt(self) -> KroneckerFactored:
        """The symmetric square root: `power` of one half."""
        return self.power(0.5)

    @property
    def _has_rest(self) -> bool:
        return sum(math.prod(place.block.sizes) for place in self.places) < self.in_space.dim

    def eigenvalues(self) -> Iterator[Tensor]:
        """The eigenvalues, block by block, in no order."""
        for place in self.places:
            yield place.block.eigen.values.flatten()
        missing = self.in_space.dim - sum(math.prod(place.block.sizes) for place in self.places)
        if missing:
            yield torch.full((missing,), self.rest, dtype=self.in_space.dtype, device=self.in_space.device)

    def logdet(self) -> float:
        """The logarithm of the determinant, minus infinity for a singular matrix."""
        return float(sum(values.double().log().sum() for values in self.eigenvalues()))

    def det(self) -> float:
        """The determinant, infinity where it overflows (for many parameters: see `logdet`)."""
        logarithm = self.logdet()
        return math.inf if logarithm > math.log(sys.float_info.max) else math.exp(logarithm)

    @classmethod
    def from_stored(cls, space: Space, places: list[dict[str, Any]], rest: float) -> KroneckerFactored:
        """The matrix of what a file holds (see `hesse.load`)."""
        found = []
        for place in places:
            tensors, kind = place["tensors"], place["kind"]
            block: Block = EigenBlock(**tensors, kind=kind) if "values" in tensors else FactorBlock(**tensors, kind=kind)
            box = tuple((int(start), int(stop)) for start, stop in place["box"]) or None
            found.append(Place(place["name"], box, block))
        return cls(space, tuple(found), rest=rest)

    def _mapped(self, f: Callable[[Tensor], Tensor], rest: float) -> KroneckerFactored:
        places = tuple(Place(place.name, place.box, place.block.eigen.map(f)) for place in self.places)
        return KroneckerFactored(self.in_space, places, self.mass, rest)

    def _require_regular(self, asked: str) -> None:
        by_block = [(place.name, place.block.eigen.values) for place in self.places]
        if self._has_rest:
            by_block.append(("what has no block", torch.tensor([self.rest])))
        for name, values in by_block:
            if values.numel() and float(values.min()) <= 0:
                raise SymmetryError(
                    f"{asked} needs a regular matrix.",
                    f"an eigenvalue of {float(values.min()):.3g} in the block of '{name}'",
                    "add damping: K.damped(1e-3)",
                )

    def __repr__(self) -> str:
        rows = []
        shapes = dict(zip(self.in_space.names, self.in_space.shapes, strict=True))
        for name, kind in self.kinds.items():
            blocks = [place.block for place in self.places if place.name == name]
            sizes = ", ".join(dict.fromkeys(_sizes(block) for block in blocks))
            rows.append(f"\n  {name} {list(shapes[name])}: {kind}{' ' + sizes if sizes else ''}")
        return f"KroneckerFactored({self.shape[0]} x {self.shape[1]}, mass {self.mass:g}){''.join(rows)}"


def _sizes(block: Block) -> str:
    groups, a, b = block.sizes
    many = f"{groups} x " if groups > 1 else ""
    return f"{many}{a} (x) {b}" if block.kind == "kronecker" else f"{many}{a * b}"


def _dtype(block: Block) -> torch.dtype:
    return block.right.dtype


@storable.register(KroneckerFactored)
def _store(A: KroneckerFactored) -> dict[str, Any]:
    places = [
        {"name": p.name, "box": [list(edge) for edge in p.box or ()], "kind": p.block.kind, "tensors": p.block.tensors()}
        for p in A.places
    ]
    return {"space": A.in_space, "places": places, "rest": A.rest}


@diagonal_rule.register(KroneckerFactored)
def _diagonal(A: KroneckerFactored) -> Tensor:
    leaves = {
        name: torch.full(shape, A.rest, dtype=dtype, device=A.in_space.device)
        for name, shape, dtype in zip(A.in_space.names, A.in_space.shapes, A.in_space.dtypes, strict=True)
    }
    for place in A.places:
        target = leaves[place.name] if place.box is None else inside(leaves[place.name], place.box)
        target.copy_(place.block.diagonal().reshape(target.shape))
    return A.in_space.ravel(A.in_space.rebuild(list(leaves.values())))


@solve_rule.register(KroneckerFactored)
def _solve(A: KroneckerFactored, B: Tensor, inner: Inner) -> Answer:
    values = torch.cat([part.double() for part in A.eigenvalues()])
    largest, least = float(values.max()), float(values.min())
    if least <= torch.finfo(A.in_space.dtype).eps * largest * 1e-3:
        return Answer(torch.zeros_like(B), math.inf, 0, "a block is singular to working precision")
    solved = A.inverse().mm(A.in_space.unravel(B))
    return Answer(A.in_space.ravel(solved, 1).to(B.dtype), largest / least)


@shift_rule.register(KroneckerFactored)
def _shift(A: KroneckerFactored, by: float) -> KroneckerFactored | None:
    return A.damped(by) if by >= 0 else None


@eigenvalues_rule.register(KroneckerFactored)
def _eigenvalues(A: KroneckerFactored) -> Eigenvalues:
    values = torch.cat([part.double() for part in A.eigenvalues()])
    largest = float(values.abs().max()) if values.numel() else 0.0
    return Eigenvalues.of(values, torch.finfo(A.in_space.dtype).eps * largest)
