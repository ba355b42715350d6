"""One run of a function with its graph kept: the source of every reverse product.

Plain autograd is used, not `torch.func`, so that everything which trains can be recorded (custom Functions, checkpointing,
branches on data, fused kernels). Inside a `torch.func` transform, where plain autograd is not allowed, `torch.func.vjp` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack

from hesse.autodiff.engine import pull_along
from hesse.autodiff.fused import FUSED_RECURRENCES, differentiable_attention, with_plain_recurrences
from hesse.autodiff.plain_bags import FUSED_BAGS, WithPlainBags
from hesse.autodiff.rounding import machine_epsilon
from hesse.autodiff.weight_norm import FUSED_WEIGHT_NORM, with_plain_weight_norm
from hesse.core import tree
from hesse.core.errors import DeviceError, LeafError, NonFiniteError, StructureError, UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree

Function = Callable[[Any], Any]
Pull = Callable[[Sequence[Tensor | None]], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Recording:
    """``f`` at ``x``, run once.

    Attributes:
        f: the function.
        x: the point, its leaves as tensors that were differentiated.
        inputs, outputs: the leaves of `x` and of the value.
        value: what ``f(x)`` returned, detached unless something upstream requires grad.
        in_space, out_space: their spaces.
        attached: whether results are to be differentiable with respect to something upstream.
        functorch: whether the run happened inside a `torch.func` transform.
    """

    f: Function
    x: Tree
    inputs: list[Tensor]
    outputs: list[Tensor]
    value: Tree
    in_space: Space
    out_space: Space
    attached: bool
    functorch: bool
    _pull: Pull | None = None

    def pull(self, cotangents: Sequence[Tensor | None], *, batched: bool = False) -> list[Tensor]:
        """``J^T u`` in PyTorch's convention (``J^H u`` for complex): one cotangent an output leaf, None for zero.

        Args:
            cotangents: with `batched`, each has an axis k in front, and so do the results.
            batched: differentiate all k at once.
        """
        if self._pull is not None:
            pull = self._pull
            return _pull_batched(pull, cotangents) if batched else pull(cotangents)
        pairs = [(y, u) for y, u in zip(self.outputs, cotangents, strict=True) if u is not None and y.requires_grad]
        count = next((u.shape[0] for u in cotangents if u is not None), 0) if batched else None
        if not pairs:
            return [_zeros(leaf, count) for leaf in self.inputs]
        ys, us = zip(*pairs, strict=True)
        grads = pull_along(ys, self.inputs, us, create_graph=self.follows(us), batched=batched)
        return [_zeros(x, count) if g is None else dense(g) for x, g in zip(self.inputs, grads, strict=True)]

    def follows(self, vectors: Sequence[Tensor]) -> bool:
        """Whether a product with these vectors is to be differentiable itself, by them or by something upstream."""
        return torch.is_grad_enabled() and (self.attached or any(v.requires_grad for v in vectors))

    def rounding(self) -> float:
        """The coarsest machine epsilon among the values between x and ``f(x)``."""
        roots = [y.grad_fn for y in self.outputs if y.grad_fn is not None]
        kinds = {(meta.dtype, meta.device) for node in nodes(roots) for meta in node_outputs(node)}
        for space in (self.in_space, self.out_space):
            kinds.update(zip(space.dtypes, space.devices, strict=True))
        return max(machine_epsilon(dtype, at) for dtype, at in kinds if dtype.is_floating_point or dtype.is_complex)

    def outputs_at(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """The leaves of the value at another point, given by its leaves."""
        return output_leaves(self.f(self.in_space.rebuild(list(leaves))), "a recorded function")[0]

    def graph_bytes(self) -> int:
        """Bytes of everything that the graph's nodes produced: a bound on what one backward pass holds."""
        return sum(node_bytes(node) for node in nodes([y.grad_fn for y in self.outputs if y.grad_fn is not None]))


def _zeros(leaf: Tensor, count: int | None) -> Tensor:
    return torch.zeros_like(leaf) if count is None else leaf.new_zeros((count, *leaf.shape))


def _pull_batched(pull: Pull, cotangents: Sequence[Tensor | None]) -> list[Tensor]:
    present = [u for u in cotangents if u is not None]

    def one(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        return tuple(pull([None if u is None else next(rest) for u in cotangents]))

    return list(torch.func.vmap(one)(*present))


def inside_functorch() -> bool:
    """Whether the caller runs inside a `torch.func` transform."""
    return peek_interpreter_stack() is not None


def inside_vmap() -> bool:
    """Whether one of the `torch.func` transforms around the caller is `vmap`."""
    stack = get_interpreter_stack() or []
    return any(interpreter.key() == TransformType.Vmap for interpreter in stack)


def as_variables(x: Tree, asked: str) -> tuple[list[Tensor], Space]:
    """The leaves of `x` as tensors that can be differentiated, and their space.

    Raises:
        LeafError: an integer or boolean tensor.
        DeviceError: leaves on different devices.
        NonFiniteError: NaN at a leaf.
        StructureError: no leaf at all.
    """
    named = tree.named_leaves(x)
    if not named:
        raise StructureError(asked, "no tensor or float in it", "pass a tensor or a tree of tensors to differentiate by")
    space = Space.of(x)
    for name, dtype in zip(space.names, space.dtypes, strict=True):
        if not (dtype.is_floating_point or dtype.is_complex):
            raise LeafError(
                asked,
                f"{dtype} at '{name or 'x'}'",
                "convert it to a floating-point dtype, or close over it (lambda x: f(x, constant))",
            )
    if len(set(space.devices)) > 1:
        places = ", ".join(f"'{n or 'x'}' on {d}" for n, d in zip(space.names, space.devices, strict=True))
        raise DeviceError(asked, places, "move all leaves to one device")
    tensors = [_as_tensor(leaf) for _, leaf in named]
    if not inside_functorch():
        for name, leaf in zip(space.names, tensors, strict=True):
            if leaf.device.type != "meta" and tree.has_nan(leaf):
                raise NonFiniteError(asked, f"NaN in the input at '{name or 'x'}'", "clean the input first")
    return tensors, space


def record(f: Function, x: Tree, asked: str) -> Recording:
    """Run ``f(x)`` once and keep its graph.

    Args:
        f: any function of a tree, returning a tree of tensors.
        x: the point.
        asked: what is asked of hesse, for error messages.

    Raises:
        StructureError: f is no function (an already computed loss, say), or changes x in place.
        UnsupportedError: inside `torch.inference_mode`, where no graph can be recorded; reentrant checkpointing.
        LeafError, DeviceError, NonFiniteError: as `as_variables` and `output_leaves`.
    """
    if not callable(f):
        raise StructureError(
            asked,
            f"{'an already computed tensor' if isinstance(f, Tensor) else type(f).__name__} in the place of the function",
            "pass the function that computes it, and the point: (lambda p: loss(p), params)",
        )
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(asked, "torch.inference_mode is on, in which nothing can be differentiated", "use torch.no_grad")
    tensors, in_space = as_variables(x, asked)
    if inside_functorch():
        return _record_functorch(f, tensors, in_space, asked)
    follow = torch.is_grad_enabled()
    linked = [follow and leaf.requires_grad for leaf in tensors]
    with torch.enable_grad(), differentiable_attention():
        inputs = [leaf.view_as(leaf) if link else _variable(leaf) for leaf, link in zip(tensors, linked, strict=True)]
        versions = [leaf._version for leaf in inputs]
        point = in_space.rebuild(inputs)
        with writes_refused(asked):
            value = f(point)
    for name, leaf, version in zip(in_space.names, inputs, versions, strict=True):
        if leaf._version != version:
            raise StructureError(asked, f"the function changed '{name or 'x'}' in place", "let it work on a copy: x.clone()")
    outputs, out_space = output_leaves(value, asked)
    ops = {node.name() for node in nodes([y.grad_fn for y in outputs if y.grad_fn is not None])}
    if "CheckpointFunctionBackward" in ops:
        raise UnsupportedError(
            asked,
            "reentrant checkpointing (CheckpointFunctionBackward), which hides its inputs from the graph",
            "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)",
        )
    if ops & FUSED_WEIGHT_NORM:
        return record(with_plain_weight_norm(f), x, asked)
    if ops & FUSED_RECURRENCES:
        return record(with_plain_recurrences(f), x, asked)
    if ops & FUSED_BAGS and not isinstance(f, WithPlainBags):
        return record(WithPlainBags(f), x, asked)
    attached = any(linked) or (follow and has_foreign_leaf(outputs, inputs))
    if not attached:
        value = tree.map_tree(lambda y: y.detach() if isinstance(y, Tensor) else y, value)
    return Recording(f, point, inputs, outputs, value, in_space, out_space, attached, functorch=False)


@contextmanager
def writes_refused(asked: str) -> Iterator[None]:
    """Say what to do where PyTorch refuses a write to a leaf that requires grad.

    Raises:
        StructureError: the function writes to its input, or to a parameter that it closes over.
    """
    try:
        yield
    except RuntimeError as error:
        if "leaf Variable that requires grad" not in str(error):
            raise
        found = "the function writes to its input, or to a parameter that requires grad, in place"
        raise StructureError(asked, found, "let it work on a copy: x.clone()") from error


def dense(part: Tensor) -> Tensor:
    """A gradient with all of its elements (an embedding may give a sparse one)."""
    return part if part.layout == torch.strided else part.to_dense()


def _as_tensor(leaf: Any) -> Tensor:
    return leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf)


def _variable(leaf: Tensor) -> Tensor:
    own = leaf.clone() if leaf.is_inference() else leaf.detach()  # an inference tensor can be read, but not recorded
    return own.requires_grad_()


def _record_functorch(f: Function, tensors: list[Tensor], in_space: Space, asked: str) -> Recording:
    values: list[Tree] = []

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        value = f(in_space.rebuild(list(leaves)))
        values[:] = [tree.flatten(value)[1]]
        return tuple(output_leaves(value, asked)[0])

    outputs, pull_all = torch.func.vjp(flat, *tensors)[:2]
    value = values[0].unflatten(outputs)
    outputs, out_space = output_leaves(value, asked)

    def pull(cotangents: Sequence[Tensor | None]) -> list[Tensor]:
        pairs = zip(outputs, cotangents, strict=True)
        return list(pull_all(tuple(torch.zeros_like(y) if u is None else u for y, u in pairs)))

    point = in_space.rebuild(tensors)
    return Recording(f, point, tensors, outputs, value, in_space, out_space, True, functorch=True, _pull=pull)


def output_leaves(value: Tree, asked: str) -> tuple[list[Tensor], Space]:
    """The leaves of a function's value as tensors, after checking that they can have derivatives."""
    space = Space.of(value)
    if not space.names:
        raise StructureError(asked, f"the function returned {type(value).__name__}", "return a tensor or a tree of tensors")
    for name, dtype in zip(space.names, space.dtypes, strict=True):
        if not (dtype.is_floating_point or dtype.is_complex):
            raise LeafError(asked, f"the function returned {dtype} at '{name or 'its value'}'", "return floating-point tensors")
    return [_as_tensor(leaf) for leaf in tree.leaves(value)], space


def nodes(roots: Sequence[Any]) -> Iterator[Any]:
    """Every node of an autograd graph, once, from the roots backwards (depth first, in a fixed order)."""
    seen: set[Any] = set()
    pending = list(reversed(roots))
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending.extend(parent for parent, _ in reversed(node.next_functions))


def node_bytes(node: Any) -> int:
    """Bytes of the outputs of a node's forward op."""
    return sum(math.prod(meta.shape) * meta.dtype.itemsize for meta in node_outputs(node))


def node_outputs(node: Any) -> Sequence[Any]:
    """Shape, dtype and device of each output of a node's forward op (PyTorch calls them the node's input metadata)."""
    return node._input_metadata


def has_foreign_leaf(outputs: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether the graph of some outputs ends at a tensor that requires grad and is none of the inputs."""
    own = {id(leaf) for leaf in inputs}
    roots = [y.grad_fn for y in outputs if y.grad_fn is not None]
    return any(hasattr(node, "variable") and id(node.variable) not in own for node in nodes(roots))
