"""What a sparsity rule may say of one operand and one result of an op.

Elements are counted in row-major order, whatever the strides. A form may name more elements than there are derivatives that
differ from zero, and never fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.core.registry import Registry


@dataclass(frozen=True)
class Same:
    """Each element depends on the element of the operand in its place, which is broadcast."""


@dataclass(frozen=True)
class Moved:
    """Each element is one of the operand, or of elsewhere.

    Attributes:
        numbers: the element of the operand that each element of the result is, -1 for none; int64, any shape of as many
            elements as the result.
    """

    numbers: Tensor


@dataclass(frozen=True)
class Grouped:
    """Each element depends on the elements of the operand in its group.

    Attributes:
        inputs: the group of each element of the operand, -1 for none; int64, any shape of as many elements.
        outputs: the group of each element of the result, -1 for none.
    """

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Pairs:
    """Elements depend on elements one by one, after the operand's were put in groups.

    Attributes:
        inputs: the group of each element of the operand, -1 for none.
        groups: ``[k]``, a group for each pair.
        outputs: ``[k]``, an element of `rows` for each pair.
        rows: the row of pairs that each element of the result reads, -1 for none.
    """

    inputs: Tensor
    groups: Tensor
    outputs: Tensor
    rows: Tensor


Form = Same | Moved | Grouped | Pairs
Link = tuple[int, Tensor, Form]
"""Which result, which operand, and how."""


@dataclass(frozen=True)
class Call:
    """One call of an op, after it ran.

    Attributes:
        func: the op.
        given: arguments by their names in its schema, defaults filled in.
        outputs: its tensor results.
        is_fixed: whether the values of a tensor are the same wherever the function is evaluated.
        zeros: where a constant operand is zero, in its shape; None if it is none, has no zeros, or they are not to count.
    """

    func: Any
    given: dict[str, Any]
    outputs: Sequence[Tensor]
    is_fixed: Callable[[Tensor], bool] = field(repr=False)
    zeros: Callable[[Tensor], Tensor | None] = field(repr=False, default=lambda _: None)

    def __getitem__(self, name: str) -> Any:
        return self.given[name]

    @property
    def operands(self) -> list[Tensor]:
        """All tensors among the arguments, in order, those in lists too."""
        return [t for value in self.given.values() for t in (value if isinstance(value, (list, tuple)) else (value,))
                if isinstance(t, Tensor)]  # fmt: skip


Rule = Callable[[Call], list[Link]]
sparsity_rules: Registry[Rule] = Registry("sparsity rule", "every result is taken to depend on every operand")
"""By name of the op, such as "mm"; of operators of other libraries "library::name"."""


def places(tensor: Tensor) -> Tensor:
    """The number of each element, in the shape of a tensor."""
    return torch.arange(tensor.numel(), device="cpu").view(tensor.shape)


def everything(call: Call, operands: Sequence[Tensor] | None = None) -> list[Link]:
    """Every element of every result depends on every element of the operands."""
    chosen = call.operands if operands is None else operands
    return [(index, t, whole(t, y)) for index, y in enumerate(call.outputs) for t in chosen]


def whole(operand: Tensor, output: Tensor) -> Grouped:
    """All of a result on all of an operand."""
    return Grouped(torch.zeros(operand.shape, dtype=torch.int64), torch.zeros(output.shape, dtype=torch.int64))


def shared(shape: Sequence[int], kept: Sequence[int]) -> Tensor:
    """Group numbers of a shape: elements are in one group where their places along the axes that are kept agree."""
    sizes = [n if axis in kept else 1 for axis, n in enumerate(shape)]
    total = 1
    for n in sizes:
        total *= n
    return torch.arange(total).view(sizes).expand(*shape) if len(shape) else torch.zeros((), dtype=torch.int64)


def axes_of(dims: Any, ndim: int) -> list[int]:
    """Axes counted from 0; all of them for None or an empty list."""
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return list(range(ndim))
    dims = [dims] if isinstance(dims, int) else dims
    return sorted(d % ndim for d in dims) if ndim else []


def across(operand: Tensor, output: Tensor, dims: Sequence[int]) -> Grouped:
    """Each element of the result depends on a line (plane, ...) of the operand along some axes; the result has them too, or has
    them with size 1, or not at all."""
    kept = [axis for axis in range(operand.ndim) if axis not in dims]
    if output.ndim == operand.ndim:
        return Grouped(shared(operand.shape, kept), shared([operand.shape[a] if a in kept else 1 for a in range(operand.ndim)],
                                                           kept).expand(output.shape))  # fmt: skip
    groups = 1
    for axis in kept:
        groups *= operand.shape[axis]
    return Grouped(shared(operand.shape, kept), torch.arange(groups).view(output.shape))
