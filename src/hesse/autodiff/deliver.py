"""From the weight-like tensor at a meeting back to the parameters behind it.

Transposes, views, casts and slices keep a form's structure. Any other chain of ops on weights (``W ** 2``, ``B @ A``, weight
norm) is differentiated by autograd for a few rows at a time, when a quantity asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.layout import Walk
from hesse.autodiff.plan import PlannedMeeting
from hesse.autodiff.recording import node_outputs
from hesse.rules.forms import Chained, Contract, Dense, Form, Part

Box = tuple[tuple[int, int], ...]

_CASTS = {"ToCopyBackward0", "AliasBackward0", "CloneBackward0"}
_VIEWS = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward1"}
_ORDERS = {"TBackward0", "TransposeBackward0", "PermuteBackward0"}
_SLICES = {"SplitBackward0", "SplitWithSizesBackward0", "SliceBackward0", "SelectBackward0", "UnbindBackward0"}


@dataclass(frozen=True, eq=False)
class Captured:
    """What one root (one cotangent of the output) gives: for each parameter its forms, which add up, and their paths.

    Attributes:
        forms: name -> forms; none for a parameter that is not used.
        paths: name -> "rule", "masked", "chained", "sample by sample" or "unused" (joined by + for several uses).
    """

    forms: dict[str, list[Form]]
    paths: dict[str, str]


@dataclass
class Collector:
    """Gathers the forms of every parameter and how they were found."""

    forms: dict[str, list[Form]]
    paths: dict[str, list[str]] = field(default_factory=dict)

    def put(self, name: str, form: Form, path: str) -> None:
        """One more use of a parameter."""
        self.forms[name].append(form)
        paths = self.paths.setdefault(name, [])
        if path not in paths:
            paths.append(path)

    def finish(self) -> Captured:
        """All uses."""
        return Captured(self.forms, {name: "+".join(self.paths.get(name, ["unused"])) for name in self.forms})


@dataclass(frozen=True)
class _Step:
    """A form on its way: of the output `slot` of `node`, of which it covers a box (None: all)."""

    node: Any
    slot: int
    form: Form
    box: Box | None = None

    def placed(self) -> Form:
        """The form of the whole tensor."""
        if self.box is None:
            return self.form
        return Part(self.form, self.box, torch.Size(node_outputs(self.node)[self.slot].shape))


def deliver(walk: Walk, m: PlannedMeeting, form: Form, path: str, to: Collector, attached: bool) -> None:
    """Bring a form from the weight-like tensor back to the parameters behind it."""
    step = _Step(walk.nodes[m.weight], m.slot, form)
    while step.node not in walk.leaves and (further := _through(step)) is not None:
        step = further
    if step.node in walk.leaves:
        to.put(walk.leaves[step.node], step.placed(), path)
        return
    edge = GradientEdge(step.node, step.slot)
    for i in m.params:
        leaf = GradientEdge(walk.nodes[i], 0)
        back = _back(edge, leaf, node_outputs(leaf.node)[0].shape, attached)
        name = walk.leaves[leaf.node]
        to.put(name, Chained(step.placed(), back, form.count), "chained" if path == "rule" else f"{path}, chained")


def _through(step: _Step) -> _Step | None:
    """One op further towards the parameter; None if the form has no structure there."""
    name = step.node.name()
    parent, slot = step.node.next_functions[0] if step.node.next_functions else (None, 0)
    if parent is None:
        return None
    if name in _CASTS:
        return replace(step, node=parent, slot=slot)
    shape = tuple(node_outputs(step.node)[step.slot].shape)
    if name == "TBackward0" and isinstance(step.form, Contract) and step.box is None and step.form.matrix == shape:
        return _Step(parent, slot, step.form.transposed())
    if name in _ORDERS:
        return _through_order(step, parent, slot)
    if name in _VIEWS and step.box is None and isinstance(step.form, (Contract, Dense)):
        return _Step(parent, slot, step.form)
    if name in _SLICES and len(node_outputs(parent)) > slot:
        return _through_slice(step, parent, slot)
    return None


def _through_slice(step: _Step, parent: Any, slot: int) -> _Step | None:
    """A slice: the form covers a box of the tensor that was sliced."""
    node, name = step.node, step.node.name()
    shape = tuple(node_outputs(parent)[slot].shape)
    dim = _signed(node._saved_dim) % len(shape)
    removes = name in ("SelectBackward0", "UnbindBackward0")
    if name == "SliceBackward0":
        if node._saved_step != 1:
            return None
        start = slice(_signed(node._saved_start), _signed(node._saved_end)).indices(shape[dim])[0]
    elif name == "SelectBackward0":
        start = _signed(node._saved_index) % shape[dim]
    elif name == "UnbindBackward0":
        start = step.slot
    else:
        start = sum(meta.shape[dim] for meta in node_outputs(node)[: step.slot])
    own = tuple(node_outputs(node)[step.slot].shape)
    inner = list(step.box or ((0, size) for size in own))
    if removes:
        inner.insert(dim, (0, 1))
    inner[dim] = (start + inner[dim][0], start + inner[dim][1])
    return _Step(parent, slot, step.form, tuple(inner))


def _through_order(step: _Step, parent: Any, slot: int) -> _Step | None:
    """A transposition or permutation: axes of length one may go anywhere, the two of a contraction may change places."""
    node = step.node
    sizes = [stop - start for start, stop in step.box] if step.box else list(node_outputs(node)[step.slot].shape)
    order = list(range(len(sizes)))  # axis k of the result is axis order[k] of the parent
    if node.name() == "PermuteBackward0":
        order = [_signed(dim) % len(sizes) for dim in node._saved_dims]
    else:
        first, second = (0, 1) if node.name() == "TBackward0" else (_signed(node._saved_dim0), _signed(node._saved_dim1))
        order[first], order[second] = order[second], order[first]
    back = [order.index(axis) for axis in range(len(order))]
    box = None if step.box is None else tuple(step.box[axis] for axis in back)
    long = [axis for axis, size in zip(order, sizes, strict=True) if size > 1]
    if isinstance(step.form, Dense):
        rows = step.form.rows
        return _Step(parent, slot, Dense(rows.reshape(len(rows), *sizes).permute(0, *(1 + axis for axis in back))), box)
    if long == sorted(long):
        return _Step(parent, slot, step.form, box)
    if isinstance(step.form, Contract) and len(long) == 2 and step.form.dims[3:] == tuple(size for size in sizes if size > 1):
        return _Step(parent, slot, step.form.transposed(), box)
    return None


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _back(edge: GradientEdge, leaf: GradientEdge, shape: Sequence[int], attached: bool) -> Callable[[Tensor], Tensor]:
    """Transposed derivative of a weight-like tensor by a parameter, for rows ``[n, ...]``."""
    weight = node_outputs(edge.node)[edge.output_nr].shape

    def pull(cotangent: Tensor, batched: bool) -> Tensor | None:
        follow = attached and torch.is_grad_enabled()
        options: dict[str, Any] = {"retain_graph": True, "create_graph": follow, "allow_unused": True}
        return torch.autograd.grad([edge], [leaf], [cotangent], is_grads_batched=batched, **options)[0]

    def back(rows: Tensor) -> Tensor:
        rows = rows.reshape(len(rows), *weight)
        try:
            pulled = pull(rows, True)
        except RuntimeError:
            parts = [pull(row, False) for row in rows]
            pulled = None if any(part is None for part in parts) else torch.stack([part for part in parts if part is not None])
        return rows.new_zeros(len(rows), *shape) if pulled is None else pulled

    return back
