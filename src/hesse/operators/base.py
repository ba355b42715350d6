"""`LinearOperator`: the one noun of hesse, a linear map between spaces of named trees.

A subclass writes two methods, `mv` and `transpose`. Everything else here is final, except `mm`, which wrappers
(sums, averages over data, reductions over ranks) override to share work between vectors.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.space import Space, require_full
from hesse.core.tree import Tree

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


class Tag(Enum):
    """What is known of an operator by construction."""

    SYMMETRIC = "symmetric"  # equal to its transpose
    HERMITIAN = "hermitian"  # equal to its adjoint (the same as SYMMETRIC for real spaces)
    PSD = "positive semi-definite"  # Hermitian with no negative eigenvalue
    DIAGONAL = "diagonal"  # in the coordinates of its space


class LinearOperator(ABC):
    """A linear map ``A`` from `in_space` to `out_space`.

    Use: ``A @ v`` takes a tree of `in_space` (batch axes in front allowed) or another operator; ``A.T`` is the
    transpose, ``A.H`` the adjoint; ``A.flat`` works on flat tensors; ``A + B``, ``2 * A`` and ``A - B`` are operators.
    A product may share memory with its vector (identities, Jacobians of views): clone it before writing to it.

    Attributes:
        in_space, out_space: the spaces.
        tags: what is known of the operator (`Tag`).
        mass: the normalizer of the loss behind it (sum of weights over which a mean loss averages); 1 otherwise.
    """

    in_space: Space
    out_space: Space
    tags: frozenset[Tag] = frozenset()
    mass: float = 1.0

    @abstractmethod
    def mv(self, v: Tree) -> Tree:
        """``A v`` for one tree of `in_space`."""

    @abstractmethod
    def transpose(self) -> LinearOperator:
        """The transpose (no conjugation)."""

    def mm(self, V: Tree) -> Tree:
        """``A v`` for every ``v`` along the leading axis of the leaves of `V`."""
        count = _leading(self.in_space.check(V, "block of vectors", 1), "block of vectors")
        columns = [self.mv(tree.map_tree(lambda leaf, k=k: leaf[k], V)) for k in range(count)]
        return stack(columns) if columns else self.out_space.zeros(0)

    def _asking(self, what: str) -> AbstractContextManager[None]:
        """Around a question: operators over several processes, or made of such, tell each other what one of them refuses."""
        if not (dist.is_available() and dist.is_initialized()):
            return nullcontext()
        over = self._over_processes()
        return nullcontext() if over is None else over._asking(what)

    @final
    def _over_processes(self) -> LinearOperator | None:
        """The first operator over several processes that it is, or that it is made of."""
        return next(_overriding(self, set()), None)

    @property
    @final
    def T(self) -> LinearOperator:
        """The transpose."""
        return self if Tag.SYMMETRIC in self.tags else self.transpose()

    @property
    @final
    def H(self) -> LinearOperator:
        """The adjoint: the conjugate of the transpose."""
        if Tag.HERMITIAN in self.tags:
            return self
        if not (self.in_space.dtype.is_complex or self.out_space.dtype.is_complex):
            return self.T
        from hesse.operators.algebra import Conjugate

        return Conjugate(self.T)

    @property
    @final
    def flat(self) -> FlatOperator:
        """The same map on flat tensors: takes ``[dim]`` or ``[dim, k]``."""
        return FlatOperator(self)

    @property
    @final
    def shape(self) -> tuple[int, int]:
        """``(out_space.dim, in_space.dim)``."""
        return (self.out_space.dim, self.in_space.dim)

    @final
    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            from hesse.operators.algebra import compose

            return compose(self, other)
        with self._asking("A product"):
            parts = self.in_space.check(other, f"the vector that {type(self).__name__} is applied to", None)
        lead = parts[0].ndim - len(self.in_space.shapes[0]) if parts else 0
        if lead == 0:
            return self.mv(self.in_space.rebuild(parts))
        batch = parts[0].shape[:lead]
        block = self.in_space.rebuild([p.reshape(batch.numel(), *p.shape[lead:]) for p in parts])
        return tree.map_tree(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), self.mm(block))

    @final
    def __add__(self, other: LinearOperator) -> LinearOperator:
        from hesse.operators.algebra import add

        return add(self, other) if isinstance(other, LinearOperator) else NotImplemented

    @final
    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-1) * other if isinstance(other, LinearOperator) else NotImplemented

    @final
    def __neg__(self) -> LinearOperator:
        return (-1) * self

    @final
    def __mul__(self, factor: Any) -> LinearOperator:
        from hesse.operators.algebra import scale

        is_scalar = isinstance(factor, numbers.Number) or (isinstance(factor, Tensor) and factor.ndim == 0)
        return scale(factor, self) if is_scalar else NotImplemented

    __rmul__ = __mul__

    @final
    def __truediv__(self, divisor: Any) -> LinearOperator:
        return self * (1 / divisor)

    @final
    def to_scipy(self) -> ScipyOperator:
        """A `scipy.sparse.linalg.LinearOperator` on NumPy vectors; torch does the work on the operator's device."""
        import numpy as np
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        def numpy_map(operator: LinearOperator) -> Any:
            space = operator.in_space

            def apply(array: Any) -> Any:
                if np.iscomplexobj(array) and not space.dtype.is_complex:
                    return apply(array.real) + 1j * apply(array.imag)
                vector = torch.tensor(np.ascontiguousarray(array), dtype=space.dtype, device=space.device)
                return operator.flat(vector).detach().cpu().numpy()

            return apply

        forward, backward = numpy_map(self), numpy_map(self.H)
        dtype = torch.zeros((), dtype=self.out_space.dtype).numpy().dtype
        make: Any = ScipyOperator
        return make(shape=self.shape, matvec=forward, rmatvec=backward, matmat=forward, rmatmat=backward, dtype=dtype)

    def __repr__(self) -> str:
        tags = ", ".join(sorted(tag.value for tag in self.tags))
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}{', ' + tags if tags else ''})"


@final
class FlatOperator:
    """An operator on flat tensors; made by ``A.flat``."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.operator.shape

    def __matmul__(self, vector: Tensor) -> Tensor:
        A = self.operator
        with A._asking("A product"):
            self._require(vector)
        if vector.ndim == 1:
            return A.out_space.ravel(A.mv(A.in_space.unravel(vector)))
        return A.out_space.ravel(A.mm(A.in_space.unravel(vector.mT)), batch_ndim=1).mT

    def _require(self, vector: Any) -> None:
        A = self.operator
        if not isinstance(vector, Tensor) or vector.ndim not in (1, 2) or vector.shape[0] != A.in_space.dim:
            raise StructureError(
                f"{A}.flat takes a tensor of shape [{A.in_space.dim}] or [{A.in_space.dim}, k].",
                f"shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else type(vector).__name__,
                "use A @ tree for trees",
            )
        if not A.in_space.takes_shards:
            require_full(vector, f"The flat vector that {type(A).__name__} is applied to")

    __call__ = __matmul__

    def __repr__(self) -> str:
        return f"{self.operator}.flat"


def stack(vectors: list[Tree]) -> Tree:
    """Trees stacked leaf by leaf along a new leading axis."""
    return tree.map_tree(lambda *parts: torch.stack(parts), *vectors)


def parts_of(operator: LinearOperator) -> Iterator[LinearOperator]:
    """The operators that an operator is directly made of: those it has as attributes, or in lists, tuples and dicts of them."""
    for value in vars(operator).values():
        held = list(value.values()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        if held and isinstance(held[0], LinearOperator):
            yield from (part for part in held if isinstance(part, LinearOperator))


def _overriding(operator: LinearOperator, seen: set[int]) -> Iterator[LinearOperator]:
    """The operators that an operator is made of, itself included, that have an `_asking` of their own."""
    seen.add(id(operator))
    if type(operator)._asking is not LinearOperator._asking:
        yield operator
        return
    for part in parts_of(operator):
        if id(part) not in seen:
            yield from _overriding(part, seen)


def _leading(parts: list[Tensor], what: str) -> int:
    if not parts:
        raise StructureError(f"An empty tree cannot be a {what}.", "no leaves", "pass at least one tensor")
    return parts[0].shape[0]


def flat_space(dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Space:
    """The space of bare vectors ``[dim]``."""
    return Space.of(torch.empty(dim, dtype=dtype, device=device))
