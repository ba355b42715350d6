"""What a result depends on, from what an operand depends on and the form that a rule gives."""

from __future__ import annotations

from torch import Tensor

from hesse.autodiff.dependence.sets.base import Sets
from hesse.rules.sparsity.forms import Form, Grouped, Moved, Pairs, Same


def depending(sets: Sets, operand: Tensor, output: Tensor, form: Form) -> Sets:
    """The sets of a result's elements, as far as they come from one operand.

    Args:
        sets: of the operand's elements.
        operand, output: the tensors, for their shapes.
        form: how one depends on the other.
    """
    match form:
        case Same():
            return sets if operand.shape == output.shape else sets.spread(operand.shape, output.shape)
        case Moved(numbers):
            return sets.take(numbers.flatten())
        case Grouped(inputs, outputs):
            return sets.grouped(inputs.flatten(), _count(inputs, outputs)).take(outputs.flatten())
        case Pairs(inputs, groups, outputs, rows):
            grouped = sets.grouped(inputs.flatten(), _count(inputs, groups))
            return grouped.paired(groups, outputs, _count(outputs, rows)).take(rows.flatten())


def _count(*groups: Tensor) -> int:
    return max((int(g.max()) + 1 for g in groups if g.numel()), default=0)
