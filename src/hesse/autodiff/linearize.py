"""`linearize`: the one door from calculus to algebra."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from hesse.autodiff.block_ways import BlockWays
from hesse.autodiff.blocks import pull_block
from hesse.autodiff.cuts import diagnose
from hesse.autodiff.fused import differentiable_attention
from hesse.autodiff.layout import Walk
from hesse.autodiff.push import GraphPush, unlike_reverse
from hesse.autodiff.recording import Function, Recording, inside_functorch, nodes, record
from hesse.core import random
from hesse.core.errors import DetachedError, HolomorphyError, UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator
from hesse.operators.copies import ReadsInPlace

_GRAPHS_OF_A_KEY = 64
_checked: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()


class Linearization(NamedTuple):
    """A function's value at a point and its derivative there.

    Attributes:
        value: what ``f(x)`` returned.
        jacobian: the operator from the space of x to the space of the value.
    """

    value: Tree
    jacobian: LinearOperator


class JacobianOperator(ReadsInPlace, LinearOperator):
    """The derivative of a function at a point, from a graph that is kept.

    ``J.T @ u`` is one backward pass through the kept graph. ``J @ v`` takes the tangents along the same graph, without running
    the function again. Where that cannot be done (complex numbers, checkpointing, a product that is itself to be
    differentiated), the function is run in forward mode; where its ops have none, or where forward and reverse derivatives
    disagree (dropout drawn anew, PyTorch's own errors), it is differentiated twice in reverse mode. The choice is made at the
    first product, by a check on random vectors. A function of the user's whose backward cannot be differentiated by its
    cotangent (`once_differentiable`, `no_grad`, `detach` or NumPy in it, a clipped gradient) leaves no way to ``J @ v``: it is
    refused, while ``J.T @ u`` is what autograd says.
    """

    def __init__(self, recording: Recording, key: Any = None) -> None:
        self.recording, self._key = recording, key
        self.in_space, self.out_space = recording.in_space, recording.out_space
        self._known: dict[str, bool] = {}
        self._double: tuple[list[Tensor], list[Tensor]] | None = None

    def mv(self, v: Tree) -> Tree:
        return self.out_space.rebuild(self._way(cast_leaves(self.in_space, v, "tangent")))

    def _way(self, tangents: list[Tensor]) -> list[Tensor]:
        inside = inside_functorch()
        if not (inside or self.recording.follows(tangents)) and self._is_right("graph"):
            return self._push_along_graph(tangents)
        if self.recording.functorch or self._is_right("forward"):
            return self._push_inside_transform(tangents) if inside else self._push(tangents)
        if not self._is_right("double reverse"):
            raise self._refusal()
        return self._push_by_double_reverse(tangents)

    def _refusal(self) -> UnsupportedError:
        return UnsupportedError(
            "J @ v takes tangents through a function, to what J.T @ u says.",
            f"another derivative than in reverse mode, or none: {unlike_reverse(self.recording) or 'an op'}",
            "use J.T @ u (mode='reverse', kind='row'), or write that backward in differentiable operations of its cotangent",
        )

    def _is_right(self, way: str) -> bool:
        """Whether a way to J v is right, checked once for every graph of a key."""
        if way not in self._known:
            self._known[way] = not self.recording.functorch and self._remembered(way)
        return self._known[way]

    def _remembered(self, way: str) -> bool:
        if self._key is None or inside_functorch():
            return self._agrees(way)
        try:
            known = _checked.setdefault(self._key, {})
        except TypeError:  # a key that cannot be referred to weakly
            return self._agrees(way)
        signature = (way, *self._signature)
        if signature not in known:
            known[signature] = self._agrees(way)
            while len(known) > _GRAPHS_OF_A_KEY:
                del known[next(iter(known))]
        return known[signature]

    @cached_property
    def _signature(self) -> tuple[Any, ...]:
        leaves = dict(zip(self.in_space.names, self.recording.inputs, strict=True))
        graphs = tuple(Walk.of(y, leaves).signature() for y in self.recording.outputs if y.requires_grad)
        return graphs, self.in_space.dtypes, self.out_space.dtypes

    def _agrees(self, way: str) -> bool:
        devices = [self.in_space.device] if self.in_space.device.type == "cuda" else []
        ways = {"graph": self._push_along_graph, "forward": self._push, "double reverse": self._push_by_double_reverse}
        is_last = way == "double reverse"  # nothing stands behind it: what cannot be compared is believed
        if is_last and (self.recording.functorch or self.in_space.device.type == "meta"):
            return True
        try:
            with temporarily_clear_interpreter_stack(), torch.random.fork_rng(devices):
                return forward_agrees(self.recording, ways[way], loosely=is_last)
        except (RuntimeError, IndexError):  # the latter from double backwards of PyTorch's, as that of batch normalization
            return False

    def mm(self, V: Tree) -> Tree:
        parts = cast_leaves(self.in_space, V, "tangents", 1)
        inside, follow = inside_functorch(), self.recording.follows(parts)
        if inside or follow or not parts[0].shape[0] or not self._is_right("graph"):
            return super().mm(V)
        return self.out_space.rebuild(self._blocks(parts, follow=False))

    @cached_property
    def _blocks(self) -> BlockWays:
        return BlockWays(self._graph.push, self._graph.push_all, self.graph_bytes, self.in_space.device)

    @cached_property
    def graph_bytes(self) -> int:
        """Bytes of what the nodes of the graph produced."""
        return 0 if self.recording.functorch else self.recording.graph_bytes()

    @cached_property
    def _graph(self) -> GraphPush:
        return GraphPush(self.recording)

    def _push_along_graph(self, tangents: list[Tensor]) -> list[Tensor]:
        return self._graph.push(tangents)

    def _push_inside_transform(self, tangents: list[Tensor]) -> list[Tensor]:
        r = self.recording
        try:
            with differentiable_attention():
                run = torch.func.jvp(lambda *xs: tuple(r.outputs_at(xs)), tuple(r.inputs), tuple(tangents))
            return list(run[1])
        except RuntimeError as error:
            raise UnsupportedError(
                "J @ v inside a torch.func transform needs forward mode.",
                str(error).splitlines()[0],
                "apply the operator outside of the transform",
            ) from error

    def _push(self, tangents: list[Tensor]) -> list[Tensor]:
        r = self.recording
        with differentiable_attention(), torch.set_grad_enabled(r.follows(tangents)), fwd.dual_level():
            primals = r.inputs if r.attached else [leaf.detach() for leaf in r.inputs]
            duals = [fwd.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
            outputs = r.outputs_at(duals)
            pairs = [fwd.unpack_dual(y) for y in outputs]
            return [torch.zeros_like(y) if p.tangent is None else p.tangent for y, p in zip(outputs, pairs, strict=True)]

    def _push_by_double_reverse(self, tangents: list[Tensor]) -> list[Tensor]:
        """J v as the derivative of ``u -> J^T u``, which is linear (Townsend 2017, "A new trick for calculating Jacobian
        vector products")."""
        r = self.recording
        if self._double is None:
            with temporarily_clear_interpreter_stack(), torch.enable_grad():
                dummies = [torch.zeros_like(y).requires_grad_() for y in r.outputs]
                used = [(y, u) for y, u in zip(r.outputs, dummies, strict=True) if y.requires_grad]
                if not used:
                    return [torch.zeros_like(y) for y in r.outputs]
                pulled = torch.autograd.grad(
                    [y for y, _ in used],
                    r.inputs,
                    [u for _, u in used],
                    create_graph=True,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                self._double = (dummies, list(pulled))
        dummies, pulled = self._double
        pairs = [(g, t) for g, t in zip(pulled, tangents, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(y) for y in r.outputs]
        pushed = torch.autograd.grad(
            [g for g, _ in pairs],
            dummies,
            [t for _, t in pairs],
            retain_graph=True,
            create_graph=r.follows(tangents),
            allow_unused=True,
            materialize_grads=True,
        )
        return list(pushed)

    def transpose(self) -> LinearOperator:
        return _Transposed(self)


class _Transposed(LinearOperator):
    """``J.T``: backward passes through the kept graph."""

    def __init__(self, jacobian: JacobianOperator) -> None:
        self.jacobian = jacobian
        self.in_space, self.out_space = jacobian.out_space, jacobian.in_space

    def mv(self, v: Tree) -> Tree:
        return self.out_space.rebuild(_pulled(self.jacobian.recording, cast_leaves(self.in_space, v, "cotangent")))

    def mm(self, V: Tree) -> Tree:
        parts, recording = cast_leaves(self.in_space, V, "cotangents", 1), self.jacobian.recording
        if not parts[0].shape[0]:
            return super().mm(V)
        if recording.functorch or inside_functorch():
            pulled = pull_block(recording, [_conjugate(part) for part in parts])
            return self.out_space.rebuild([_conjugate(part) for part in pulled])
        return self.out_space.rebuild(self._blocks(parts, follow=recording.follows(parts)))

    @cached_property
    def _blocks(self) -> BlockWays:
        one = partial(_pulled, self.jacobian.recording)
        return BlockWays(one, partial(one, batched=True), self.jacobian.graph_bytes, self.in_space.device)

    def transpose(self) -> LinearOperator:
        return self.jacobian


def _pulled(recording: Recording, parts: list[Tensor], *, batched: bool = False) -> list[Tensor]:
    pulled = recording.pull([_conjugate(part) for part in parts], batched=batched)
    return [_conjugate(part) for part in pulled]


def _conjugate(part: Tensor) -> Tensor:
    return part.conj().resolve_conj() if part.is_complex() else part


def cast_leaves(space: Space, v: Tree, what: str, batch_ndim: int = 0) -> list[Tensor]:
    """The leaves of a vector in the dtypes of its space."""
    return [part.to(dtype) for part, dtype in zip(space.check(v, what, batch_ndim), space.dtypes, strict=True)]


def forward_agrees(recording: Recording, push: Callable[[list[Tensor]], list[Tensor]], *, loosely: bool = False) -> bool:
    """Whether ``<u, J v> = <J^T u, v>`` to rounding for random u and v (PyTorch's convention for complex numbers).

    Args:
        recording: gives J^T u from its kept graph.
        push: gives J v by forward mode.
        loosely: to half of the digits; infinities and NaN agree with anything.
    """
    generator = random.make_generator()
    u = [random.normal(y.shape, y.dtype, y.device, generator) for y in recording.outputs]
    v = [random.normal(x.shape, x.dtype, x.device, generator) for x in recording.inputs]
    with torch.no_grad():
        left, scale = _pair(u, push(v))
        right, other = _pair(recording.pull(u), v)
    size = sum(t.numel() for t in [*u, *v])
    rounding = recording.rounding()
    if loosely and not (math.isfinite(left) and math.isfinite(right)):
        return True
    slack = (rounding**0.5 if loosely else 64 * rounding) * max(scale, other) * max(1.0, size**0.25)
    return bool(abs(left - right) <= slack) or left == right


def _pair(first: list[Tensor], second: list[Tensor]) -> tuple[float, float]:
    value = scale = 0.0
    for a, b in zip(first, second, strict=True):
        wide = torch.promote_types(a.dtype, torch.float32)
        product = (a.detach().to(wide).conj() * b.detach().to(wide)).real.double()
        value += float(product.sum())
        scale += float(product.abs().sum())
    return value, scale


def require_connected(recording: Recording, asked: str) -> None:
    """Refuse a function whose value was cut off from its input; a derivative that really is zero is let through.

    Raises:
        DetachedError: with the call that cut the graph and its source line.
    """
    if recording.functorch or _connected(recording):
        return
    diagnosis = diagnose(lambda: recording.f(recording.x), recording.inputs)
    if not diagnosis.is_zero:
        raise DetachedError(
            asked,
            f"the value does not depend on the variables through the graph: {diagnosis}",
            "keep the computation in torch: no .item(), .data, .detach(), numpy() or new Variable between input and value",
        )


def _connected(recording: Recording) -> bool:
    own = {id(leaf) for leaf in recording.inputs}
    own_nodes = {leaf.grad_fn for leaf in recording.inputs if leaf.grad_fn is not None}
    if any(id(y) in own for y in recording.outputs):
        return True
    roots = [y.grad_fn for y in recording.outputs if y.grad_fn is not None]
    return any(n in own_nodes or (hasattr(n, "variable") and id(n.variable) in own) for n in nodes(roots))


def require_one_field(recording: Recording, asked: str) -> None:
    """Refuse mixed real and complex leaves, and complex functions that are not holomorphic at x.

    Raises:
        HolomorphyError: with the remedy.
    """
    kinds = {dtype.is_complex for dtype in (*recording.in_space.dtypes, *recording.out_space.dtypes)}
    if kinds == {False}:
        return
    remedy = "differentiate x -> torch.view_as_real(f(torch.view_as_complex(x))), a function between real spaces"
    if kinds == {True, False}:
        raise HolomorphyError(asked, "real and complex leaves together, between which no derivative is linear over C", remedy)
    if recording.functorch:
        return
    generator = random.make_generator()
    cotangents = [random.normal(y.shape, y.dtype, y.device, generator) for y in recording.outputs]
    straight, turned = recording.pull(cotangents), recording.pull([1j * u for u in cotangents])
    for name, a, b in zip(recording.in_space.names, straight, turned, strict=True):
        eps = torch.finfo(a.dtype).eps
        if bool(((1j * a - b).abs().max() if a.numel() else 0) > 1e3 * eps * (a.norm() + b.norm())):
            raise HolomorphyError(asked, f"f is not holomorphic in '{name or 'x'}' at this point", remedy)


def linearize(f: Function, x: Any) -> Linearization:
    """The value of ``f`` at ``x`` and its derivative there, as an operator.

    Args:
        f: any function of a tree that returns a tree of tensors.
        x: the point: a tree of tensors and Python floats.

    Returns:
        ``(value, jacobian)``; `jacobian` maps trees like x to trees like the value. Complex functions have to be
        holomorphic; then ``J @ v`` is f'(x) v, without conjugation.

    Raises:
        LeafError: an integer leaf. DetachedError: the graph was cut, with the line that cut it.
        HolomorphyError: a complex function that is not holomorphic. NonFiniteError: NaN in x.

    Cost: one forward pass; then one backward pass for each ``J.T @ u``, and as many operations (about 0.7 gradients) for
    each ``J @ v``; the first one takes a product and a backward pass more, which check it.
    """
    return linearize_again(f, x, None)


def linearize_again(f: Function, x: Any, key: Any) -> Linearization:
    """As `linearize`, of a function that is one of many for the same key (a model on one of its batches).

    The check of forward mode is remembered by key and graph, so that it is made once and not for every batch.
    """
    asked = "linearize(f, x) differentiates a function of floating-point tensors."
    recording = record(f, x, asked)
    require_connected(recording, asked)
    require_one_field(recording, asked)
    return Linearization(recording.value, JacobianOperator(recording, key))
