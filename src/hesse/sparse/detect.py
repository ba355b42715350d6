"""`sparsity`: where a derivative can have entries, from one run of the function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hesse.autodiff.dependence.bound import Bound
from hesse.autodiff.dependence.function import dependence
from hesse.autodiff.recording import Function
from hesse.autodiff.room import Room
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.sparse.guards import Guard
from hesse.sparse.pattern import Pattern

_ASKED = "sparsity(f, x) follows every element of x through one run of f."
_ENTRY, _LINE = 32, 16  # bytes, while a pattern is made: of an entry, and of a row or column


@dataclass(frozen=True, repr=False)
class Sparsity:
    """Where a derivative can have entries, and how that was found.

    Attributes:
        pattern: rows are the elements of the value (of the gradient for a Hessian), columns those of x.
        in_space, out_space: of x and of the value (for a Hessian both of x), which name the rows and columns.
        local: whether it holds at x only, where branches, masks and orders are what they are there.
        fallbacks: ops that no rule knows, which were taken to mix all of their operands, and how often they ran.
        branches: the lines at which Python read a value that depends on x (only for `local`).
        analyzed: "primal" for the function as it ran; "reverse" for its backward pass, where custom functions occur.
        constants: "values" where zeros in constant factors count, else "structure".
        guard: watches the constants from outside of the function whose values the pattern rests on: indices, masks, numbers
            that Python has read, what these were computed from, and factors where their zeros count.
    """

    pattern: Pattern
    in_space: Space
    out_space: Space
    local: bool
    fallbacks: Mapping[str, int]
    branches: tuple[str, ...]
    analyzed: Literal["primal", "reverse"]
    constants: Literal["structure", "values"]
    guard: Guard

    def explain(self) -> str:
        """What limits the pattern, in words: one line each."""
        lines = []
        if self.local:
            lines.append("holds at this point only: branches, masks and orders are taken as they are here")
        if self.constants == "values":
            lines.append("holds while constant factors keep their zeros, which count")
        lines += [f"branch on a value: {branch}" for branch in self.branches]
        if self.analyzed == "reverse":
            lines.append("custom functions or hooks: the backward pass was followed, as autograd runs it")
        lines += [f"no rule for {name} ({count} call{'s' * (count > 1)}): all of its operands mixed"
                  for name, count in self.fallbacks.items()]  # fmt: skip
        return "\n".join(lines) or "holds at any point: every op has a rule, and no value is read"

    def __repr__(self) -> str:
        return f"{self.pattern!r}\n{self.explain()}"


def sparsity(
    f: Function,
    x: Any,
    *,
    of: Literal["jacobian", "hessian"] = "jacobian",
    local: bool = False,
    constants: Literal["structure", "values"] = "structure",
) -> Sparsity:
    """Find out where a derivative of a function can have entries.

    Args:
        f: takes the tree x and returns a tree of tensors (one number for a Hessian).
        x: a tensor, a Python float, or any nesting of dicts, lists, tuples, named tuples and dataclasses of them. Without
            `local` its values do not matter.
        of: which derivative.
        local: the pattern at x, for functions that branch on their data; smaller where masks or orders depend on x.
        constants: "values" lets zeros in constant factors count: weights, masks and stencils that the function multiplies by.
            The pattern holds while they keep their values; `guard` watches them.

    Returns:
        A pattern in which no entry of the derivative is missing, at any point (`local`: at x). There may be too many: zeros
        that come from cancellation are not seen, nor those of constants, unless asked for.

    Raises:
        UnsupportedError: Python reads a value that depends on x (pass local=True); complex numbers, sparse tensors.
        NonScalarError: a Hessian of a function with more than one value. LeafError, DeviceError, NonFiniteError,
        MemoryBudgetError, StructureError: as the names say, with the leaf.

    Cost: one run of f (of f and its gradient for a Hessian) in Python, and work in proportion to the entries.
    """
    return found_within(f, x, Bound(Room(None, x)), of=of, local=local, constants=constants)


def after_pattern(entries: float, rows: int, columns: int) -> float:
    """Bytes of a pattern as it is made of sets."""
    return _ENTRY * entries + _LINE * (rows + columns)


def found_within(
    f: Function,
    x: Any,
    bound: Bound,
    *,
    of: Literal["jacobian", "hessian"] = "jacobian",
    local: bool = False,
    constants: Literal["structure", "values"] = "structure",
) -> Sparsity:
    """As `sparsity`, within a memory budget that other work shares.

    Args:
        f, x, of, local, constants: see there.
        bound: what may be taken, and what else there is to do.
    """
    if of not in ("jacobian", "hessian"):
        raise StructureError("sparsity is of='jacobian' or of='hessian'.", repr(of), "pass one of these")
    if constants not in ("structure", "values"):
        raise StructureError("Constants count by their 'structure' or their 'values'.", repr(constants), "pass one of these")
    found = dependence(f, x, _ASKED, local=local, gradient=of == "hessian", values=constants == "values",
                       bound=bound)  # fmt: skip
    pattern = Pattern.of(found.matrix)
    if of == "hessian":  # symmetric but for custom functions, whose backward may say what it likes
        pattern = pattern | pattern.T if found.is_custom else pattern & pattern.T
    rest = found.branches, found.analyzed, constants, Guard(found.constants)
    return Sparsity(pattern, found.in_space, found.out_space, local, dict(found.fallbacks), *rest)
