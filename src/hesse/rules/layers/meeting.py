"""A meeting: the autograd node in which a weight meets data, as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.registry import Registry
from hesse.rules.forms import Form


@dataclass(frozen=True)
class SampleAxis:
    """Where the samples are in a tensor: axis `axis` runs over ``(before, n, after)``, merged."""

    axis: int
    before: int
    after: int

    @property
    def is_plain(self) -> bool:
        """Whether the axis holds the samples and nothing else."""
        return self.before == self.after == 1

    def rows(self, tensor: Tensor) -> Tensor:
        """The samples in front: ``[n, *shape]``, in which the axis keeps its place with what else was merged into it."""
        shape = tensor.shape
        count = shape[self.axis] // (self.before * self.after)
        split = tensor.reshape(*shape[: self.axis], self.before, count, self.after, *shape[self.axis + 1 :])
        moved = split.movedim(self.axis + 1, 0)
        return moved.reshape(count, *shape[: self.axis], self.before * self.after, *shape[self.axis + 1 :])

    def unrows(self, rows: Tensor) -> Tensor:
        """Undo `rows`."""
        count, shape = rows.shape[0], rows.shape[1:]
        split = rows.reshape(count, *shape[: self.axis], self.before, self.after, *shape[self.axis + 1 :])
        moved = split.movedim(0, self.axis + 1)
        return moved.reshape(*shape[: self.axis], self.before * count * self.after, *shape[self.axis + 1 :])


@dataclass(frozen=True, eq=False)
class Meeting:
    """What a rule is given.

    Attributes:
        node: the autograd node; `saved` reads what it keeps.
        index: which input of the node's op the weight is.
        g: the cotangent of the op's first output, as the op laid it out.
        where: where the samples are in g.
        shape: the weight's shape.
    """

    node: Any
    index: int
    g: Tensor
    where: SampleAxis
    shape: torch.Size

    def saved(self, name: str) -> Any:
        """What the node saved under this name (``_saved_<name>``)."""
        value = getattr(self.node, f"_saved_{name}")
        return value.detach() if isinstance(value, Tensor) else value

    def sum_to_weight(self, product: Tensor) -> Tensor:
        """Add up a tensor laid out like g over what the weight was broadcast over, but not over samples: ``[n, *shape]``."""
        rows = self.where.rows(product)
        padded = (1,) * (product.ndim - len(self.shape)) + tuple(self.shape)
        summed = [axis + 1 for axis, size in enumerate(padded) if size == 1 and rows.shape[axis + 1] != 1]
        if summed:
            rows = rows.sum(summed, keepdim=True)
        return rows.reshape(rows.shape[0], *self.shape)


LayerRule = Callable[[Meeting], Form | None]

layer_rules: Registry[LayerRule] = Registry(
    "layer rule", "register one with @layer_rules.register(node_name); until then the exact masked path is taken"
)
