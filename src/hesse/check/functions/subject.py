"""A function under check: its leaves, and its values and graphs at points of one's own choosing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from hesse.autodiff.direct_checks import refuse_known
from hesse.autodiff.functional import functional
from hesse.autodiff.passes import backward_pass, forward_pass
from hesse.autodiff.promote import PromoteFloats
from hesse.check.functions.draws import DrawIn
from hesse.check.functions.stored import Stored, stored
from hesse.check.place import Place
from hesse.core import tree
from hesse.core.errors import HesseError, LeafError, StructureError
from hesse.core.tree import Tree

Leaves = list[Tensor]
_passes = count(1)
_ONLY_ACCUMULATES = "use_reentrant=True"  # torch's words for a graph without gradients by `torch.autograd.grad`
_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}


class BudgetSpent(Exception):
    """The evaluations that a level allows are spent."""


@dataclass
class Budget:
    """How often the function may run.

    Attributes:
        limit: so often.
        spent: how often it ran.
    """

    limit: int
    spent: int = 0

    @property
    def left(self) -> int:
        """How often it may run still."""
        return self.limit - self.spent

    def take(self) -> None:
        """Count a run.

        Raises:
            BudgetSpent: there is none left.
        """
        if self.spent >= self.limit:
            raise BudgetSpent
        self.spent += 1

    @contextmanager
    def at_most(self, share: float, least: int = 12) -> Iterator[None]:
        """Allow a share of what is left inside, and at least so many evaluations if there are so many.

        Args:
            share: of what is left.
            least: evaluations allowed in any case.
        """
        limit = self.limit
        self.limit = min(limit, self.spent + max(least, int(share * self.left)))
        try:
            yield
        finally:
            self.limit = limit


@dataclass(frozen=True, eq=False)
class Graph:
    """One recorded run.

    Attributes:
        own: leaves that require gradients.
        outputs: computed from them.
        inside: what the backward pass runs in, as the forward pass did, such as a promotion of short types.
    """

    own: Leaves
    outputs: Leaves
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext

    def pull(self, cotangents: Sequence[Tensor | None], *, differentiable: bool = False) -> Leaves:
        """The gradient for a cotangent; the graph stays, and what the pass writes to leaves and cotangents is undone.

        Random numbers drawn here are others than in the forward run, and others at each pass.

        Cost: one backward pass.
        """
        if differentiable:
            with random_state_kept(self.own, move=True), self.inside():
                return backward_pass(self.outputs, self.own, cotangents, differentiable=True)
        with preserved([*self.own, *(u for u in cotangents if u is not None)]):
            return self.raw_pull(cotangents)

    def raw_pull(self, cotangents: Sequence[Tensor | None]) -> Leaves:
        """The same, without undoing anything."""
        with random_state_kept(self.own, move=True), self.inside():
            try:
                return [g.detach() for g in backward_pass(self.outputs, self.own, cotangents)]
            except RuntimeError as error:
                if _ONLY_ACCUMULATES not in str(error):
                    raise
            return self._accumulated(cotangents)

    def _accumulated(self, cotangents: Sequence[Tensor | None]) -> Leaves:
        """The gradient by way of `.grad`, for graphs that allow no other."""
        for leaf in self.own:
            leaf.grad = None
        self.accumulate([torch.zeros_like(y) if u is None else u for y, u in zip(self.outputs, cotangents, strict=True)])
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.own]
        for leaf in self.own:
            leaf.grad = None
        return found

    def accumulate(self, cotangents: Leaves) -> None:
        """Add the gradient to the `.grad` of the leaves, in a backward pass from the sum of cotangent times output.

        Cost: one backward pass.
        """
        pairs = [(y, u) for y, u in zip(self.outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return
        with torch.enable_grad():
            losses = [(u.conj() * y).sum() for y, u in pairs]
            loss = torch.stack([loss.real if loss.is_complex() else loss for loss in losses]).sum()
        with random_state_kept(self.own, move=True), self.inside():
            loss.backward(retain_graph=True)


class EachTimeAnew(Graph):
    """Stands for a graph that is good for one backward pass only: every pass has a run of its own."""

    def __init__(self, subject: Subject, point: Leaves) -> None:
        graph = subject.record(point)
        super().__init__(graph.own, graph.outputs, graph.inside)
        self._record: Callable[[], Graph]
        object.__setattr__(self, "_record", lambda: subject.record(point))

    def pull(self, cotangents: Sequence[Tensor | None], *, differentiable: bool = False) -> Leaves:
        """The gradient for a cotangent.

        Cost: one evaluation and one backward pass.
        """
        return super().pull(cotangents, differentiable=True) if differentiable else self._record().pull(cotangents)


class Subject:
    """A function of a tree, run on copies of its leaves; random numbers are the same at each call.

    Args:
        f: of a tree, to a tensor or a tree with tensors; a module is copied.
        x: the point. Of sparse tensors, the values that they store are the leaves.
        dtype: real type to convert everything floating to; None to keep each.
        promote: whether tensors that the function closes over are converted to float64 where they meet such leaves.
        draws_in: a shorter type in which random numbers are drawn, to be converted to float64; None for their own.
        budget: counts the evaluations; a new one without limit by default.

    Attributes:
        names: of the leaves.
        leaves: the point: detached, contiguous copies.
        constants: the other tensors of the tree, by position.
        output_names: of the outputs, floating-point and complex ones only, known once the function has run.
        budget: of evaluations.
        draws: whether the function drew random numbers when it ran last.

    Raises:
        LeafError: no leaf that can be differentiated.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        x: Tree,
        dtype: torch.dtype | None = None,
        *,
        promote: bool = False,
        draws_in: torch.dtype | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.budget = Budget(2**62) if budget is None else budget
        self._promote, self._draws_in = promote, draws_in
        self._f = _copied(f, dtype) if isinstance(f, nn.Module) else f
        everything, self._structure = tree.flatten(x)
        tensors = [leaf if isinstance(leaf, Tensor) else _from_python(leaf) for leaf in everything]
        tensors = [_cast(leaf.detach(), dtype).clone() for leaf in tensors]
        self._stored: list[Stored | None] = [stored(leaf) for leaf in tensors]
        values = [t if s is None else s.values for t, s in zip(tensors, self._stored, strict=True)]
        self._all = [value.clone(memory_format=torch.contiguous_format) for value in values]
        self._moving = [index for index, leaf in enumerate(self._all) if is_continuous(leaf) and leaf.numel()]
        paths = [path for path, _ in tree.named_leaves(x)]
        self.names = [paths[index] for index in self._moving]
        self.leaves: Leaves = [self._all[index] for index in self._moving]
        self.constants = {paths[index]: leaf for index, leaf in enumerate(self._all) if not is_continuous(leaf)}
        self._paths = paths
        self.output_names: list[str] = []
        self.draws = False
        self._cuda = sorted({leaf.device.index or 0 for leaf in self._all if leaf.is_cuda})
        if not self.leaves or any(leaf.is_meta for leaf in self._all):
            found = "a tensor without values, on the meta device" if self.leaves else "only leaves without elements"
            if not any(is_continuous(leaf) for leaf in self._all):
                found = "no leaf of floating-point numbers"
            raise LeafError("Derivatives are checked with respect to the leaves of x.", found,
                            "pass a tree with a tensor, or a number, to differentiate by")  # fmt: skip

    @property
    def evaluations(self) -> int:
        """How often the function ran."""
        return self.budget.spent

    @property
    def is_sparse(self) -> bool:
        """Whether a leaf stands for the values of a sparse tensor."""
        return any(self._stored[index] is not None for index in self._moving)

    def variant(self, change: Callable[[str, Tensor], Tensor]) -> Subject:
        """The same function at tensors of other shapes or other constants; tensors without elements move too.

        Args:
            change: of a path and its tensor, to the tensor in its place.
        """
        other = copy.copy(self)
        other._all = [change(path, leaf) for path, leaf in zip(self._paths, self._all, strict=True)]
        other.leaves = [other._all[index] for index in self._moving]
        return other

    def outputs(self, leaves: Leaves) -> Leaves:
        """The continuous outputs of the function.

        Raises:
            StructureError: there is none.
            BudgetSpent: the budget does not allow another run.
        """
        self.budget.take()
        with ExitStack() as stack:
            before = stack.enter_context(random_state_kept(leaves))
            if self._promote or self._draws_in is not None:
                stack.enter_context(self._inside())
            value = self._f(self.tree(leaves))
            self.draws = not torch.equal(before, torch.default_generator.get_state())
        return self._continuous(value)

    def tree(self, leaves: Leaves) -> Tree:
        """What the function is called on: its constants, with these leaves among them."""
        given = list(self._all)
        for index, leaf in zip(self._moving, leaves, strict=True):
            own = self._stored[index]
            given[index] = leaf if own is None else own.tensor(leaf)
        return self._structure.unflatten(given)

    def place(self, point: Leaves, cotangents: Leaves, direction: Sequence[Tensor | None] | None = None) -> Place:
        """Where a finding is made, for the program that shows it."""
        draws = self._draws_in is not None
        return Place(self.tree(point), cotangents, self.output_names, not self._promote, draws, direction)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """What makes the function in float64 the same as in its own type."""
        with ExitStack() as stack:
            if self._promote:
                stack.enter_context(PromoteFloats())
            if self._draws_in is not None:
                stack.enter_context(DrawIn(self._draws_in))
            yield

    def _continuous(self, value: Any) -> Leaves:
        if type(value) is Tensor and is_continuous(value):
            self.output_names = [""]
            return [value.to_dense() if value.layout is not torch.strided else value]
        named = [(path, y) for path, y in tree.named_leaves(value) if isinstance(y, Tensor) and is_continuous(y)]
        self.output_names = [path for path, _ in named]
        if not named:
            raise StructureError("Derivatives of a function's outputs are checked.",
                                 f"it returned {type(value).__name__} without a tensor of floating-point numbers",
                                 "return a tensor, or a tree of tensors")  # fmt: skip
        return [y.to_dense() if y.layout is not torch.strided else y for _, y in named]

    def record(self, leaves: Leaves, only: Sequence[int] | None = None) -> Graph:
        """Run on leaves that require gradients (all, or some only), strides kept."""
        own = [leaf.detach().requires_grad_(only is None or index in only) for index, leaf in enumerate(leaves)]
        return Graph(own, self.continued(own), self._inside)

    def continued(self, own: Leaves) -> Leaves:
        """The outputs of another run on leaves of a graph."""
        try:
            with torch.enable_grad():
                return self.outputs(own)
        except RuntimeError as error:
            refuse_known(error, "Derivatives of a function are checked.")
            raise

    def forward(self, leaves: Leaves, direction: Leaves) -> Leaves:
        """The outputs' tangents along a direction, by forward mode."""
        return forward_pass(self.outputs, leaves, direction)


@contextmanager
def random_state_kept(leaves: Sequence[Tensor], *, move: bool = False) -> Iterator[Tensor]:
    """Put the random state back afterwards; that of the CPU is what is yielded.

    Args:
        leaves: on the devices concerned.
        move: begin with another state than the present one, so that what is drawn inside differs from what was drawn before.
    """
    devices = sorted({leaf.device.index or 0 for leaf in leaves if leaf.is_cuda})
    if devices:
        with torch.random.fork_rng(devices=devices):
            yield torch.default_generator.get_state()
        return
    state = torch.default_generator.get_state()
    try:
        if move:
            torch.default_generator.manual_seed(next(_passes))
        yield state
    finally:
        torch.default_generator.set_state(state)


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
                tensor.data.copy_(value)  # past the version counter, so that graphs which saved it stay good


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of some tensors in one float64 vector, complex ones as two each."""
    parts = [(torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1).double() for t in tensors]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def inner(u: Sequence[Tensor], v: Sequence[Tensor]) -> float:
    """Re <u, v> over lists of tensors, in float64; entries where u is zero count nothing, even against infinity."""
    a, b = flat(u), flat(v)
    value = torch.dot(a, b).item() if a.device == b.device else torch.dot(a, b.to(a.device)).item()
    if value - value == 0:
        return value
    return torch.dot(a, torch.where(a == 0, 0.0, b)).item()


def sizes(leaves: Leaves) -> list[float]:
    """The typical size of the elements of each leaf, never zero."""
    own = [leaf.detach().abs().double().square().mean().sqrt().item() if leaf.numel() else 0.0 for leaf in leaves]
    return [max(size, 1e-2 * max(own)) or 1.0 for size in own]


def _from_python(leaf: complex | float) -> Tensor:
    return torch.tensor(leaf, dtype=torch.complex128 if isinstance(leaf, complex) else torch.float64)


def _cast(leaf: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not is_continuous(leaf):
        return leaf
    return leaf.to(_COMPLEX.get(dtype, leaf.dtype) if leaf.is_complex() else dtype)


def _copied(module: nn.Module, dtype: torch.dtype | None) -> Callable[[Any], Any]:
    """A copy in another type; every call of it begins with the same buffers."""
    own = copy.deepcopy(module)
    with torch.no_grad():
        own._apply(lambda t: _cast(t, dtype))
    try:
        f = functional(own)[0]
    except HesseError:
        return own
    return lambda x: f({}, x)
