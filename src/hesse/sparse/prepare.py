"""`prepare_jacobian` and `prepare_hessian`: the pattern and its colors once, then values and matrices at many points."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

from hesse.autodiff.compiled.mode import Mode
from hesse.autodiff.recording import Function, record
from hesse.autodiff.room import Room
from hesse.core.errors import StructureError
from hesse.core.memory import Budget
from hesse.core.memory import memory as held_to
from hesse.core.space import Space
from hesse.operators.base import Tag
from hesse.sparse.colored import ColoredPattern, Kind
from hesse.sparse.coloring import coloring
from hesse.sparse.detect import Sparsity, found_within
from hesse.sparse.evaluate import HESSIAN, JACOBIAN, Task
from hesse.sparse.pattern import Pattern
from hesse.sparse.prepared import SparseDerivative
from hesse.sparse.requests import Request
from hesse.sparse.stages import Stages


class _Search(NamedTuple):
    of: Literal["jacobian", "hessian"]
    local: bool
    constants: Literal["structure", "values"]


_MANY = 32  # colors, from which on a push along the graph costs more than a pull does


def prepare_jacobian(
    f: Function,
    x: Any,
    *,
    pattern: Any = None,
    kind: Kind | None = None,
    local: bool = False,
    constants: Literal["structure", "values"] = "structure",
    compile: Mode = "replay",
    memory: Budget | None = None,
) -> SparseDerivative:
    """Find the pattern of a function's Jacobian and color it, once for many points.

    Args:
        f: takes the tree x and returns a tree of tensors.
        x: an example; without `local` its values do not matter.
        pattern: where the Jacobian can have entries, if that is known: a `Pattern`, `ColoredPattern`, `Sparsity` or matrix. It
            is checked at the first point that is evaluated, and at a random one beside it, where f runs once more.
        kind: of the coloring: "column" (forward mode), "row" (reverse mode), "bidirectional"; by default the fewest colors, and
            rows where columns cannot be computed along the graph.
        local: take branches, masks and orders as they are at x; then each evaluation is checked.
        constants: as for `sparsity`; with "values", each evaluation is checked.
        compile: "replay": the operations of the second evaluation are recorded, and replayed at later ones. "native": they are
            compiled. "off": each evaluation runs f and autograd.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB"), to find the pattern and to evaluate.

    Returns:
        A function of x that gives ``(value, jacobian)``.

    Raises:
        StructureError: a pattern of another shape; an unknown mode, kind or budget; a kind other than the given coloring's; f
            is no function. UnsupportedError: inside of a `torch.func` transform; on the meta device. Others as `sparsity`.

    Cost: as `sparsity` and `coloring`.
    """
    request = Request(JACOBIAN, False, kind, compile, memory)
    request.require(f, x, pattern)
    found, known = _known(f, x, pattern, _Search("jacobian", local, constants), memory)
    if found is None:
        recording = record(f, x, JACOBIAN)
        spaces = recording.in_space, recording.out_space
    else:
        spaces = found.in_space, found.out_space
    colored = _colored(known, kind, spaces, JACOBIAN)
    forced = kind is not None or isinstance(pattern, ColoredPattern)
    remedy = request.remedy(pattern, local=local)
    task = Task(f, colored, *spaces, hessian=False, memory=memory, forced=forced, remedy=remedy)
    return SparseDerivative(task, x, found, compile, frozenset(), given=pattern is not None)


def prepare_hessian(
    f: Function,
    x: Any,
    *,
    pattern: Any = None,
    kind: Kind | None = None,
    local: bool = False,
    constants: Literal["structure", "values"] = "structure",
    compile: Mode = "replay",
    memory: Budget | None = None,
) -> SparseDerivative:
    """Find the pattern of a function's Hessian and color it, once for many points.

    Args:
        f: takes the tree x and returns one real number.
        x: an example; without `local` its values do not matter.
        pattern: where the Hessian can have entries, if that is known: a `Pattern`, `ColoredPattern`, `Sparsity` or matrix. It
            is checked at the first point that is evaluated, and at a random one beside it, where f runs once more.
        kind: of the coloring: "star" (the default), "acyclic" (fewer colors, entries by substitution) or "column".
        local: take branches, masks and orders as they are at x; then each evaluation is checked.
        constants: as for `sparsity`; with "values", each evaluation is checked.
        compile: as for `prepare_jacobian`.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB"), to find the pattern and to evaluate.

    Returns:
        A function of x that gives ``(value, hessian)``.

    Raises:
        StructureError: a pattern of another shape, or not symmetric; an unknown mode, kind or budget; f is no function.
            UnsupportedError: inside of a `torch.func` transform; on the meta device. Others as `sparsity`.

    Cost: as `sparsity` and `coloring`.
    """
    request = Request(HESSIAN, True, kind, compile, memory)
    request.require(f, x, pattern)
    found, known = _known(f, x, pattern, _Search("hessian", local, constants), memory)
    space = found.in_space if found is not None else Space.of(x)
    colored = _colored(known, kind or "star", (space, space), HESSIAN)
    task = Task(f, colored, space, space, hessian=True, memory=memory, remedy=request.remedy(pattern, local=local))
    return SparseDerivative(task, x, found, compile, frozenset({Tag.SYMMETRIC}), given=pattern is not None)


def _known(f: Function, x: Any, pattern: Any, how: _Search, budget: Budget | None) -> tuple[Sparsity | None, Any]:
    if pattern is None:
        stages = Stages(Room(budget, x), how.of == "hessian", 0, 0, 0, reused=True)
        with held_to(budget) if budget is not None else nullcontext():
            found = found_within(f, x, stages.bound, of=how.of, local=how.local, constants=how.constants)
        stages.require_coloring(found.pattern)
        return found, found.pattern
    return (pattern if isinstance(pattern, Sparsity) else None), pattern


def _colored(pattern: Any, kind: Kind | None, spaces: tuple[Space, Space], asked: str) -> ColoredPattern:
    shape = spaces[1].dim, spaces[0].dim
    own = pattern if isinstance(pattern, ColoredPattern) else Pattern.of(pattern)
    found = own.pattern.shape if isinstance(own, ColoredPattern) else own.shape
    if found != shape:
        raise StructureError(
            asked, f"a pattern of shape {found} for a matrix of shape {shape}", "pass rows for the value, columns for x"
        )
    if isinstance(own, ColoredPattern):
        return own
    colored = coloring(own, kind=kind or "auto")
    if kind is None and colored.kind == "column" and colored.colors > _MANY:
        rows = coloring(own, kind="row")
        return rows if rows.colors <= colored.colors else colored
    return colored
