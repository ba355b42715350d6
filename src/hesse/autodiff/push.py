"""``J v`` from the graph of a run, without running the function again: tangents walk along the nodes of the graph.

A node holds all that its op's derivative needs. Known nodes have a rule (`push_rules`); any other is transposed by
differentiating its backward, which is linear in the cotangents, by them (Townsend 2017, "A new trick for calculating Jacobian
vector products").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from hesse.autodiff.engine import pull_along
from hesse.autodiff.push_rules import RULES, SYMMETRIC, NoPushError
from hesse.autodiff.recording import Recording, node_outputs, nodes
from hesse.core import random

_Slot = tuple[Any, int]


class GraphPush:
    """The linear map from tangents of a recording's inputs to tangents of its outputs.

    Args:
        recording: of a real function, made by plain autograd.

    Raises:
        NoPushError: complex numbers, or saved tensors that hooks bring back (each look at one may run a checkpoint again).
    """

    def __init__(self, recording: Recording) -> None:
        self._outputs = recording.outputs
        self._inputs = [_slot(leaf) for leaf in recording.inputs]
        self._ends = [_slot(y) if y.requires_grad else None for y in recording.outputs]
        steps = list(_from_inputs([end[0] for end in self._ends if end is not None], {slot[0] for slot in self._inputs}))
        self._steps = [(node, node.name(), node.next_functions, node_outputs(node)) for node in steps]
        for node, _, _, metas in self._steps:
            if any(meta.dtype.is_complex for meta in metas):
                raise NoPushError("complex numbers")
            if _is_hooked(node):
                raise NoPushError("saved tensors behind hooks")
        self._uses = Counter(edge for _, _, edges, _ in self._steps for edge in edges)
        self._uses.update(end for end in self._ends if end is not None)

    @property
    def is_custom(self) -> bool:
        """Whether code of the user's runs on the way: the backward of a `torch.autograd.Function`."""
        return any(hasattr(node, "_forward_cls") for node, _, _, _ in self._steps)

    def push(self, tangents: list[Tensor]) -> list[Tensor]:
        """``J v``, not differentiable.

        Raises:
            RuntimeError: a node's backward cannot be differentiated, or a tensor that it saved was changed in place.
        """
        found: dict[_Slot, Tensor] = {}
        for slot, tangent in zip(self._inputs, tangents, strict=True):
            found[slot] = found[slot] + tangent if slot in found else tangent
        left = dict(self._uses)
        with torch.no_grad():
            for node, name, edges, metas in self._steps:
                arrived = [found.get(edge) for edge in edges]
                for edge in edges:
                    left[edge] -= 1
                    if not left[edge]:
                        found.pop(edge, None)
                if all(t is None for t in arrived):
                    continue
                for k, pushed in enumerate(_through(node, name, arrived, metas)):
                    if pushed is not None:
                        found[node, k] = pushed
            results = [None if end is None else found.get(end) for end in self._ends]
        return [torch.zeros_like(y) if t is None else t for y, t in zip(self._outputs, results, strict=True)]

    def push_all(self, tangents: list[Tensor]) -> list[Tensor]:
        """``J v`` for all v along the leading axis, in one batched pass.

        Raises:
            RuntimeError: as `push`, or a node cannot be batched.
        """

        def one(*parts: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.push(list(parts)))

        return list(torch.func.vmap(one)(*tangents))


def unlike_reverse(recording: Recording) -> str:
    """The nodes whose backward has no derivative by its cotangent, or another one than it computes, in words; "" without any.

    Args:
        recording: of a function, made by plain autograd.

    Cost: each node's backward three times.
    """
    found: dict[str, None] = {}
    for node in nodes([y.grad_fn for y in recording.outputs if y.grad_fn is not None]):
        if node.next_functions and not _is_transposed_right(node):
            own = getattr(node, "_forward_cls", None)
            found[f"the backward of {node.name() if own is None else own.__qualname__}"] = None
    return ", ".join(found)


def _is_transposed_right(node: Any) -> bool:
    metas, generator = node_outputs(node), random.make_generator()
    if any(meta.dtype.is_complex for meta in metas):
        return True
    u = [random.normal(meta.shape, meta.dtype, meta.device, generator) for meta in metas]
    try:
        with torch.no_grad():
            pulled: Any = node(*u) if callable(node) else node.apply(*u)
            pulled = pulled if isinstance(pulled, tuple) else (pulled,)
            v = [None if g is None else random.normal(g.shape, g.dtype, g.device, generator) for g in pulled]
            pushed = _transposed(node, v, metas)
    except (RuntimeError, IndexError):
        return False
    left = sum(float((a * b).sum()) for a, b in zip(u, pushed, strict=True) if b is not None)
    right = sum(float((a * b).sum()) for a, b in zip(pulled, v, strict=True) if b is not None)
    size = sum(float((a * b).abs().sum()) for a, b in zip(pulled, v, strict=True) if b is not None)
    return not abs(left - right) > 1e-2 * size


def _slot(t: Tensor) -> _Slot:
    edge = get_gradient_edge(t)
    return edge.node, edge.output_nr


def _from_inputs(roots: list[Any], inputs: set[Any]) -> Iterator[Any]:
    """The nodes between inputs and roots that lead to an input, each after all that it depends on."""
    leads: dict[Any, bool] = dict.fromkeys(inputs, True)
    pending: list[tuple[Any, bool]] = [(root, False) for root in reversed(roots)]
    entered: set[Any] = set()
    while pending:
        node, is_done = pending.pop()
        if node is None or (node in leads and not is_done):
            continue
        parents = [parent for parent, _ in node.next_functions]
        if is_done:
            leads[node] = any(leads.get(parent, False) for parent in parents if parent is not None)
            if leads[node]:
                yield node
        elif node not in entered:
            entered.add(node)
            pending.append((node, True))
            pending.extend((parent, False) for parent in parents)


_tensor_names: dict[type, tuple[str, ...]] = {}


def _is_hooked(node: Any) -> bool:
    """Whether a node's saved tensors are made anew at every look."""
    kind = type(node)
    if kind not in _tensor_names:
        names = dir(kind)
        saved = tuple(name for name in names if name.startswith("_saved_") and f"_raw{name}" in names)
        _tensor_names[kind] = saved or (("saved_tensors",) if "saved_tensors" in names else ())
    for name in _tensor_names[kind]:
        first, second = getattr(node, name), getattr(node, name)
        if isinstance(first, tuple):
            first, second = next(((a, b) for a, b in zip(first, second, strict=True) if isinstance(a, Tensor)), (None, None))
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            return first.data_ptr() != second.data_ptr()
    return False


def _through(node: Any, name: str, arrived: list[Tensor | None], metas: Any) -> list[Tensor | None]:
    """The tangents of a node's outputs from those of its inputs."""
    dtype = metas[0].dtype
    if name in SYMMETRIC and arrived[0] is not None:
        return [node(arrived[0].to(dtype)).to(dtype)]
    rule = RULES.get(name)
    pushed = None if rule is None else rule(node, arrived, metas[0].shape)
    if pushed is None:
        return _transposed(node, arrived, metas)
    if pushed.shape != metas[0].shape:
        pushed = pushed.expand(metas[0].shape)
    return [pushed.to(dtype)]


def _transposed(node: Any, arrived: list[Tensor | None], metas: Any) -> list[Tensor | None]:
    with torch.enable_grad():
        u = [torch.zeros(m.shape, dtype=m.dtype, device=m.device, requires_grad=True) for m in metas]
        pulled: Any = node(*u) if callable(node) else node.apply(*u)
    pulled = pulled if isinstance(pulled, tuple) else (pulled,)
    linear, tangents = [], []
    for g, t in zip(pulled, arrived, strict=False):
        if g is not None and t is not None and g.requires_grad:
            with torch.enable_grad():
                linear.append(g.sum_to_size(t.shape).to(t.dtype))
            tangents.append(t)
    if not linear:
        return [None] * len(u)
    return list(pull_along(linear, u, tangents, create_graph=False))
