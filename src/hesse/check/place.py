"""Where a finding was made: what a program needs to show it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hesse.core.tree import Tree


@dataclass(frozen=True, eq=False)
class Place:
    """A point, and what was done there.

    Attributes:
        x: the whole point, in the types in which it was compared; Python floats are tensors.
        cotangents: of the outputs.
        outputs: their names.
        runs: whether the function runs on x as it is; not where its constants had to be converted to float64 for it.
        draws: whether it draws random numbers, which are others in float64 than those of the check.
        direction: along which slopes were compared, a tensor for each leaf that moved; None for single elements.
    """

    x: Tree
    cotangents: Sequence[Tensor]
    outputs: Sequence[str]
    runs: bool = True
    draws: bool = False
    direction: Sequence[Tensor | None] | None = None
