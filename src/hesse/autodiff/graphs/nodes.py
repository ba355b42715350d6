"""The one kind of node that every drawn graph has, and the nesting of its modules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from hesse.autodiff.events.records import TensorFacts
from hesse.autodiff.source_lines import Frame

Kind = Literal["input", "parameter", "buffer", "constant", "op", "answer", "gradient"]
"""What a node is: an argument, a module's parameter or buffer, another tensor from outside (closed over, or made from Python
data), an operation, an output, a gradient."""

Order = Literal["forward", "backward", "double backward"]
"""The pass that a node belongs to."""

ORDERS: tuple[Order, ...] = ("forward", "backward", "double backward")


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of a traced function or of a compiled program.

    Attributes:
        name: unique in the graph.
        op: the operation ("aten.mm.default"), or what people call a tensor from outside or a result ("params['w']").
        kind: see `Kind`.
        phase: "forward", "backward" or "double backward".
        outputs: shape, dtype, device and, where values were asked for, range and counts of what it gives; empty where that is
            no tensor.
        source: the user's line, of the forward op for ops of a backward pass; None where it is not known.
        inputs: names of the nodes that it reads, each once, in order.
        module: the path of the module whose call it belongs to ("layers.0.linear1"); "#2" marks a second call. Empty outside
            of all modules.
        partner: the node that made the autograd node in which this one runs; None for nodes of a forward pass.
        view: it shares its input's memory and writes nothing.
        meant: its infinities were put there on purpose (masks).
    """

    name: str
    op: str
    kind: Kind
    phase: Order
    outputs: tuple[TensorFacts, ...] = ()
    source: Frame | None = None
    inputs: tuple[str, ...] = ()
    module: str = ""
    partner: str | None = None
    view: bool = False
    meant: bool = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of its first tensor; None where it gives none (numbers)."""
        return self.outputs[0].shape if self.outputs else None

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of its first tensor; None where it gives none."""
        return self.outputs[0].dtype if self.outputs else None

    @property
    def device(self) -> torch.device | None:
        """The device of its first tensor; None where it gives none."""
        return self.outputs[0].device if self.outputs else None

    @property
    def bad(self) -> bool:
        """Whether a value of it is NaN or infinite, and not so on purpose."""
        return not self.meant and any(not facts.finite for facts in self.outputs)

    @property
    def bytes(self) -> int:
        """The memory that its outputs occupy, in bytes; 0 for a view and for what an op wrote into its input."""
        written = self.kind == "op" and self.op.split(".")[-2:][0].endswith("_")
        if self.view or written or self.kind in ("answer", "gradient"):
            return 0
        return sum(math.prod(facts.shape) * facts.dtype.itemsize for facts in self.outputs)

    @property
    def label(self) -> tuple[str, ...]:
        """The lines of its drawing: operation, type and shape with the range, line."""
        where = () if self.source is None or self.kind in ("answer", "gradient") else (str(self.source),)
        return (self.op, *map(str, self.outputs), *where)

    def __str__(self) -> str:
        return " · ".join((self.name, *self.label))


def parents(paths: Iterable[str]) -> dict[str, str | None]:
    """The module that each module is drawn in: the longest path of the others that its own begins with.

    Args:
        paths: of modules, dotted; the outermost one's is empty.

    Returns:
        The parent's path of each, None for those without one; shorter paths first.
    """
    known = sorted(set(paths), key=lambda path: (path.count(".") if path else -1, path))
    found: dict[str, str | None] = {}
    for path in known:
        above = path
        while above and (above := above.rpartition(".")[0]) not in found:
            pass
        found[path] = above if path and above in found else None
    return found
