"""Whether a derivative is sparse: looked for where it can pay, and used where it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch._C import _len_torch_dispatch_stack

from hesse.autodiff.recording import Recording, nodes
from hesse.autodiff.room import Room
from hesse.autodiff.second_run import without_trace
from hesse.core import random
from hesse.core.errors import StructureError, UnsupportedError
from hesse.operators.base import Tag

if TYPE_CHECKING:
    from hesse.autodiff.dependence.bound import Bound
    from hesse.derivatives.colored import SparseMatrix
    from hesse.sparse.colored import ColoredPattern, Kind
    from hesse.sparse.detect import Sparsity
    from hesse.sparse.pattern import Pattern

_FEWEST = 200  # passes that a dense matrix has to take before anybody looks for a sparse one
_PROBED = 4  # rows that are computed to see whether it can be one
_FULLEST = 0.1  # share of entries in them that rules it out: n colors give n rows of numbers, so that a tenth is the most saved
_LOOK, _LOOK_AN_OP = 1e-2, 3e-4  # seconds to find a pattern, color and use it
_PASS_AN_OP = 6e-5  # seconds, of a batched pass
_BYTES_A_PASS, _BYTES_A_SECOND = 2**26, 4e9  # that it writes
_KINDS: dict[str, Kind | None] = {"auto": None, "forward": "column", "reverse": "row"}


class Request(NamedTuple):
    """What is asked for.

    Attributes:
        structure: "sparse" or "auto".
        layout: "dense", "sparse" or "operator".
        mode: "forward", "reverse" or "auto": the colors of columns, of rows, or whichever are fewer.
    """

    structure: str
    layout: str
    mode: str = "auto"


def sparse_matrix(
    recording: Recording, source: Recording, request: Request, room: Room, asked: str
) -> SparseMatrix | None:
    """The entries of a Jacobian or Hessian by colors; None where structure="auto" and that does not pay, or cannot be done.

    Args:
        recording: of the function.
        source: what is differentiated: the same, or the recording of its gradient.
        request: how it is computed, and what comes back.
        room: the memory that the call may take.
        asked: what is asked of hesse, for error messages.

    Raises:
        For structure="sparse": UnsupportedError: complex numbers, inside `torch.func`, an op that cannot be followed.
        StructureError: the random check has found a wrong entry.
    """
    required, mode = request.structure == "sparse", request.mode
    if required:
        _require_followable(recording, asked)
    elif not (_may_look(recording, source) and _can_be_sparse(source)):
        return None
    before = room.taken()
    from hesse.derivatives.colored import SparseMatrix, result_bytes, values_by_colors  # they bring SciPy
    from hesse.sparse.evaluate import lost_second_derivatives
    from hesse.sparse.stages import Stages

    room.skip(before)
    hessian = source is not recording
    graph = 0 if room.given is None else source.graph_bytes()
    entry, fixed = result_bytes(request.layout, source.out_space, source.in_space)
    stages = Stages(room, hessian, graph, entry, fixed, before=before)
    try:
        found = _look(recording, hessian, required, stages.bound)
        if found is None or not (required or found.pattern.density < _FULLEST):
            return None
        stages.require_coloring(found.pattern)
        colored = _colored(found.pattern, "star" if hessian else _KINDS[mode])
        if not required and 2 * colored.colors > min(source.in_space.dim, source.out_space.dim):
            return None
        stages.require_values(colored)
        values = values_by_colors(source, colored, stages, forced=mode == "forward" and not hessian)
        stages.require_result(found.pattern.nnz)
    except Exception as error:  # of whatever kind: the dense way knows better, or says it in its own words
        if not required:
            return None
        if hessian and isinstance(error, StructureError):
            raise lost_second_derivatives(recording, asked) or error from error
        raise
    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN}) if hessian else frozenset()
    return SparseMatrix(found.pattern, values, source.in_space, source.out_space, tags)


def _colored(pattern: Pattern, kind: Kind | None) -> ColoredPattern:
    """Rows rather than columns where that takes few products more: the graph that is kept gives them without another look."""
    from hesse.sparse.coloring import coloring
    from hesse.sparse.colors.columns import fewest_columns

    if kind is not None:
        return coloring(pattern, kind=kind)
    if pattern.is_symmetric:  # columns need as many
        rows = coloring(pattern, kind="row")
        if rows.colors <= 4 + 4 * pattern.nnz / max(1, pattern.shape[0]):
            return rows
    best = coloring(pattern)
    if best.kind == "row" or fewest_columns(pattern.T) > 2 * best.colors:
        return best
    rows = coloring(pattern, kind="row")
    return rows if rows.colors <= 2 * best.colors else best


def _require_followable(recording: Recording, asked: str) -> None:
    if recording.functorch:
        raise UnsupportedError(asked, "structure='sparse' inside a torch.func transform, where no element can be followed",
                               "prepare it outside (hesse.sparse.prepare_jacobian), or use structure='dense'")  # fmt: skip
    if _is_complex(recording):
        raise UnsupportedError(asked, "structure='sparse' for complex numbers",
                               "pass and return real and imaginary parts (torch.view_as_real)")  # fmt: skip


def _is_complex(recording: Recording) -> bool:
    return any(dtype.is_complex for dtype in (*recording.in_space.dtypes, *recording.out_space.dtypes))


def _may_look(recording: Recording, source: Recording) -> bool:
    """Whether the matrix is large, and a second run of the function possible."""
    return (
        min(source.in_space.dim, source.out_space.dim) >= _FEWEST
        and not recording.functorch
        and not _is_complex(recording)
        and recording.in_space.device.type != "meta"
        and not _len_torch_dispatch_stack()
        and not torch.compiler.is_compiling()
    )


def _can_be_sparse(source: Recording) -> bool:
    """Whether all rows take longer than a look, by what their passes write, and a few of them are nearly empty."""
    space, count = source.out_space, min(source.out_space.dim, source.in_space.dim)
    ops = sum(1 for _ in nodes([y.grad_fn for y in source.outputs if y.grad_fn is not None]))
    written = count * source.graph_bytes()
    if _PASS_AN_OP * ops * (1 + written / _BYTES_A_PASS) + written / _BYTES_A_SECOND < 2 * (_LOOK + _LOOK_AN_OP * ops):
        return False
    room = int(_FULLEST * _PROBED * source.in_space.dim)
    for place in torch.randint(space.dim, (_PROBED,), generator=random.make_generator()).tolist():
        unit = torch.zeros(space.dim, dtype=space.dtype, device=space.device)
        unit[place] = 1
        with torch.no_grad():
            row = source.pull(space.check(space.unravel(unit), "a row"))
        room -= sum(int(part.count_nonzero()) for part in row)
        if room < 0:
            return False
    return True


def _look(recording: Recording, hessian: bool, required: bool, bound: Bound) -> Sparsity | None:
    """The pattern at this point; without `required` from a run that leaves no trace, or None."""
    from hesse.autodiff.dependence.bound import Bound
    from hesse.sparse.detect import found_within

    of: Literal["jacobian", "hessian"] = "hessian" if hessian else "jacobian"
    with torch.enable_grad():
        if required:
            devices = [recording.in_space.device] if recording.in_space.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                return found_within(recording.f, recording.x, bound, of=of, local=True)
        try:
            return found_within(without_trace(recording.f), recording.x, Bound(bound.room), of=of, local=True)
        except Exception:  # of whatever kind: the function itself may refuse to run again
            return None
