"""Which indices of a functional graph can be out of bounds."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from hesse.autodiff.compiled.functional_form import Functional

INDEXING = ("index", "gather", "scatter", "embedding", "take", "put", "pool", "nll_loss", "roll", "bucketize")
_aten = torch.ops.aten
_READING = {
    _aten.index.Tensor,
    _aten._unsafe_index.Tensor,
    _aten.index_select.default,
    _aten.gather.default,
    _aten.roll.default,
}


def indices_are_fixed(form: Functional) -> bool:
    """Whether a graph indexes, and by what follows from constants and shapes alone.

    Args:
        form: whose constants never change, and whose shapes are guarded.
    """
    places = [node for node in form.module.graph.nodes if node.op == "placeholder"]
    varies = set(places[: len(places) - len(form.constants)])
    indexes = False
    for node in form.module.graph.nodes:
        if node.op != "call_function":
            continue
        if any(name in str(node.target) for name in INDEXING):
            indexes = True
            if node.target not in _READING or any(_is_integer(index) and index in varies for index in node.all_input_nodes):
                return False
        if any(parent in varies for parent in node.all_input_nodes):
            varies.add(node)
    return indexes


def _is_integer(node: fx.Node) -> bool:
    found: Any = node.meta.get("val")
    return not isinstance(found, torch.Tensor) or not (found.dtype.is_floating_point or found.dtype.is_complex)
