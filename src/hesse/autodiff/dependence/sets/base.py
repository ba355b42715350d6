"""What every representation of sets of inputs can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hesse.autodiff.dependence.bound import require
from hesse.core.errors import MemoryBudgetError

LARGEST = 2 << 30  # bytes
ENTRY = 5  # bytes of an entry: a column and a bool
_SMALL = 20_000  # entries, with which nothing takes long


class Sets(ABC):
    """One set of inputs for each element of a list; never changed once made.

    Attributes:
        count: how many elements.
        inputs: how many inputs there are.
        rank: of two representations that meet, the one of higher rank can hold both.
    """

    count: int
    inputs: int
    rank: ClassVar[int]

    @abstractmethod
    def take(self, numbers: Tensor) -> Sets:
        """The sets of some elements, in an order, with repetitions; none for -1."""

    @abstractmethod
    def union(self, other: Sets) -> Sets:
        """Element by element the inputs of either one."""

    @abstractmethod
    def grouped(self, groups: Tensor, size: int) -> Sets:
        """The union over each of `size` groups; ``groups[i]`` is that of element i, -1 for none."""

    @abstractmethod
    def then(self, other: Sets) -> Sets:
        """The sets of one list of elements after those of another."""

    @abstractmethod
    def empty(self, count: int) -> Sets:
        """As many empty sets, in this representation."""

    def compressed(self) -> Any:
        """``[elements, inputs]``, a SciPy matrix in compressed rows, columns in order, none twice."""
        raise NotImplementedError

    def paired(self, members: Tensor, groups: Tensor, size: int) -> Sets:
        """The union over each of `size` groups, where element ``members[k]`` is one of group ``groups[k]``."""
        return self.take(members).grouped(groups, size)

    def strided(self, shape: Sequence[int], stride: Sequence[int], offset: int) -> Sets:
        """The sets of a view, in row-major order."""
        return self.take(_numbers(self.count, shape, stride, offset))

    def written(self, new: Sets | None, shape: Sequence[int], stride: Sequence[int], offset: int) -> Sets:
        """With other sets for the elements of a view."""
        numbers = _numbers(self.count, shape, stride, offset)
        new = self.empty(len(numbers)) if new is None else new
        taken = torch.arange(self.count)
        taken[numbers] = self.count + torch.arange(len(numbers))
        return self.then(new).take(taken)

    def spread(self, shape: Sequence[int], onto: Sequence[int]) -> Sets:
        """Of a tensor of one shape that is broadcast to another."""
        return self.take(torch.arange(self.count).view(tuple(shape)).expand(tuple(onto)).flatten())

    def regrained(self, unit: int, new: int) -> Sets:
        """Of memory whose elements of `unit` bytes are seen as elements of `new` bytes."""
        if new < unit:
            return self.take(torch.arange(self.count).repeat_interleave(unit // new))
        ratio = new // unit
        size = self.count // ratio
        return self.take(torch.arange(size * ratio)).grouped(torch.arange(size).repeat_interleave(ratio), size)


def merged(a: Sets | None, b: Sets | None) -> Sets | None:
    """The inputs of either one; None is none at all."""
    if a is None or b is None or a is b:
        return b if a is None else a
    return a.union(b) if a.rank >= b.rank else b.union(a)


def is_full(total: float, count: int, inputs: int) -> bool:
    """Whether so many entries take more memory than a bit for each of `inputs`."""
    return total > _SMALL and total * ENTRY * 8 > count * inputs


def require_room(size: float, count: int) -> None:
    """Refuse sets that do not fit.

    Raises:
        MemoryBudgetError: they would take more than 2 GiB, or than what the budget in force leaves.
    """
    require(size)
    if size > LARGEST:
        raise MemoryBudgetError(
            "The pattern of a sparse derivative is found by sets of inputs.",
            f"{size / 2**30:.1f} GiB in the middle of the function, for {count} elements",
            "use structure='dense': so full a matrix is no sparse one",
        )


def _numbers(size: int, shape: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    return torch.arange(size).as_strided(tuple(shape), tuple(stride), offset).flatten()
