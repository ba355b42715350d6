"""The use of a parameter at a meeting: its form, by a rule or by the exact masked path, brought back to the parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.layout import Walk
from hesse.autodiff.plan import PlannedMeeting
from hesse.autodiff.recording import node_outputs
from hesse.rules.forms import Contract, Dense, Form
from hesse.rules.layers import Meeting, layer_rules

_CASTS = {"ToCopyBackward0"}
_VIEWS = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}


@dataclass(frozen=True, eq=False)
class Captured:
    """What one root (one cotangent of the output) gives: for each parameter its forms, which add up, and their paths.

    Attributes:
        forms: name -> forms; none for a parameter that is not used.
        paths: name -> "rule", "masked", "pulled back", "sample by sample" or "unused" (joined by + for several uses).
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


def form_of(walk: Walk, m: PlannedMeeting, cotangents: Sequence[Tensor | None], count: int) -> tuple[Form, str]:
    """The form of one use, and how it was found: "rule" or "masked"."""
    node = walk.nodes[m.node]
    rule = layer_rules.get(node.name())
    if rule is not None and m.outputs == (0,) and cotangents[0] is not None and not cotangents[0].is_complex():
        form = rule(Meeting(node, m.index, cotangents[0], m.where[0], m.shape))
        if form is not None:
            return form, "rule"
    return Dense(_masked(node, m, cotangents, count)), "masked"


def _masked(node: Any, m: PlannedMeeting, cotangents: Sequence[Tensor | None], count: int) -> Tensor:
    is_python = hasattr(node, "apply")  # a custom Function, whose backward expects zeros where the engine has no gradient
    backward = node.apply if is_python else node
    metas = node_outputs(node)
    by_sample = [None if g is None else w.rows(g) for g, w in zip(cotangents, m.where, strict=True)]
    rows = []
    for sample in range(count):
        given: list[Tensor | None] = [_zeros(meta) if is_python else None for meta in metas]
        for slot, g, where in zip(m.outputs, by_sample, m.where, strict=True):
            if g is not None:
                alone = torch.zeros_like(g)
                alone[sample] = g[sample]
                given[slot] = where.unrows(alone)
        results = backward(*given)
        result = results[m.index] if isinstance(results, tuple) else results
        if result is None:
            like = next(g for g in cotangents if g is not None)
            rows.append(like.new_zeros(m.shape))
        else:
            rows.append(result.to_dense().sum_to_size(m.shape) if result.is_sparse else result.sum_to_size(m.shape))
    return torch.stack(rows)


def _zeros(meta: Any) -> Tensor:
    return torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device)


def deliver(walk: Walk, m: PlannedMeeting, form: Form, path: str, names: dict[int, str], to: Collector) -> None:
    """Bring a form from the weight-like tensor back to the parameters behind it."""
    node, slot = walk.nodes[m.weight], m.slot
    viewed = False
    while not hasattr(node, "variable"):
        name = node.name()
        if name == "TBackward0" and isinstance(form, Contract) and not viewed:
            form = form.transposed()
        elif name == "TBackward0" and isinstance(form, Dense) and not viewed:
            form = Dense(form.rows.mT)
        elif name in _VIEWS and isinstance(form, (Contract, Dense)):
            viewed = True  # the same elements in the same order, of which no axis can be transposed any more
        elif name not in _CASTS:
            break
        node, slot = node.next_functions[0]
    if hasattr(node, "variable"):
        to.put(names[id(node.variable)], form, path)
        return
    edge = GradientEdge(node, slot)
    leaves = [walk.nodes[i].variable for i in m.params]
    shape = node_outputs(edge.node)[edge.output_nr].shape
    rows = form.dense().reshape(-1, *shape)
    for leaf, pulled in zip(leaves, _pull_back(edge, leaves, rows), strict=True):
        to.put(names[id(leaf)], Dense(pulled), "pulled back" if path == "rule" else path)


def _pull_back(edge: GradientEdge, leaves: list[Tensor], rows: Tensor) -> list[Tensor]:
    def pull(cotangent: Tensor, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad([edge], leaves, [cotangent], retain_graph=True, allow_unused=True, is_grads_batched=batched)

    try:
        pulled = pull(rows, True)
    except RuntimeError:
        by_row = [pull(row, False) for row in rows]
        pulled = [None if parts[0] is None else torch.stack(list(parts)) for parts in zip(*by_row, strict=True)]  # pyright: ignore[reportArgumentType]
    return [rows.new_zeros(len(rows), *leaf.shape) if p is None else p for p, leaf in zip(pulled, leaves, strict=True)]
