"""`jacobian`: the derivative of any function of trees, as tensors."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.blocks import pull_block, push_block, unit_rows
from hesse.autodiff.linearize import JacobianOperator, require_connected, require_one_field
from hesse.autodiff.recording import Function, Recording, record
from hesse.autodiff.room import Room
from hesse.core.errors import StructureError
from hesse.core.memory import Budget
from hesse.core.tree import Tree, map_tree
from hesse.derivatives.batched import row_jacobians, spread, spread_sparse
from hesse.derivatives.forward import Mode, Table, by_forward_mode
from hesse.derivatives.gathered import Gathering, sparse_bytes, sparsified
from hesse.derivatives.structure import Request, sparse_matrix

_ASKED = "jacobian(f, x) differentiates a function of floating-point tensors."


class JacobianResult(NamedTuple):
    """A function's value and its Jacobian.

    Attributes:
        value: what ``f(x)`` returned.
        jacobian: in the layout that was asked for.
    """

    value: Tree
    jacobian: Any


def jacobian(
    f: Function,
    x: Any,
    *,
    structure: Literal["auto", "dense", "batched", "sparse"] = "auto",
    layout: Literal["dense", "batched", "sparse", "operator"] | None = None,
    mode: Mode = "auto",
    memory: Budget | None = None,
) -> JacobianResult:
    """The value and the Jacobian of any function of a tree of tensors.

    Args:
        f: takes the tree x and returns a tree of tensors.
        x: a tensor, a Python float, or any nesting of dicts, lists, tuples, named tuples and dataclasses of them.
        structure: how it is computed. "batched": f treats the rows (leading axes) of x independently, which is proved
            before it is used. "sparse": the places where entries can be are followed through f at x, and columns (rows) that
            share none share a product, which a random product checks. "dense": no structure is used. "auto": as "sparse"
            where 200 passes or more would be needed and a few rows are nearly empty, else as "dense"; never an error, and
            never a trace of a second run of f other than what Python does in it.
        layout: what comes back. "dense" (the default): a tensor of shape ``value.shape + x.shape`` for every pair of
            leaves, as a tree like the value of trees like x. "batched" (the default for structure="batched"): ``[n, m, d]``,
            the Jacobian of each row (m and d stand for all axes after the first). "sparse": as "dense", in sparse tensors
            (coalesced COO), whose `to_dense()` is that. "operator": a `LinearOperator`; for structure="sparse" one that knows
            its entries, so that `solve` and others are direct.
        mode: "reverse" (a pass a row, or a color of rows), "forward" (a pass a column, or a color of columns) or whichever
            needs fewer passes.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB").

    Returns:
        ``(value, jacobian)``, of the dtypes and on the devices of x; differentiable with respect to whatever upstream
        requires grad (under `torch.no_grad` it is not). A complex f has to be holomorphic: the result is f'(x). A complex
        value of a real x gives a complex Jacobian.

    Raises:
        MixedSamplesError: structure="batched" and the rows are not independent. UnsupportedError: structure="sparse" of
        complex numbers, inside `torch.func`, or of an op that cannot be followed. LeafError, DeviceError, NonFiniteError,
        DetachedError, HolomorphyError, MemoryBudgetError: as the names say, with the leaf.

    Cost: one forward pass and min(in, out) passes that share the graph; batched: min(m, d) passes, and log2(n) for the proof;
    sparse: a pass a color and one more, and a second run of f in which an op takes some 50 microseconds more.
    """
    one_of("structure", structure, ("auto", "dense", "batched", "sparse"))
    one_of("mode", mode, ("auto", "forward", "reverse"))
    layout = layout or ("batched" if structure == "batched" else "dense")
    one_of("layout", layout, ("dense", "batched", "sparse", "operator"))
    room = Room(memory, x)
    recording = record(f, x, _ASKED)
    require_connected(recording, _ASKED)
    if structure == "sparse":
        found = _sparse(recording, layout, mode, room)
    elif layout == "operator":
        require_one_field(recording, _ASKED)
        found = JacobianOperator(recording)
    elif _is_complex_of_real(recording):
        parts = record(lambda point: map_tree(torch.view_as_real, f(point)), x, _ASKED)
        found = _tree(recording, _from_parts(parts, structure, layout, mode, room))
    else:
        require_one_field(recording, _ASKED)
        found = _tree(recording, _table(recording, structure, layout, mode, room))
    return JacobianResult(recording.value, found)


def _tree(recording: Recording, table: Table) -> Tree:
    return recording.out_space.rebuild([recording.in_space.rebuild(row) for row in table])


def one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse an option that is not among those allowed."""
    if given not in allowed:
        raise StructureError(f"{name} is one of {', '.join(map(repr, allowed))}.", repr(given), "pass one of these")


def _sparse(recording: Recording, layout: str, mode: Mode, room: Room) -> Any:
    if layout == "batched":
        raise StructureError(_ASKED, "layout='batched' of structure='sparse'", "pass structure='batched', or another layout")
    found = sparse_matrix(recording, recording, Request("sparse", layout, mode), room, _ASKED)
    assert found is not None
    return found.operator() if layout == "operator" else _tree(recording, found.table(layout, room))


def _table(recording: Recording, structure: str, layout: str, mode: Mode, room: Room, besides: int = 0) -> Table:
    """One tensor for each pair of an output leaf and an input leaf; `besides`: bytes of what will be made of them."""
    if structure == "auto" and layout in ("dense", "sparse"):
        entries = sparse_matrix(recording, recording, Request(structure, layout, mode), room, _ASKED)
        if entries is not None:
            return entries.table(layout, room)
    if structure != "batched" and layout != "batched":
        table = _dense(recording, layout, mode, room, besides)
        return table if layout == "dense" else sparsified(table, room)
    blocks = row_jacobians(recording, mode, layout, room, _ASKED)
    if layout == "batched":
        return blocks
    put = spread if layout == "dense" else spread_sparse
    return [[put(b, y.ndim) for b in row] for row, y in zip(blocks, recording.outputs, strict=True)]


def _from_parts(parts: Recording, structure: str, layout: str, mode: Mode, room: Room) -> Table:
    """The table of a complex function of real numbers, from its real and imaginary parts along the last axis of its value."""
    besides = parts.out_space.dim * parts.in_space.dim * parts.in_space.dtype.itemsize
    table = _table(parts, structure, "batched" if layout == "batched" else "dense", mode, room, besides)
    ends = zip(table, [y.ndim - 1 for y in parts.outputs], strict=True)
    whole = [[torch.complex(*block.unbind(axis)) for block in row] for row, axis in ends]
    return sparsified(whole, room) if layout == "sparse" else whole


def _dense(recording: Recording, layout: str, mode: Mode, room: Room, besides: int = 0) -> Table:
    rows, columns = recording.out_space.dim, recording.in_space.dim
    kept = rows * columns * recording.in_space.dtype.itemsize + besides
    later = sparse_bytes(recording) if layout == "sparse" else 0
    gathering, table = Gathering(recording, room, "a dense Jacobian", kept, later), None
    if mode == "forward" or (mode == "auto" and columns < rows):
        table = by_forward_mode(recording, mode, lambda: _by_columns(gathering), _product, _ASKED)
    return by_rows(gathering, "Jacobian rows") if table is None else table


def _product(block: Tensor, tangent: Tensor) -> Tensor:
    return torch.tensordot(block, tangent, tangent.ndim)


def by_rows(gathering: Gathering, label: str) -> Table:
    """A tensor ``output.shape + leaf.shape`` for every pair of leaves, by reverse mode.

    Args:
        gathering: of a function, or of a gradient.
        label: shown as progress.
    """
    inputs, outputs = gathering.recording.inputs, gathering.recording.outputs

    def pulled(index: int, rows: slice) -> list[Tensor]:
        only: list[Tensor | None] = [None] * len(outputs)
        only[index] = unit_rows(outputs[index], rows)
        return [g.conj().resolve_conj() if g.is_complex() else g for g in pull_block(gathering.recording, only)]

    def empty(index: int, count: int) -> list[Tensor]:
        return [leaf.new_empty(count, *leaf.shape) for leaf in inputs]

    stacks = gathering.stacks([y.numel() for y in outputs], pulled, empty, label)
    return [[g.reshape(output.shape + g.shape[1:]) for g in row] for output, row in zip(outputs, stacks, strict=True)]


def _by_columns(gathering: Gathering) -> Table:
    inputs, outputs = gathering.recording.inputs, gathering.recording.outputs

    def pushed(index: int, columns: slice) -> list[Tensor]:
        unit = unit_rows(inputs[index], columns)
        others = [unit if i == index else x.new_zeros(len(unit), *x.shape) for i, x in enumerate(inputs)]
        return push_block(gathering.recording, others)

    def empty(index: int, count: int) -> list[Tensor]:
        return [y.new_empty(count, *y.shape, dtype=inputs[index].dtype) for y in outputs]

    columns = gathering.stacks([leaf.numel() for leaf in inputs], pushed, empty, "Jacobian columns")
    return [
        [columns[j][i].movedim(0, -1).reshape(output.shape + leaf.shape).to(leaf.dtype) for j, leaf in enumerate(inputs)]
        for i, output in enumerate(outputs)
    ]


def _is_complex_of_real(recording: Recording) -> bool:
    return not any(d.is_complex for d in recording.in_space.dtypes) and all(d.is_complex for d in recording.out_space.dtypes)
