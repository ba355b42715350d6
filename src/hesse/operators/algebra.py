"""The algebra of operators: sum, scale, compose, congruence ``A.T H A``, conjugate."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.sameness import are_adjoint

_ADDITIVE = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD, Tag.DIAGONAL})


def _require_equal(first: Space, second: Space, asked: str) -> None:
    if first != second:
        raise StructureError(asked, f"{first} and {second}", "use operators over trees with equal names and shapes")


def _operand(operator: LinearOperator) -> str:
    return f"({operator!r})" if isinstance(operator, Sum) else repr(operator)


def _add_trees(first: Tree, second: Tree) -> Tree:
    return tree.map_tree(lambda a, b: a + b, first, second)


class Sum(LinearOperator):
    """The sum of operators between the same spaces."""

    def __init__(self, *terms: LinearOperator) -> None:
        if not terms:
            raise StructureError("A sum needs at least one operator.", "none", "pass the zero operator of a space")
        for term in terms[1:]:
            asked = "Operators can be added only between the same spaces."
            _require_equal(terms[0].in_space, term.in_space, asked)
            _require_equal(terms[0].out_space, term.out_space, asked)
        self.terms = terms
        self.in_space, self.out_space = terms[0].in_space, terms[0].out_space
        self.tags = frozenset.intersection(*(term.tags for term in terms)) & _ADDITIVE

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the terms which have one, if they agree."""
        masses = {term.mass for term in self.terms} - {1.0}
        return masses.pop() if len(masses) == 1 else 1.0

    def mv(self, v: Tree) -> Tree:
        result = self.terms[0].mv(v)
        for term in self.terms[1:]:
            result = _add_trees(result, term.mv(v))
        return result

    def mm(self, V: Tree) -> Tree:
        result = self.terms[0].mm(V)
        for term in self.terms[1:]:
            result = _add_trees(result, term.mm(V))
        return result

    def transpose(self) -> LinearOperator:
        return Sum(*(term.T for term in self.terms))

    def __repr__(self) -> str:
        text = repr(self.terms[0])
        for term in self.terms[1:]:
            shown = repr(term)
            text += f" - {shown[1:].removeprefix('1 * ')}" if shown.startswith("-") else f" + {shown}"
        return text


class Scaled(LinearOperator):
    """A number times an operator."""

    def __init__(self, factor: complex | Tensor, operator: LinearOperator) -> None:
        self.in_space, self.out_space = operator.in_space, operator.out_space
        number = factor.item() if isinstance(factor, Tensor) else factor
        if isinstance(number, complex) and not (operator.out_space.dtype.is_complex or number.imag == 0):
            raise StructureError(
                "A complex number times an operator between real spaces leaves its space.",
                f"{number}",
                "use a real factor, or an operator between complex spaces",
            )
        drop = isinstance(number, complex) and not operator.out_space.dtype.is_complex
        self.factor, self.operator = factor.real if drop else factor, operator
        lost = set()
        if isinstance(number, complex) and number.imag != 0:
            lost = {Tag.HERMITIAN, Tag.PSD}
        elif (number.real if isinstance(number, complex) else number) < 0:
            lost = {Tag.PSD}
        self.tags = operator.tags - lost

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the operator."""
        return self.operator.mass

    def mv(self, v: Tree) -> Tree:
        return tree.map_tree(lambda leaf: self.factor * leaf, self.operator.mv(v))

    def mm(self, V: Tree) -> Tree:
        return tree.map_tree(lambda leaf: self.factor * leaf, self.operator.mm(V))

    def transpose(self) -> LinearOperator:
        return Scaled(self.factor, self.operator.T)

    def __repr__(self) -> str:
        factor = self.factor.item() if isinstance(self.factor, Tensor) else self.factor
        number = f"({factor:.4g})" if isinstance(factor, complex) else f"{factor:.4g}"
        return f"{number} * {_operand(self.operator)}"


class Composed(LinearOperator):
    """``A @ B``: first `B`, then `A`."""

    def __init__(self, first: LinearOperator, second: LinearOperator) -> None:
        _require_equal(first.in_space, second.out_space, "A @ B needs the space that B maps to to be the one that A maps from.")
        self.first, self.second = first, second
        self.in_space, self.out_space = second.in_space, first.out_space
        both = first.tags & second.tags
        self.tags = (both | {Tag.SYMMETRIC}) & {Tag.DIAGONAL, Tag.SYMMETRIC} if Tag.DIAGONAL in both else frozenset()

    def mv(self, v: Tree) -> Tree:
        return self.first.mv(self.second.mv(v))

    def mm(self, V: Tree) -> Tree:
        return self.first.mm(self.second.mm(V))

    def transpose(self) -> LinearOperator:
        return Composed(self.second.T, self.first.T)

    def __repr__(self) -> str:
        return f"({_operand(self.first)} @ {_operand(self.second)})"


class Congruence(LinearOperator):
    """``J.H @ H @ J``, which keeps the symmetry and the definiteness of ``H`` (real: ``J.T H J``).

    Args:
        outer: ``J``.
        middle: ``H``; None stands for the identity.
    """

    def __init__(self, outer: LinearOperator, middle: LinearOperator | None = None) -> None:
        self.outer, self.middle = outer, middle
        self.in_space = self.out_space = outer.in_space
        if middle is not None:
            _require_equal(outer.out_space, middle.in_space, "J.H @ H @ J needs H to act on the space J maps to.")
            _require_equal(outer.out_space, middle.out_space, "J.H @ H @ J needs H to map into the space J maps to.")
        is_real = not outer.in_space.dtype.is_complex and not outer.out_space.dtype.is_complex
        inherited = {Tag.HERMITIAN, Tag.PSD} if middle is None else middle.tags & {Tag.HERMITIAN, Tag.PSD}
        if is_real and (middle is None or middle.tags & {Tag.SYMMETRIC, Tag.HERMITIAN}):
            inherited = inherited | {Tag.SYMMETRIC, Tag.HERMITIAN}
        self.tags = frozenset(inherited)
        self._adjoint = outer.H

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the middle operator."""
        return 1.0 if self.middle is None else self.middle.mass

    def mv(self, v: Tree) -> Tree:
        w = self.outer.mv(v)
        return self._adjoint.mv(w if self.middle is None else self.middle.mv(w))

    def mm(self, V: Tree) -> Tree:
        W = self.outer.mm(V)
        return self._adjoint.mm(W if self.middle is None else self.middle.mm(W))

    def transpose(self) -> LinearOperator:
        if not self.in_space.dtype.is_complex:
            return Congruence(self.outer, None if self.middle is None else self.middle.T)
        middle = self._adjoint if self.middle is None else self._adjoint @ self.middle
        return Composed(middle, self.outer).T

    def __repr__(self) -> str:
        tags = ", ".join(sorted(tag.value for tag in self.tags))
        return f"Congruence({self.shape[0]} x {self.shape[1]} through {self.outer.shape[0]}{', ' if tags else ''}{tags})"


class Conjugate(LinearOperator):
    """The entrywise complex conjugate of an operator."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.in_space, self.out_space = operator.in_space, operator.out_space
        self.tags = operator.tags

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the operator."""
        return self.operator.mass

    def mv(self, v: Tree) -> Tree:
        return _conjugate(self.operator.mv(_conjugate(v)))

    def mm(self, V: Tree) -> Tree:
        return _conjugate(self.operator.mm(_conjugate(V)))

    def transpose(self) -> LinearOperator:
        return Conjugate(self.operator.T)

    def __repr__(self) -> str:
        return f"Conjugate({self.operator!r})"


def _conjugate(v: Tree) -> Tree:
    return tree.map_tree(lambda leaf: leaf.conj() if isinstance(leaf, Tensor) else complex(leaf).conjugate(), v)


def add(first: LinearOperator, second: LinearOperator) -> LinearOperator:
    """The sum, nested sums laid flat."""
    terms = [t for op in (first, second) for t in (op.terms if isinstance(op, Sum) else (op,))]
    return Sum(*terms)


def scale(factor: Any, operator: LinearOperator) -> LinearOperator:
    """A number times an operator, nested factors multiplied."""
    if isinstance(operator, Scaled):
        return Scaled(factor * operator.factor, operator.operator)
    return Scaled(factor, operator)


def compose(first: LinearOperator, second: LinearOperator) -> LinearOperator:
    """``first @ second``; the identity disappears, and ``A.H @ A`` is known to be positive semi-definite."""
    from hesse.operators.identity import Identity

    if isinstance(first, Identity) and first.in_space == second.out_space:
        return second
    if isinstance(second, Identity) and first.in_space == second.out_space:
        return first
    is_known = bool(first.tags & second.tags & {Tag.HERMITIAN, Tag.DIAGONAL})  # squares, and what stays diagonal
    return Congruence(second) if not is_known and are_adjoint(first, second) else Composed(first, second)
