"""Sparse derivatives at many points: the pattern and its colors once, then a product a color."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.linearize import linearize
from hesse.autodiff.recording import Function
from hesse.autodiff.second_order import hessian_operator
from hesse.core import random
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.sparse import Sparse
from hesse.sparse.colored import ColoredPattern, Kind
from hesse.sparse.coloring import coloring
from hesse.sparse.decompress import Decompression, seeds
from hesse.sparse.detect import Sparsity, sparsity
from hesse.sparse.layouts import Arranger, Layout
from hesse.sparse.pattern import Pattern

_JACOBIAN = "prepare_jacobian(f, x) computes sparse Jacobians of a function of floating-point tensors."
_HESSIAN = "prepare_hessian(f, x) computes sparse Hessians of a function with one real value."


class SparseResult(NamedTuple):
    """A function's value, and the matrix in the layout that was asked for."""

    value: Tree
    matrix: Any


@dataclass(frozen=True, eq=False)
class SparseDerivative:
    """A sparse Jacobian or Hessian, ready to be evaluated at any point.

    Attributes:
        colored: the pattern and its colors.
        in_space, out_space: of columns and rows.
        found: how the pattern was found; None where it was given.
    """

    colored: ColoredPattern
    in_space: Space
    out_space: Space
    found: Sparsity | None
    _operator: Callable[[Any], tuple[Tree, LinearOperator]] = field(repr=False)
    _arranger: Arranger = field(repr=False)
    _decompression: Decompression = field(repr=False)
    _checked: list[bool] = field(default_factory=list, repr=False)

    def __call__(self, x: Any, *, layout: Layout = "coo") -> SparseResult:
        """The value and the matrix at a point.

        Args:
            x: a tree like the one that was prepared for.
            layout: see `Arranger.arrange`: "coo", "csr", "csc", "scipy", "dense", "blocks" or "operator".

        Returns:
            ``(value, matrix)``; differentiable with respect to whatever upstream requires grad.

        Raises:
            StructureError: x of another structure or other shapes; a pattern that misses an entry (found out at the first
                call, by one random product), with its place.

        Cost: one run, and a product a color, which share passes; one product and one row more at the first call.
        """
        self.in_space.check(x, "x")
        value, operator = self._operator(x)
        values = self._values(operator)
        if not self._checked:
            self._check(operator, values)
            self._checked.append(True)
        return SparseResult(value, self._arranger.arrange(values, layout))

    def _values(self, operator: LinearOperator) -> Tensor:
        colored, parts = self.colored, []
        if colored.columns:
            given = seeds(colored.column_colors, colored.columns).to(self.in_space.device, self.in_space.dtype)
            parts.append(self.out_space.ravel(operator.mm(self.in_space.unravel(given)), 1).flatten())
        if colored.rows:
            given = seeds(colored.row_colors, colored.rows).to(self.out_space.device, self.out_space.dtype)
            parts.append(self.in_space.ravel(operator.T.mm(self.out_space.unravel(given)), 1).flatten())
        return self._decompression.values(torch.cat(parts)) if parts else torch.zeros(0, dtype=self.in_space.dtype)

    def _check(self, operator: LinearOperator, values: Tensor) -> None:
        """One random product with the function's derivative beside that with the entries."""
        generator = random.make_generator()
        u = self.out_space.normal(generator=generator)
        sparse = self._arranger.arrange(values.detach(), "operator")
        expected = self.in_space.ravel(operator.T @ u).detach()
        found = self.in_space.ravel(sparse.T @ u)
        sizes = self.in_space.ravel(_absolute(sparse).T @ self.out_space.unravel(self.out_space.ravel(u).abs()))
        coarsest = max(torch.finfo(dtype).eps for dtype in (*self.in_space.dtypes, *self.out_space.dtypes))
        bar = 200 * coarsest * (sizes + expected.abs()) + 1e-30
        wrong = ((expected - found).abs() > bar.to(expected)) & expected.isfinite()
        wrong |= expected.isfinite() != found.isfinite()
        if bool(wrong.any()):
            self._refuse(operator, sparse, int(wrong.nonzero()[0]))

    def _refuse(self, operator: LinearOperator, sparse: LinearOperator, column: int) -> None:
        unit = torch.zeros(self.in_space.dim, dtype=self.in_space.dtype)
        unit[column] = 1
        exact = self.out_space.ravel(operator @ self.in_space.unravel(unit)).detach()
        known = self.out_space.ravel(sparse @ self.in_space.unravel(unit))
        row = int((exact - known).abs().argmax())
        raise StructureError(
            "The pattern of a sparse derivative holds every entry that is not zero.",
            f"{exact[row].item():.6g} at row {row}, column {column}, where the pattern gives {known[row].item():.6g}",
            "pass no pattern, or one with this entry; a pattern of local=True holds where its branches are taken",
        )

    def explain(self) -> str:
        """What it costs and why: colors, how the pattern was found, ops that made it denser than it may be."""
        lines = [repr(self.colored)]
        if self.found is None:
            lines.append("the pattern was given")
        elif notes := self.found.explain():
            lines.append(notes)
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"SparseDerivative({self.colored!r})"


def _absolute(operator: LinearOperator) -> LinearOperator:
    assert isinstance(operator, Sparse)
    return Sparse(operator.indices, operator.values.abs(), operator.in_space, operator.out_space)


def prepare_jacobian(
    f: Function, x: Any, *, pattern: Any = None, kind: Kind | None = None, local: bool = False
) -> SparseDerivative:
    """Find the pattern of a function's Jacobian and color it, once for many points.

    Args:
        f: takes the tree x and returns a tree of tensors.
        x: an example; without `local` its values do not matter.
        pattern: where the Jacobian can have entries, if that is known: a `Pattern`, `ColoredPattern`, `Sparsity` or matrix.
        kind: of the coloring: "column" (forward mode), "row" (reverse mode), "bidirectional"; by default the fewest colors.
        local: take branches, masks and orders as they are at x.

    Returns:
        A function of x that gives values and Jacobians.

    Raises:
        StructureError: a pattern of another shape. Others as `sparsity`.

    Cost: as `sparsity` and `coloring`.
    """
    found, known = _known(f, x, pattern, "jacobian", local)
    if found is None:
        operator = linearize(f, x).jacobian
        spaces = operator.in_space, operator.out_space
    else:
        spaces = found.in_space, found.out_space
    colored = _colored(known, kind or "auto", spaces, _JACOBIAN)

    def at(point: Any) -> tuple[Tree, LinearOperator]:
        return linearize(f, point)

    return _prepared(colored, spaces, found, at)


def prepare_hessian(
    f: Function, x: Any, *, pattern: Any = None, kind: Kind | None = None, local: bool = False
) -> SparseDerivative:
    """Find the pattern of a function's Hessian and color it, once for many points.

    Args:
        f: takes the tree x and returns one real number.
        x: an example; without `local` its values do not matter.
        pattern: where the Hessian can have entries, if that is known: a `Pattern`, `ColoredPattern`, `Sparsity` or matrix.
        kind: of the coloring: "star" (the default), "acyclic" (fewer colors, entries by substitution) or "column".
        local: take branches, masks and orders as they are at x.

    Returns:
        A function of x that gives values and Hessians.

    Raises:
        StructureError: a pattern of another shape, or not symmetric. Others as `sparsity`.

    Cost: as `sparsity` and `coloring`.
    """
    found, known = _known(f, x, pattern, "hessian", local)
    space = found.in_space if found is not None else Space.of(x)
    colored = _colored(known, kind or "star", (space, space), _HESSIAN)

    def at(point: Any) -> tuple[Tree, LinearOperator]:
        operator = hessian_operator(f, point)
        return operator.value, operator

    return _prepared(colored, (space, space), found, at, frozenset({Tag.SYMMETRIC}))


def _known(f: Function, x: Any, pattern: Any, of: Any, local: bool) -> tuple[Sparsity | None, Any]:
    if pattern is None:
        found = sparsity(f, x, of=of, local=local)
        return found, found.pattern
    return (pattern if isinstance(pattern, Sparsity) else None), pattern


def _colored(pattern: Any, kind: Any, spaces: tuple[Space, Space], asked: str) -> ColoredPattern:
    shape = spaces[1].dim, spaces[0].dim
    own = pattern if isinstance(pattern, ColoredPattern) else Pattern.of(pattern)
    found = own.pattern.shape if isinstance(own, ColoredPattern) else own.shape
    if found != shape:
        raise StructureError(
            asked, f"a pattern of shape {found} for a matrix of shape {shape}", "pass rows for the value, columns for x"
        )
    return own if isinstance(own, ColoredPattern) else coloring(own, kind=kind)


def _prepared(
    colored: ColoredPattern,
    spaces: tuple[Space, Space],
    found: Sparsity | None,
    at: Callable[[Any], tuple[Tree, LinearOperator]],
    tags: frozenset[Tag] = frozenset(),
) -> SparseDerivative:
    arranger = Arranger(colored.pattern, *spaces, tags)
    return SparseDerivative(colored, *spaces, found, at, arranger, Decompression.of(colored))
