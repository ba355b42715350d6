"""A function under check: its leaves, and its values and gradients at points of one's own choosing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hesse.autodiff.direct_checks import refuse_known
from hesse.autodiff.passes import backward_pass, forward_pass
from hesse.autodiff.promote import PromoteFloats
from hesse.autodiff.recording import node_outputs, nodes
from hesse.check.differences import EPSILON
from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.core.tree import Tree

Leaves = list[Tensor]
_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


class Subject:
    """A function of a tree, run on copies of its leaves; random numbers are the same at each call.

    Args:
        f: of a tree, to a tensor or a tree with tensors; a module is copied.
        x: the point.
        dtype: real type to convert everything floating to; None to keep each.
        promote: whether tensors that the function closes over are converted to float64 where they meet such leaves.

    Attributes:
        names: of the leaves.
        leaves: the point: detached, contiguous copies.
        output_names: of the outputs, floating-point and complex ones only, known once the function has run.
        evaluations: how often the function ran.

    Raises:
        LeafError: no leaf that can be differentiated.
    """

    def __init__(self, f: Callable[[Any], Any], x: Tree, dtype: torch.dtype | None = None, *, promote: bool = False) -> None:
        self._promote = promote
        self._f = _copied(f, dtype) if isinstance(f, nn.Module) else f
        everything, self._structure = tree.flatten(x)
        tensors = [leaf if isinstance(leaf, Tensor) else _from_python(leaf) for leaf in everything]
        self._moving = [index for index, leaf in enumerate(tensors) if is_continuous(leaf) and leaf.numel()]
        paths = [path for path, _ in tree.named_leaves(x)]
        self._all = [_cast(leaf.detach(), dtype).clone(memory_format=torch.contiguous_format) for leaf in tensors]
        self.names = [paths[index] for index in self._moving]
        self.leaves: Leaves = [self._all[index] for index in self._moving]
        self.output_names: list[str] = []
        self.evaluations = 0
        if not self.leaves:
            raise LeafError("Derivatives are checked with respect to the leaves of x.", "no leaf of floating-point numbers",
                            "pass a tree with a tensor, or a number, to differentiate by")  # fmt: skip

    def outputs(self, leaves: Leaves) -> Leaves:
        """The continuous outputs of the function.

        Raises:
            StructureError: there is none.
        """
        self.evaluations += 1
        given = list(self._all)
        for index, leaf in zip(self._moving, leaves, strict=True):
            given[index] = leaf
        devices = sorted({leaf.device.index or 0 for leaf in leaves if leaf.is_cuda})
        with torch.random.fork_rng(devices=devices), PromoteFloats() if self._promote else nullcontext():
            value = self._f(self._structure.unflatten(given))
        named = [(path, y) for path, y in tree.named_leaves(value) if isinstance(y, Tensor) and is_continuous(y) and y.numel()]
        self.output_names = [path for path, _ in named]
        if not named:
            raise StructureError("Derivatives of a function's outputs are checked.",
                                 f"it returned {type(value).__name__} without a tensor of floating-point numbers",
                                 "return a tensor, or a tree of tensors")  # fmt: skip
        return [y for _, y in named]

    def recorded(self, leaves: Leaves, only: int | None = None) -> tuple[Leaves, Leaves]:
        """Leaves that require gradients (all, or one only), strides kept, and the outputs computed from them."""
        own = [leaf.detach().requires_grad_(only is None or only == index) for index, leaf in enumerate(leaves)]
        try:
            with torch.enable_grad():
                return own, self.outputs(own)
        except RuntimeError as error:
            refuse_known(error, "Derivatives of a function are checked.")
            raise

    def gradient(self, leaves: Leaves, cotangents: Sequence[Tensor | None]) -> Leaves:
        """The gradient at a point, contracted with a cotangent."""
        return self.value_and_gradient(leaves, cotangents)[1]

    def value_and_gradient(self, leaves: Leaves, cotangents: Sequence[Tensor | None]) -> tuple[Leaves, Leaves]:
        """The outputs at a point, and the gradient contracted with a cotangent; what f does to either is undone."""
        with preserved([*leaves, *(u for u in cotangents if u is not None)]):
            return self._value_and_gradient(leaves, cotangents)

    def _value_and_gradient(self, leaves: Leaves, cotangents: Sequence[Tensor | None]) -> tuple[Leaves, Leaves]:
        own, outputs = self.recorded(leaves)
        return [y.detach() for y in outputs], [g.detach() for g in backward_pass(outputs, own, cotangents)]

    def along(self, leaves: Leaves, direction: Leaves, cotangents: Leaves) -> Callable[[float], float]:
        """``t -> Re <cotangent, f(x + t direction)>``."""

        def phi(t: float) -> float:
            moved = [x + t * v for x, v in zip(leaves, direction, strict=True)]
            return inner(cotangents, [y.detach() for y in self.recorded(moved)[1]])

        return phi

    def forward(self, leaves: Leaves, direction: Leaves) -> Leaves:
        """The outputs' tangents along a direction, by forward mode."""
        return forward_pass(self.outputs, leaves, direction)

    def epsilon(self) -> float:
        """Relative unit of rounding of the shortest type on the way from the leaves to the outputs."""
        own, outputs = self.recorded(self.leaves)
        found = {meta.dtype for node in _between(own, outputs) for meta in node_outputs(node)}
        dtypes = {*found, *(y.dtype for y in outputs)}
        return max((torch.finfo(d).eps for d in dtypes if d.is_floating_point or d.is_complex), default=EPSILON)


def _between(leaves: Leaves, outputs: Leaves) -> list[Any]:
    """The nodes of a graph that lie on a path to one of the leaves."""
    order = list(nodes([y.grad_fn for y in outputs if y.grad_fn is not None]))
    own = {id(leaf) for leaf in leaves}
    reaching = {node for node in order if hasattr(node, "variable") and id(node.variable) in own}
    known = -1
    while known < len(reaching):
        known = len(reaching)
        reaching |= {node for node in reversed(order) if any(parent in reaching for parent, _ in node.next_functions)}
    return [node for node in order if node in reaching]


def is_continuous(leaf: Tensor) -> bool:
    """Whether a tensor holds floating-point or complex numbers."""
    return leaf.is_floating_point() or leaf.is_complex()


@contextmanager
def preserved(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Put back the values of tensors that change inside."""
    kept = [t.clone() for t in tensors]
    yield
    with torch.no_grad():
        for tensor, value in zip(tensors, kept, strict=True):
            if 0 not in tensor.stride() and not torch.equal(tensor, value):
                tensor.detach().copy_(value)


def inner(u: Sequence[Tensor], v: Sequence[Tensor]) -> float:
    """Re <u, v> over lists of tensors, in float64; entries where u is zero count nothing, even against infinity."""
    total = 0.0
    for a, b in zip(u, v, strict=True):
        used = a != 0
        total += (a[used].conj() * b[used]).real.double().sum().item()
    return total


def sizes(leaves: Leaves) -> list[float]:
    """The typical size of an element of each leaf, never zero."""
    own = [leaf.detach().abs().double().square().mean().sqrt().item() for leaf in leaves]
    return [max(size, 1e-2 * max(own)) or 1.0 for size in own]


def _from_python(leaf: complex | float) -> Tensor:
    return torch.tensor(leaf, dtype=torch.complex128 if isinstance(leaf, complex) else torch.float64)


def _cast(leaf: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not is_continuous(leaf):
        return leaf
    return leaf.to(_COMPLEX.get(dtype, leaf.dtype) if leaf.is_complex() else dtype)


def _copied(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    own = copy.deepcopy(module)
    with torch.no_grad():
        return own._apply(lambda t: _cast(t, dtype))
