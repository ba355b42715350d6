"""Other lengths of axes that do not count samples: a kernel may be made for even rows, or for maps of one pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hesse.check.functions.case import Case
from hesse.check.functions.variants import COST, compare_elsewhere, data_leaves

_AXES = 3  # from the last on
_LEAVES = 2
_LONGEST = 64  # axes longer than this stay

Change = Callable[[str, Tensor], Tensor]


def axis_lengths(case: Case) -> None:
    """Inputs whose last axes are one longer; a function that refuses them is passed over.

    An axis is made longer alone first; where that is refused, with all axes of its length, as those of a matrix beside it.
    None is made shorter: indices that a function holds might point beyond it, and kernels read what is there.

    Cost: 5 evaluations an axis that is not refused, 2 for one that is.
    """
    for leaf, axis in _axes(case):
        if case.wrong or case.subject.budget.left < COST:
            return
        name, length = case.names[leaf], case.home.point[leaf].shape[axis]
        where = f"{length + 1} elements along axis {axis} of '{name}'"
        check, words = f"reverse mode at {where}", f"only where axis {axis} of '{name}' has {length + 1} elements"
        for change in (_alone(name, axis), _together(name, length)):
            spent = case.subject.budget.spent
            subject = case.subject.variant(change)
            text = compare_elsewhere(case, check, subject, subject.leaves, None, words)
            if text:  # made for some lengths only, as where pairs are rotated
                case.note(f"with {where} the backward pass {text}")
            if case.subject.budget.spent > spent + 1:  # it was not refused
                break


def _axes(case: Case) -> Iterator[tuple[int, int]]:
    """Leaves that are data, and their axes but for the first."""
    for leaf in sorted(data_leaves(case))[:_LEAVES]:
        x = case.home.point[leaf]
        if not case.subject.is_sparse:
            yield from (
                (leaf, axis) for axis in range(x.dim() - 1, max(0, x.dim() - 1 - _AXES), -1) if x.shape[axis] <= _LONGEST
            )


def _alone(name: str, axis: int) -> Change:
    return lambda path, t: _longer(t, axis) if path == name else t


def _together(name: str, length: int) -> Change:
    def change(path: str, t: Tensor) -> Tensor:
        for axis, own in enumerate(t.shape):
            if own == length and (axis or path != name):
                t = _longer(t, axis)
        return t

    return change


def _longer(t: Tensor, axis: int) -> Tensor:
    """With the first slice again at the end, a little larger."""
    first = t.narrow(axis, 0, 1)
    return torch.cat([t, 1.1 * first if t.is_floating_point() or t.is_complex() else first], axis)
