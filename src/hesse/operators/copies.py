"""What copying and pickling mean for operators that read a model and its data, or hold an autograd graph."""

from __future__ import annotations

from typing import Any, NoReturn, Self, TypeVar

from hesse.core.errors import UnsupportedError

Operator = TypeVar("Operator")


class ReadsInPlace:
    """Copies, deep ones too, read the same function, model and data as the original; pickling is refused.

    Graphs of autograd can be neither copied nor written to a file; an operator in a file would have nothing to read.
    """

    def __copy__(self) -> Self:
        return shared(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return shared(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise unpicklable(type(self).__name__)


def shared(operator: Operator) -> Operator:
    """Another operator of the same class with the same attributes."""
    new = object.__new__(type(operator))
    new.__dict__.update(operator.__dict__)
    return new


def unpicklable(name: str) -> UnsupportedError:
    """The error for an operator of this name."""
    return UnsupportedError(
        f"Pickling an operator of the class {name} is refused.",
        "an operator that reads a function or model and its data where they are, of which it may hold a graph",
        "make it again in the other process; or write what it comes to: the rows of a Jacobian by J.to_zarr(path), a matrix by "
        "torch.save(hesse.dense(A), path), Kronecker factors by hesse.save(A, path)",
    )
