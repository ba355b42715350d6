"""`jacobian`: the derivative of any function of trees, as tensors."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hesse.autodiff.blocks import chunk_for, joined, pull_block, push_block, unit_blocks
from hesse.autodiff.linearize import JacobianOperator, require_connected, require_one_field
from hesse.autodiff.recording import Function, Recording, record
from hesse.core.errors import StructureError
from hesse.core.memory import Budget
from hesse.core.tree import Tree, map_tree
from hesse.derivatives.batched import row_jacobians, spread
from hesse.derivatives.forward import Mode, Table, by_forward_mode

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
    structure: Literal["auto", "dense", "batched"] = "auto",
    layout: Literal["dense", "batched", "operator"] | None = None,
    mode: Mode = "auto",
    memory: Budget | None = None,
) -> JacobianResult:
    """The value and the Jacobian of any function of a tree of tensors.

    Args:
        f: takes the tree x and returns a tree of tensors.
        x: a tensor, a Python float, or any nesting of dicts, lists, tuples, named tuples and dataclasses of them.
        structure: how it is computed. "batched": f treats the rows (leading axes) of x independently, which is proved
            before it is used. "dense" and "auto": no structure is used.
        layout: what comes back. "dense" (the default): a tensor of shape ``value.shape + x.shape`` for every pair of
            leaves, as a tree like the value of trees like x. "batched" (the default for structure="batched"): ``[n, m, d]``,
            the Jacobian of each row (m and d stand for all axes after the first). "operator": a `LinearOperator`.
        mode: "reverse" (a pass a row), "forward" (a pass a column) or whichever needs fewer passes.
        memory: budget in bytes, as a fraction of what is free, or as text ("2GiB").

    Returns:
        ``(value, jacobian)``, of the dtypes and on the devices of x; differentiable with respect to whatever upstream
        requires grad (under `torch.no_grad` it is not). A complex f has to be holomorphic: the result is f'(x). A complex
        value of a real x gives a complex Jacobian.

    Raises:
        MixedSamplesError: structure="batched" and the rows are not independent. LeafError, DeviceError, NonFiniteError,
        DetachedError, HolomorphyError, MemoryBudgetError: as the names say, with the leaf.

    Cost: one forward pass and min(in, out) passes that share the graph; batched: min(m, d) passes, and log2(n) for the proof.
    """
    one_of("structure", structure, ("auto", "dense", "batched"))
    one_of("mode", mode, ("auto", "forward", "reverse"))
    layout = layout or ("batched" if structure == "batched" else "dense")
    one_of("layout", layout, ("dense", "batched", "operator"))
    recording = record(f, x, _ASKED)
    require_connected(recording, _ASKED)
    if layout != "operator" and _is_complex_of_real(recording):
        parts = record(lambda point: map_tree(torch.view_as_real, f(point)), x, _ASKED)
        table = _table(parts, structure, layout, mode, memory)
        axes = [y.ndim for y in recording.outputs]
        table = [[torch.complex(*b.unbind(axis)) for b in row] for row, axis in zip(table, axes, strict=True)]
    else:
        require_one_field(recording, _ASKED)
        if layout == "operator":
            return JacobianResult(recording.value, JacobianOperator(recording))
        table = _table(recording, structure, layout, mode, memory)
    rows = [recording.in_space.rebuild(row) for row in table]
    return JacobianResult(recording.value, recording.out_space.rebuild(rows))


def one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Refuse an option that is not among those allowed."""
    if given not in allowed:
        raise StructureError(f"{name} is one of {', '.join(map(repr, allowed))}.", repr(given), "pass one of these")


def _table(recording: Recording, structure: str, layout: str, mode: Mode, memory: Budget | None) -> Table:
    """One tensor for each pair of an output leaf and an input leaf."""
    if structure != "batched" and layout == "dense":
        return _dense(recording, mode, memory)
    blocks = row_jacobians(recording, mode, memory, _ASKED)
    if layout == "batched":
        return blocks
    return [[spread(b, y.ndim) for b in row] for row, y in zip(blocks, recording.outputs, strict=True)]


def _dense(recording: Recording, mode: Mode, memory: Budget | None) -> Table:
    rows, columns = recording.out_space.dim, recording.in_space.dim
    table = None
    if mode == "forward" or (mode == "auto" and columns < rows):
        table = by_forward_mode(recording, mode, lambda: _by_columns(recording, memory), _product, _ASKED)
    return _by_rows(recording, memory) if table is None else table


def _product(block: Tensor, tangent: Tensor) -> Tensor:
    return torch.tensordot(block, tangent, tangent.ndim)


def _by_rows(recording: Recording, memory: Budget | None) -> Table:
    chunk = chunk_for(recording, recording.out_space.dim, _result_bytes(recording), memory, "a dense Jacobian")
    pieces: list[list[list[Tensor]]] = [[] for _ in recording.outputs]
    for index, _, block in unit_blocks(recording.outputs, chunk, "Jacobian rows"):
        only = [u if i == index else None for i, u in enumerate(block)]
        pieces[index].append(pull_block(recording, only))
    table = []
    for output, parts in zip(recording.outputs, pieces, strict=True):
        rows = joined(parts, recording.inputs)
        table.append([_conj(g).reshape(output.shape + g.shape[1:]) for g in rows])
    return table


def _by_columns(recording: Recording, memory: Budget | None) -> Table:
    chunk = chunk_for(recording, recording.in_space.dim, _result_bytes(recording), memory, "a dense Jacobian")
    pieces: list[list[list[Tensor]]] = [[] for _ in recording.inputs]
    for index, _, block in unit_blocks(recording.inputs, chunk, "Jacobian columns"):
        pieces[index].append(push_block(recording, block))
    columns = [joined(parts, recording.outputs) for parts in pieces]
    return [
        [
            column[i].movedim(0, -1).reshape(output.shape + leaf.shape).to(leaf.dtype)
            for column, leaf in zip(columns, recording.inputs, strict=True)
        ]
        for i, output in enumerate(recording.outputs)
    ]


def _result_bytes(recording: Recording) -> int:
    return 2 * recording.out_space.dim * recording.in_space.dim * recording.in_space.dtype.itemsize


def _conj(part: Tensor) -> Tensor:
    return part.conj().resolve_conj() if part.is_complex() else part


def _is_complex_of_real(recording: Recording) -> bool:
    return not any(d.is_complex for d in recording.in_space.dtypes) and all(d.is_complex for d in recording.out_space.dtypes)
