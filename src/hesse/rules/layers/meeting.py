"""A meeting: the autograd node in which a weight meets data, as its rule sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
        if self.axis == 0 and self.is_plain:
            return tensor.unsqueeze(1)
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
        cotangents: output of the op -> its cotangent, as the op laid it out; outputs that nothing depends on are not there.
        places: output of the op -> where the samples are in its cotangent.
        shape: the weight's shape.
        attached: whether the form is to be differentiable itself.
        notes: shared by the meetings of one backward pass; `once` keeps there what several weights of a node need.
    """

    node: Any
    index: int
    cotangents: dict[int, Tensor]
    places: dict[int, SampleAxis]
    shape: torch.Size
    attached: bool = False
    notes: dict[Any, Any] = field(default_factory=dict)

    @property
    def g(self) -> Tensor:
        """The cotangent of the op's first output."""
        return self.cotangents[0]

    @property
    def where(self) -> SampleAxis:
        """Where the samples are in `g`."""
        return self.places[0]

    def saved(self, name: str) -> Any:
        """What the node saved under this name (``_saved_<name>``)."""
        value = getattr(self.node, f"_saved_{name}")
        return value.detach() if isinstance(value, Tensor) and not self.attached else value

    def once(self, compute: Callable[[], Any]) -> Any:
        """What all weights of this node need, computed for the first of them."""
        if self.node not in self.notes:
            self.notes[self.node] = compute()
        return self.notes[self.node]

    def sum_to_weight(self, product: Tensor) -> Tensor:
        """Add up a tensor laid out like g over what the weight was broadcast over, but not over samples: ``[n, *shape]``."""
        if self.where.axis == 0 and self.where.is_plain and product.shape[1:] == self.shape:
            return product
        rows = self.where.rows(product)
        padded = (1,) * (product.ndim - len(self.shape)) + tuple(self.shape)
        summed = [axis + 1 for axis, size in enumerate(padded) if size == 1 and rows.shape[axis + 1] != 1]
        if summed:
            rows = rows.sum(summed, keepdim=True)
        return rows.reshape(rows.shape[0], *self.shape)


LayerRule = Callable[[Meeting], Form | None]
"""A rule returns None for an option that it does not cover (the exact masked path is taken then)."""

MANY_OUTPUTS = {"MkldnnRnnLayerBackward0"}
"""Nodes whose rules read the cotangents of all outputs; any other rule is asked only if the first output alone is used."""

layer_rules: Registry[LayerRule] = Registry(
    "layer rule", "register one with @layer_rules.register(node_name); until then the exact masked path is taken"
)
