"""`hessian` and `laplacian` of any real function of a tree."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from hesse.autodiff.blocks import chunk_for, pull_block, unit_blocks
from hesse.autodiff.independence import batch_size, require_independent_rows
from hesse.autodiff.linearize import require_connected
from hesse.autodiff.recording import Function, Recording, record
from hesse.autodiff.room import Room
from hesse.autodiff.second_order import (
    HessianOperator,
    gradient_recording,
    record_scalar,
)
from hesse.core.batching import slices
from hesse.core.errors import HolomorphyError, NonScalarError, StructureError
from hesse.core.memory import Budget
from hesse.core.tree import Tree
from hesse.derivatives import batched
from hesse.derivatives.batched import batched_bytes, same_unit_in_every_row, spread, spread_sparse
from hesse.derivatives.forward import Table
from hesse.derivatives.gathered import Gathering, sparse_bytes, sparsified
from hesse.derivatives.jacobian import by_rows, one_of
from hesse.derivatives.rows import in_rows
from hesse.derivatives.structure import Request, sparse_matrix

_HESSIAN = "hessian(f, x) differentiates a function with one real value twice."
_LAPLACIAN = "laplacian(f, x) adds up the second derivatives of a function with one real value."


class HessianResult(NamedTuple):
    """A function's value and its Hessian, in the layout that was asked for."""

    value: Tree
    hessian: Any


class LaplacianResult(NamedTuple):
    """A function's value and its Laplacian: 0-d, or ``[n]`` for structure="batched"."""

    value: Tree
    laplacian: Tensor


def hessian(
    f: Function,
    x: Any,
    *,
    structure: Literal["auto", "dense", "batched", "sparse"] = "auto",
    layout: Literal["dense", "batched", "sparse", "operator"] | None = None,
    memory: Budget | None = None,
) -> HessianResult:
    """The value and the Hessian of a real function of a tree of tensors.

    Args:
        f: takes the tree x and returns one real number; with structure="batched" one number a row, ``[n]`` or ``[n, 1]``.
        x: a tensor, a Python float, or any nesting of dicts, lists, tuples, named tuples and dataclasses of them.
        structure: how it is computed. "batched": rows of x are independent, which is proved before it is used. "sparse": the
            places where entries can be are followed through the gradient at x, and unknowns of one star color (Coleman and
            More 1984) share a product, which a random product checks. "dense": no structure is used. "auto": as "sparse"
            where x has 200 elements or more and a few rows are nearly empty, else as "dense"; never an error.
        layout: what comes back. "dense" (the default): ``x.shape + x.shape`` for every pair of leaves, as a tree like x of
            trees like x. "batched" (the default for structure="batched"): ``[n, d, d]``. "sparse": as "dense", in sparse
            tensors (coalesced COO). "operator": a `LinearOperator`; for structure="sparse" one that knows its entries.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB").

    Returns:
        ``(value, hessian)``; differentiable with respect to whatever upstream requires grad.

    Raises:
        NonScalarError: more than one number. StructureError: an already computed tensor instead of a function.
        MixedSamplesError: structure="batched" and the rows are not independent. UnsupportedError: structure="sparse" inside
        `torch.func`, or of an op that cannot be followed. Others as `jacobian`.

    Cost: one gradient, then one product of 1 to 2 gradients a column (batched: a column of all rows at once, and about log2(n)
    products for the proof; sparse: a color, and another gradient in which an op takes some 50 microseconds more), which share
    passes while the memory budget and the cache allow.
    """
    one_of("structure", structure, ("auto", "dense", "batched", "sparse"))
    layout = layout or ("batched" if structure == "batched" else "dense")
    one_of("layout", layout, ("dense", "batched", "sparse", "operator"))
    if structure == "sparse" and layout == "batched":
        remedy = "pass structure='batched', or another layout"
        raise StructureError(_HESSIAN, "layout='batched' of structure='sparse'", remedy)
    room = Room(memory, x)
    if structure == "batched" or layout == "batched":
        recording, size = _record_rows(f, x, _HESSIAN)
        if layout == "operator":
            require_independent_rows(recording, _HESSIAN, _chunk(recording, memory), twice=True)
            return HessianResult(recording.value, HessianOperator(recording))
        table = _row_hessians(recording, size, layout, room)
        if layout != "batched":
            put = spread if layout == "dense" else spread_sparse
            table = [[put(b, leaf.ndim) for b in row] for row, leaf in zip(table, recording.inputs, strict=True)]
        return _result(recording, table)
    recording = record_scalar(f, x, _HESSIAN)
    if layout == "operator" and structure != "sparse":
        return HessianResult(recording.value, HessianOperator(recording))
    gradient = gradient_recording(recording)
    found = None if structure == "dense" else sparse_matrix(recording, gradient, Request(structure, layout), room, _HESSIAN)
    if found is not None and layout == "operator":
        return HessianResult(recording.value, found.operator())
    return _result(recording, _dense(gradient, layout, room) if found is None else found.table(layout, room))


def _result(recording: Recording, table: Table) -> HessianResult:
    space = recording.in_space
    return HessianResult(recording.value, space.rebuild([space.rebuild(row) for row in table]))


def _dense(gradient: Recording, layout: str, room: Room) -> Table:
    space = gradient.in_space
    later = sparse_bytes(gradient) if layout == "sparse" else 0
    gathering = Gathering(gradient, room, "a dense Hessian", space.dim**2 * space.dtype.itemsize, later)
    table = by_rows(gathering, "Hessian rows")
    return table if layout == "dense" else sparsified(table, room)


def laplacian(
    f: Function, x: Any, *, structure: Literal["auto", "dense", "batched"] = "auto", memory: Budget | None = None
) -> LaplacianResult:
    """The value and the Laplacian (the trace of the Hessian) of a real function of a tree of tensors.

    Args:
        f: takes the tree x and returns one real number; with structure="batched" one number a row, ``[n]`` or ``[n, 1]``.
        x: the point, a tree of tensors and Python floats.
        structure: "batched": rows of x are independent, which is proved before it is used; gives ``[n]``.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB").

    Returns:
        ``(value, laplacian)``, exact; differentiable with respect to whatever upstream requires grad, so that a residual
        of a differential equation trains.

    Raises:
        As `hessian`.

    Cost: one gradient, then 1 to 2 gradients a coordinate (batched: a coordinate of a row, for all rows at once, and about
    log2(n) products for the proof).
    """
    one_of("structure", structure, ("auto", "dense", "batched"))
    if structure == "batched":
        found = in_rows(x, lambda part: _row_laplacians(f, part, memory), memory, _LAPLACIAN)
        return _row_laplacians(f, x, memory) if found is None else found
    recording = record_scalar(f, x, _LAPLACIAN)
    gradient = gradient_recording(recording)
    chunk = chunk_for(gradient, recording.in_space.dim, 0, memory, "a Laplacian")
    terms = []
    for index, _, block in unit_blocks(recording.inputs, chunk, "Laplacian"):
        only = [u if i == index else None for i, u in enumerate(block)]
        terms.append((pull_block(gradient, only)[index] * block[index]).sum())
    return LaplacianResult(recording.value, sum(terms, recording.outputs[0].new_zeros(())))


def _row_laplacians(f: Function, x: Any, memory: Budget | None) -> LaplacianResult:
    recording, size = _record_rows(f, x, _LAPLACIAN)
    chunk = _chunk(recording, memory)
    require_independent_rows(recording, _LAPLACIAN, chunk, twice=True)
    gradient = gradient_recording(recording)
    terms = []
    for index, leaf in enumerate(recording.inputs):
        for columns in slices(leaf.numel() // size, chunk, "Laplacian"):
            only: list[Tensor | None] = [None] * len(recording.inputs)
            unit = same_unit_in_every_row(leaf, columns)
            only[index] = unit
            terms.append((pull_block(gradient, only)[index] * unit).unsqueeze(-1).flatten(2).sum((0, 2)))
    return LaplacianResult(recording.value, sum(terms, recording.outputs[0].new_zeros(size)))


def _record_rows(f: Function, x: Any, asked: str) -> tuple[Recording, int]:
    """The run, and the number of rows, of which it is not known yet whether they are independent."""
    recording = record(f, x, asked)
    if any(dtype.is_complex for dtype in (*recording.in_space.dtypes, *recording.out_space.dtypes)):
        raise HolomorphyError(asked, "complex numbers", "pass real and imaginary parts (torch.view_as_real) as real inputs")
    require_connected(recording, asked)
    size = batch_size(recording, asked)
    if recording.out_space.dim != size:
        shapes = [tuple(shape) for shape in recording.out_space.shapes]
        raise NonScalarError(asked, f"values of shape {shapes} for {size} rows", "return one number a row: [n] or [n, 1]")
    return recording, size


def _chunk(recording: Recording, memory: Budget | None) -> int:
    return chunk_for(recording, recording.in_space.dim, 0, memory, "a batched Hessian")


def _row_hessians(recording: Recording, size: int, layout: str, room: Room) -> Table:
    gradient = gradient_recording(recording)
    gathering = Gathering(gradient, room, "a batched Hessian", batched_bytes(recording, gradient, layout))
    require_independent_rows(recording, _HESSIAN, gathering.chunk(recording.in_space.dim), twice=True)
    return batched.by_rows(gathering, size, "Hessian rows")
