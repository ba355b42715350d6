"""Hessians from a kept graph: the graph of the gradient is built once, each product is one backward pass through it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.block_ways import BlockWays
from hesse.autodiff.blocks import pull_block
from hesse.autodiff.linearize import cast_leaves, require_connected
from hesse.autodiff.recording import Function, Recording, dense, inside_functorch, record
from hesse.autodiff.second_order_ops import with_second_order_ops
from hesse.core import random
from hesse.core.errors import HolomorphyError, NonScalarError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag
from hesse.operators.copies import ReadsInPlace


class HessianOperator(ReadsInPlace, LinearOperator):
    """The Hessian of a scalar function at a point.

    Attributes:
        value: the function's value, 0-d.
        gradient: its gradient, a tree like x.
    """

    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN})

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.in_space = self.out_space = recording.in_space
        self.value = recording.value
        self.attached = recording.attached

    @cached_property
    def _gradient(self) -> Recording:
        return gradient_recording(self._recording)

    @cached_property
    def gradient(self) -> Tree:
        """The function's gradient, a tree like x."""
        parts = self._gradient.outputs
        return self.in_space.rebuild(parts if self.attached else [g.detach() for g in parts])

    @cached_property
    def graph_bytes(self) -> int:
        """Bytes of what the nodes of the gradient's graph produced."""
        return 0 if self._gradient.functorch else self._gradient.graph_bytes()

    def mv(self, v: Tree) -> Tree:
        return self.in_space.rebuild(self._gradient.pull(cast_leaves(self.in_space, v, "vector")))

    def mm(self, V: Tree) -> Tree:
        parts = cast_leaves(self.in_space, V, "block of vectors", 1)
        if not parts[0].shape[0]:
            return super().mm(V)
        if self._gradient.functorch or inside_functorch():
            return self.in_space.rebuild(pull_block(self._gradient, parts))
        return self.in_space.rebuild(self._blocks(parts, follow=self._gradient.follows(parts)))

    @cached_property
    def _blocks(self) -> BlockWays:
        gradient = self._gradient  # the ways must not hold the operator: a cycle would keep its graph

        def together(parts: list[Tensor]) -> list[Tensor]:
            return gradient.pull(parts, batched=True)

        return BlockWays(gradient.pull, together, self.graph_bytes, self.in_space.device)

    def transpose(self) -> LinearOperator:
        return self


def gradient_recording(recording: Recording) -> Recording:
    """The gradient of a recorded scalar function, recorded itself, so that it can be differentiated again."""
    space = recording.in_space
    if recording.functorch:

        def gradient(x: Any) -> Any:
            argnums = tuple(range(len(space.names)))

            def scalar(*leaves: Any) -> Tensor:
                return recording.outputs_at(leaves)[0].sum()

            pull = torch.func.grad(scalar, argnums)
            return space.rebuild(list(pull(*space.check(x, "x"))))

        return record(gradient, recording.x, "hessian")
    output = recording.outputs[0]
    if output.requires_grad:
        with torch.enable_grad():
            grads = torch.autograd.grad(
                output.sum(),
                recording.inputs,
                create_graph=True,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            parts = [dense(g) for g in grads]
    else:
        parts = [torch.zeros_like(leaf) for leaf in recording.inputs]
    return replace(recording, outputs=parts, value=None, out_space=space)


def with_directional_derivative(recording: Recording) -> Recording:
    """The function ``x -> (f(x), J(x) v)`` for one random v, recorded: what f's value and its second derivatives depend on."""
    generator = random.make_generator()
    v = [random.normal(x.shape, x.dtype, x.device, generator) for x in recording.inputs]
    if recording.functorch:

        def both(x: Any) -> Any:
            leaves = tuple(recording.in_space.check(x, "x"))
            value, slope = torch.func.jvp(lambda *xs: tuple(recording.outputs_at(xs)), leaves, tuple(v))[:2]
            return [*value, *slope]

        return record(both, recording.x, "structure='batched'")
    slopes = _slopes(recording, v)
    outputs = [*recording.outputs, *slopes]
    return replace(recording, outputs=outputs, out_space=Space.of(outputs))


def _slopes(recording: Recording, v: list[Tensor]) -> list[Tensor]:
    """J v, differentiable by x, from reverse mode applied twice."""
    used = [y for y in recording.outputs if y.requires_grad]
    if not used:
        return []
    with torch.enable_grad():
        u = [torch.zeros_like(y).requires_grad_() for y in used]
        options: dict[str, Any] = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        pulled = torch.autograd.grad(used, recording.inputs, u, **options)
        pairs = [(g, t) for g, t in zip(pulled, v, strict=True) if g.requires_grad]
        return list(torch.autograd.grad([g for g, _ in pairs], u, [t for _, t in pairs], **options)) if pairs else []


def record_scalar(f: Function, x: Any, asked: str) -> Recording:
    """Record ``f(x)`` for two derivatives, refusing what is not a real scalar.

    Raises:
        NonScalarError: the value has more than one element.
        HolomorphyError: complex leaves.
    """
    recording = record(with_second_order_ops(f) if callable(f) else f, x, asked)
    if recording.out_space.dim != 1:
        shapes = [tuple(shape) for shape in recording.out_space.shapes]
        raise NonScalarError(
            asked,
            f"a value of shape {shapes[0] if len(shapes) == 1 else shapes}",
            "reduce it (sum or mean), or use structure='batched' for a function that treats rows independently",
        )
    if any(dtype.is_complex for dtype in (*recording.in_space.dtypes, *recording.out_space.dtypes)):
        raise HolomorphyError(
            asked,
            "complex numbers, for which a real scalar has no complex Hessian",
            "pass the real and imaginary parts (torch.view_as_real) as real inputs",
        )
    require_connected(recording, asked)
    return recording


def hessian_operator(f: Function, x: Any) -> HessianOperator:
    """The Hessian of a scalar function as an operator.

    Args:
        f: a function of a tree that returns one real number.
        x: the point: a tree of tensors and Python floats.

    Returns:
        An operator on trees like x; also carries `value` and `gradient`.

    Raises:
        NonScalarError, LeafError, DetachedError, NonFiniteError, HolomorphyError: as the names say.

    Cost: one forward pass; at the first product (or when `gradient` is asked for) a backward pass whose graph is kept; then 0.9
    to 2.2 gradients a product.
    """
    asked = "hessian_operator(f, x) differentiates a function with one real value twice."
    return HessianOperator(record_scalar(f, x, asked))
