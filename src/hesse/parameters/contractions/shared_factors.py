"""Squares over several roots: where roots share a factor (the layer's input), the other's squares are added up first.

For rows ``z (outer) g_k`` of roots k, ``sum_k z^2 (outer) g_k^2 = z^2 (outer) sum_k g_k^2``: one contraction for all roots
(the exact Gauss-Newton diagonal of an MLP with ten classes: 10.5 gradients before, 6.6 after).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hesse.parameters.contractions.squares import summed_squares
from hesse.parameters.contractions.uses import Use, wide
from hesse.rules.forms import Contract


@dataclass
class _Open:
    """Roots of one parameter that are not contracted yet.

    Attributes:
        first: the first of them, while it is the only one.
        shared: the factor that they share, `is_left` which one it is; `others`: the sum of the other's squares.
    """

    first: Contract | None
    shared: Tensor | None = None
    is_left: bool = True
    others: Tensor | None = None


class SquaresOverRoots:
    """Adds up the squares of one parameter's rows, root by root.

    Args:
        size: the parameter's number of elements.
        roots: how many will come.
    """

    def __init__(self, size: int, roots: int) -> None:
        self._size, self._joins = size, roots > 1
        self._total: Tensor | None = None
        self._open: _Open | None = None

    def add(self, use: Use) -> None:
        """Add the rows of a root."""
        if not self._joins or not isinstance(use, Contract) or use.dims[2] != 1 or use.dims[1] != 1:
            self._put(summed_squares(use, self._size))
        elif not (self._open is not None and self._join(self._open, use)):
            self._close()
            self._open = _Open(use)

    def _join(self, known: _Open, use: Contract) -> bool:
        """Add a root to those that share a factor with it, if they do."""
        left, right = use.left[:], use.right[:]
        if known.first is not None:
            first = known.first.left[:], known.first.right[:]
            if not (_same(left, first[0]) or _same(right, first[1])):
                return False
            known.is_left = _same(left, first[0])
            known.shared, other = first if known.is_left else first[::-1]
            known.others, known.first = wide(other).square(), None
        shared, other = (left, right) if known.is_left else (right, left)
        if known.shared is None or known.others is None or not _same(shared, known.shared):
            return False
        known.others.addcmul_(wide(other), wide(other))
        return True

    def _close(self) -> None:
        known, self._open = self._open, None
        if known is None:
            return
        if known.first is not None:
            self._put(summed_squares(known.first, self._size))
        elif known.shared is not None and known.others is not None:
            squares = wide(known.shared).square()
            left, right = (squares, known.others) if known.is_left else (known.others, squares)
            self._put((left.flatten(1).mT @ right.flatten(1)).flatten())

    def _put(self, part: Tensor) -> None:
        self._total = part if self._total is None else self._total + part

    def result(self) -> Tensor:
        """``[size]``: the sum over samples and roots.

        Call it after the last of them.
        """
        self._close()
        assert self._total is not None
        return self._total


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors, both alive, are the same memory read the same way."""
    return (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
        and not (first.requires_grad or second.requires_grad)
    )
