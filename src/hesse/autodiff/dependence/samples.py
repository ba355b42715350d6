"""Which sample every element depends on: whether a function treats the rows of a batch independently, proved by one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.autodiff.dependence.function import followed
from hesse.autodiff.dependence.sets.base import Sets
from hesse.autodiff.dependence.sets.spans import Spans
from hesse.autodiff.recording import Function
from hesse.core.errors import UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree


@dataclass(frozen=True)
class SampleDependence:
    """Whether row i of a value depends on row i of the input alone, at any point.

    Attributes:
        independent: it does, for certain. False: it does not, or that could not be told from the ops.
        reason: the op at which rows met, with its line; what could not be told. Empty where rows are independent.
        fallbacks: ops that no rule knows, which were taken to mix all of their operands, and how often they ran.
    """

    independent: bool
    reason: str
    fallbacks: dict[str, int]


def sample_dependence(f: Function, x: Tree, asked: str) -> SampleDependence:
    """Follow the number of the sample through a function: the smallest and the largest that every element depends on.

    Args:
        f: any function of a tree, returning a tree of tensors.
        x: the point; all leaves have the batch as their first axis, and so have those of the value.
        asked: what is asked of hesse, for error messages.

    Returns:
        What was found; leaves without the batch in front, and Python that branches on values, are reasons not to know.

    Raises:
        LeafError, DeviceError, NonFiniteError, StructureError, MemoryBudgetError: as the names say, with the leaf.

    Cost: one run of f (with its backward pass where it holds custom functions), about 50 microseconds more an op, and a few
    passes over what it computes.
    """
    sizes: set[int] = set()

    def label(tensors: Sequence[Tensor]) -> list[Sets]:
        sizes.update(t.shape[0] if t.ndim else 0 for t in tensors)
        if len(sizes) != 1 or 0 in sizes:
            raise _NoBatchError
        count = min(sizes)
        return [Spans.of(torch.arange(count).repeat_interleave(t.numel() // count), count) for t in tensors]

    try:
        run = followed(f, x, asked, label, local=False, gradient=False)
    except _NoBatchError:
        return SampleDependence(False, "leaves without the same first axis", {})
    except UnsupportedError as error:
        return SampleDependence(False, str(error), {})
    following, sets = run.following, run.sets
    assert isinstance(sets, Spans)
    batches = {shape[0] if shape else 0 for shape in (run.in_space if run.reverse else run.out_space).shapes}
    if batches != sizes:
        return SampleDependence(False, "leaves without the same first axis", dict(following.fallbacks))
    expected = _rows(run.in_space if run.reverse else run.out_space, min(sizes))
    apart = (sets.high < 0) | ((sets.low == expected) & (sets.high == expected))
    if bool(apart.all()):
        return SampleDependence(True, "", dict(following.fallbacks))
    reason = next(iter(following.mixers), "rows change their places")
    return SampleDependence(False, reason, dict(following.fallbacks))


class _NoBatchError(Exception):
    """Leaves without the same first axis."""


def _rows(space: Space, count: int) -> Tensor:
    return torch.cat([torch.arange(count).repeat_interleave(size // count) for size in space.sizes])
