"""The use of a weight at a meeting: its form, by a rule or by the exact masked path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.layout import Walk
from hesse.autodiff.plan import PlannedMeeting
from hesse.autodiff.recording import node_outputs
from hesse.rules.forms import Dense, Form
from hesse.rules.layers import MANY_OUTPUTS, Meeting, layer_rules


def form_of(
    walk: Walk, m: PlannedMeeting, cotangents: Sequence[Tensor | None], count: int, notes: dict[Any, Any], attached: bool
) -> tuple[Form, str]:
    """The form of one use, and how it was found: "rule" or "masked"."""
    node = walk.nodes[m.node]
    rule = layer_rules.get(node.name())
    given = {slot: g for slot, g in zip(m.outputs, cotangents, strict=True) if g is not None}
    if (
        rule is not None
        and (m.outputs == (0,) or node.name() in MANY_OUTPUTS)
        and not any(g.is_complex() for g in given.values())
    ):
        places = dict(zip(m.outputs, m.where, strict=True))
        form = rule(Meeting(node, m.index, given, places, m.shape, attached, notes))
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
