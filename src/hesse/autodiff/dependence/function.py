"""Which elements of its input every element of a function's value, or of its gradient, depends on."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.dependence.bound import WHAT, Bound, bounded, require
from hesse.autodiff.dependence.estimate import SPACE, Tally, estimated
from hesse.autodiff.dependence.following import Following, sets_of
from hesse.autodiff.dependence.memory import Memory
from hesse.autodiff.dependence.reading import Reading
from hesse.autodiff.dependence.sets.base import Sets
from hesse.autodiff.dependence.sets.few import Few
from hesse.autodiff.engine import pull_along
from hesse.autodiff.fused import differentiable_attention, plain_recurrences
from hesse.autodiff.recording import Function, as_variables, inside_functorch, nodes, output_leaves, writes_refused
from hesse.autodiff.second_run import without_trace
from hesse.core.errors import MemoryBudgetError, NonScalarError, UnsupportedError
from hesse.core.space import Space
from hesse.core.tree import Tree

_GUESS = 4  # entries a column, where nothing is known of them
Label = Callable[[Sequence[Tensor]], Sequence[Sets]]


@dataclass(frozen=True)
class Dependence:
    """What depends on what.

    Attributes:
        matrix: ``[outputs, inputs]``, a SciPy matrix of bools in compressed rows, columns in order.
        in_space, out_space: of the function's input, and of what was looked at.
        fallbacks: ops without a rule, which were taken to mix everything, and how often they ran.
        branches: reads of values that depend on the input, with their lines; only where values were taken for what they are.
        analyzed: "primal": the function as it ran. "reverse": its backward pass, since it holds custom functions, whose
            derivatives are whatever their backward says.
        constants: tensors from outside of the function whose values the sets rest on: indices, masks and what these were made
            of; with `values` also factors.
        is_custom: whether there are custom functions or hooks, with which a gradient's Jacobian need not be symmetric.
    """

    matrix: Any
    in_space: Space
    out_space: Space
    fallbacks: Counter[str]
    branches: tuple[str, ...]
    analyzed: Literal["primal", "reverse"]
    constants: tuple[Tensor, ...] = ()
    is_custom: bool = False


def dependence(
    f: Function,
    x: Tree,
    asked: str,
    *,
    local: bool = False,
    gradient: bool = False,
    values: bool = False,
    bound: Bound | None = None,
) -> Dependence:
    """Run a function once and follow every element.

    Args:
        f: any function of a tree, returning a tree of tensors.
        x: the point.
        asked: what is asked of hesse, for error messages.
        local: take values for what they are at x: branches, masks, orders.
        gradient: look at the gradient of f, which has to return one number, instead of f.
        values: let zeros in constant factors count.
        bound: the memory budget, where one is to be kept.

    Returns:
        Sets that hold every element a derivative may not vanish for; at x if `local`, at any point otherwise.

    Raises:
        UnsupportedError: Python reads a value that depends on x, and not `local`; complex numbers; inside `torch.func`.
        LeafError, DeviceError, NonFiniteError, StructureError, MemoryBudgetError: as the names say, with the leaf.

    Cost: one run of f (with its backward pass for a gradient, or where f holds custom functions), about 50 microseconds more
    an op, and work that grows with the entries of the sets.
    """
    how, bound = _How(local, gradient, values), None if bound is None or bound.room.given is None else bound
    found = _matrix(f, x, asked, how, bound)
    if isinstance(found, int):  # outside of the handler, which would keep alive what was made until then
        assert bound is not None
        raise _refusal(f, x, asked, how, bound, found)
    run, matrix = found
    following = run.following
    analyzed = "reverse" if run.reverse else "primal"
    return Dependence(matrix, run.in_space, run.out_space, following.fallbacks, tuple(following.branches), analyzed,
                      tuple(following.constants.used), run.custom)  # fmt: skip


class _How(NamedTuple):
    local: bool
    gradient: bool
    values: bool


def _matrix(f: Function, x: Tree, asked: str, how: _How, bound: Bound | None) -> tuple[Followed, Any] | int:
    """The run and what it found as a SciPy matrix; where it passed the budget, the bytes that were taken then."""
    try:
        with bounded(None if bound is None else bound.room):
            require(SPACE * Space.of(x).dim if bound is not None else 0)
            run = followed(f, x, asked, _own_numbers, **how._asdict())
            matrix = run.sets.compressed()
            return run, _turned(matrix) if run.reverse else matrix
    except MemoryBudgetError as error:
        if bound is None:
            raise
        return error.least


def _refusal(f: Function, x: Tree, asked: str, how: _How, bound: Bound, least: int) -> MemoryBudgetError:
    """The error for a budget that was passed on the way, where `least` bytes were taken.

    What would do is estimated by following a part of the inputs; where that cannot be done, it is guessed.
    """
    room, would_do, found = bound.room, bound.least, {}
    if would_do is None:
        return room.refusal(least, WHAT)
    gc.collect()  # what was followed until then is in cycles
    before, elements = room.taken(settled=True), Space.of(x).dim
    taken = max(2 * least, before + SPACE * elements)
    guess = int(would_do(_GUESS * elements, elements, elements, taken))
    if room.passed(SPACE * elements):
        return room.refusal(guess, WHAT)

    def run(label: Label, tally: Tally) -> Sets:
        done = followed(without_trace(f), x, asked, label, **how._asdict(), tally=tally)
        found["held"] = room.taken()
        return done.sets

    try:
        with bounded(room):
            size, entries, rows, columns = estimated(run)
    except Exception:  # of whatever kind: the function may refuse to run again, and the budget may be passed again
        return room.refusal(guess, WHAT)
    total = would_do(entries, rows, columns, found["held"] + size)
    return room.refusal(int(max(total, least)), WHAT)


def _own_numbers(tensors: Sequence[Tensor]) -> list[Sets]:
    """Each element of several tensors is an input."""
    total = sum(t.numel() for t in tensors)
    starts = itertools.accumulate((t.numel() for t in tensors), initial=0)
    return [Few.identity(t.numel(), total, start) for t, start in zip(tensors, starts, strict=False)]


def _turned(matrix: Any) -> Any:
    turned = matrix.T.tocsr()
    turned.sort_indices()
    return turned


@dataclass(frozen=True)
class Followed:
    """A run in which every element was followed.

    Attributes:
        sets: of all elements of the outputs; of all elements of the inputs, as sets of outputs, if `reverse`.
        following: what was noted on the way.
        in_space, out_space: of the inputs, and of what was looked at.
        reverse: whether that backward pass was followed, since there are custom functions or hooks in it.
        custom: whether the function holds custom functions or hooks, whose gradient need not be one of anything.
    """

    sets: Sets
    following: Following
    in_space: Space
    out_space: Space
    reverse: bool
    custom: bool


def followed(
    f: Function,
    x: Tree,
    asked: str,
    label: Label,
    *,
    local: bool,
    gradient: bool,
    values: bool = False,
    tally: Tally | None = None,
) -> Followed:
    """Run a function once, with labels on the elements of its input; see `dependence`.

    Args:
        f, x, asked, local, gradient, values: see there.
        label: gives the sets of the elements of inputs (of outputs, if the backward pass is followed).
        tally: counts the sets.
    """
    if inside_functorch():
        raise UnsupportedError(asked, "a torch.func transform around it, whose tensors cannot be followed", "call it outside")
    tensors, in_space = as_variables(x, asked)
    if any(t.is_complex() for t in tensors):
        raise UnsupportedError(asked, "complex numbers in x", "pass real and imaginary parts as two leaves")
    with torch.enable_grad(), differentiable_attention(), plain_recurrences():
        inputs = [t.detach().clone().requires_grad_() for t in tensors]
        labels = label(inputs)
        memory = Memory(labels[0].empty(0) if labels else Few([], 0, 0), tally)
        for t, sets in zip(inputs, labels, strict=True):
            memory.put(t, sets, varies=True)
        following = Following(memory, local=local, values=values)
        if gradient:  # what is saved for the backward pass may be detached on the way, and has its tangents nonetheless
            following.cuts = None
        with following, Reading(following), _known_ops(asked), writes_refused(asked):
            outputs, out_space = output_leaves(f(in_space.rebuild(inputs)), asked)
            custom = following.hooked or _is_custom(outputs)
            if gradient:
                outputs, out_space = _gradient(outputs, inputs, asked), in_space
        sets = sets_of(following, outputs, [y.numel() for y in outputs])
        _require_straight(following, asked)
        reverse = following.hooked or _is_custom(outputs)
        if reverse:
            sets = _by_reverse(outputs, inputs, following, label)
    return Followed(sets, following, in_space, out_space, reverse, custom or reverse)


@contextmanager
def _known_ops(asked: str) -> Iterator[None]:
    """Turn what PyTorch says of control flow that no mode can see into a refusal."""
    try:
        yield
    except NotImplementedError as error:
        if "HigherOrderOperator" not in str(error):
            raise
        name = str(error).partition("HigherOrderOperator ")[2].partition(" ")[0]
        raise UnsupportedError(
            asked, f"torch's operator '{name}', inside of which no op can be followed", "use torch.where, or pass the pattern"
        ) from error


def _is_custom(outputs: Sequence[Tensor]) -> bool:
    """Whether a node of the graph has a backward of its own, in Python or in C++."""
    graph = nodes([y.grad_fn for y in outputs if y.grad_fn is not None])
    return any(hasattr(node, "_forward_cls") or "CppNode" in node.name() for node in graph)


def _gradient(outputs: Sequence[Tensor], inputs: Sequence[Tensor], asked: str) -> list[Tensor]:
    if len(outputs) != 1 or outputs[0].numel() != 1:
        shapes = ", ".join(str(tuple(y.shape)) for y in outputs)
        raise NonScalarError(asked, f"a value of shape {shapes}", "sum it, or take one element of it")
    if not outputs[0].requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    grads = torch.autograd.grad(outputs[0].sum(), inputs, create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


def _require_straight(following: Following, asked: str) -> None:
    if following.branches and not following.local:
        raise UnsupportedError(
            asked,
            f"Python reads a value that depends on x: {following.branches[0]}",
            "pass local=True for the pattern of the path that is taken at x, or keep it in torch: a branch as torch.where, "
            "an index as gather with a tensor of one axis",
        )


def _by_reverse(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    following: Following,
    label: Label,
) -> Sets:
    """Sets by the backward pass: those of the gradient's elements in terms of the cotangent's."""
    memory = following.memory
    following.cuts = None
    cotangents = [torch.ones_like(y) for y in outputs]
    labels = label(cotangents)
    memory.restart(labels[0].empty(0))
    for u, sets in zip(cotangents, labels, strict=True):
        memory.put(u, sets, varies=True)
    pairs = [(y, u) for y, u in zip(outputs, cotangents, strict=True) if y.requires_grad]
    with following:
        grads = pull_along([y for y, _ in pairs], inputs, [u for _, u in pairs], create_graph=False)
    return sets_of(following, grads, [x.numel() for x in inputs])
