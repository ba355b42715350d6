"""Elementwise ops in which a weight is broadcast against data: sums, products, quotients, choices, PReLU, expansion."""

from __future__ import annotations

from torch import Tensor

from hesse.rules.forms import Dense, Form
from hesse.rules.layers.meeting import Meeting, layer_rules


@layer_rules.register("AddBackward0")
def add(meeting: Meeting) -> Form | None:
    """``self + alpha * other``."""
    scale = meeting.saved("alpha") if meeting.index == 1 else 1
    return Dense(_scaled(meeting.sum_to_weight(meeting.g), scale))


@layer_rules.register("SubBackward0")
def sub(meeting: Meeting) -> Form | None:
    """``self - alpha * other``."""
    scale = -meeting.saved("alpha") if meeting.index == 1 else 1
    return Dense(_scaled(meeting.sum_to_weight(meeting.g), scale))


@layer_rules.register("MulBackward0")
def mul(meeting: Meeting) -> Form | None:
    """``self * other``."""
    z = meeting.saved("other" if meeting.index == 0 else "self")
    return Dense(meeting.sum_to_weight(meeting.g * z))


@layer_rules.register("DivBackward0")
def div(meeting: Meeting) -> Form | None:
    """``self / other``."""
    quotient = meeting.g / meeting.saved("other")
    if meeting.index == 1:
        quotient = -quotient * (meeting.saved("self") / meeting.saved("other"))
    return Dense(meeting.sum_to_weight(quotient))


@layer_rules.register("WhereBackward0")
def where(meeting: Meeting) -> Form | None:
    """``where(condition, self, other)``."""
    condition = meeting.saved("condition")
    return Dense(meeting.sum_to_weight(meeting.g.masked_fill(~condition if meeting.index == 0 else condition, 0)))


@layer_rules.register("PreluKernelBackward0")
def prelu(meeting: Meeting) -> Form | None:
    """``self if self > 0 else weight * self``, the weight viewed to be broadcast (He et al. 2015)."""
    z = meeting.saved("self")
    return Dense(meeting.sum_to_weight((meeting.g * z).masked_fill(z > 0, 0))) if meeting.index == 1 else None


@layer_rules.register("ExpandBackward0")
def expand(meeting: Meeting) -> Form | None:
    """A weight repeated for every sample by broadcasting (`expand`)."""
    return Dense(meeting.sum_to_weight(meeting.g))


def _scaled(rows: Tensor, scale: float) -> Tensor:
    return rows if scale == 1 else rows * scale
