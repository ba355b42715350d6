"""Hessians from a kept graph: the graph of the gradient is built once, each product is one backward pass through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.blocks import pull_block
from hesse.autodiff.linearize import SMALL_GRAPH_BYTES, cast_leaves, require_connected
from hesse.autodiff.recording import Function, Recording, dense, record
from hesse.core import random
from hesse.core.errors import HolomorphyError, NonScalarError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, Tag


class HessianOperator(LinearOperator):
    """The Hessian of a scalar function at a point.

    Attributes:
        value: the function's value, 0-d.
        gradient: its gradient, a tree like x.
    """

    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN})

    def __init__(self, recording: Recording) -> None:
        self._gradient = gradient_recording(recording)
        self.in_space = self.out_space = recording.in_space
        self.value = recording.value
        self.attached = recording.attached
        parts = self._gradient.outputs
        self.gradient = self.in_space.rebuild(parts if recording.attached else [g.detach() for g in parts])
        self.graph_bytes = 0 if recording.functorch else self._gradient.graph_bytes()

    def mv(self, v: Tree) -> Tree:
        return self.in_space.rebuild(self._gradient.pull(cast_leaves(self.in_space, v, "vector")))

    def mm(self, V: Tree) -> Tree:
        if self.graph_bytes >= SMALL_GRAPH_BYTES:
            return super().mm(V)
        return self.pull_block(cast_leaves(self.in_space, V, "block of vectors", 1))

    def pull_block(self, parts: Sequence[Tensor | None]) -> Tree:
        """``H v`` for all v along the leading axis, in one batched pass; None stands for a zero leaf."""
        return self.in_space.rebuild(pull_block(self._gradient, parts))

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
    recording = record(f, x, asked)
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

    Cost: one gradient with its graph kept at the start; then 1.2 to 2.2 gradients a product.
    """
    asked = "hessian_operator(f, x) differentiates a function with one real value twice."
    return HessianOperator(record_scalar(f, x, asked))
