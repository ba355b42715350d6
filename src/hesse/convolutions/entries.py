"""What the entries of a convolution's matrix tell: the matrix, dense or sparse, its diagonal, its norm, sums of squares."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.operator import Convolution, TransposedConvolution
from hesse.convolutions.taps import meetings, places
from hesse.core.memory import Budget, chunk_size, current_budget
from hesse.linalg import dense_rule, diagonal_rule, entries_rule, norm_rule
from hesse.linalg.diagonal_rules import column_squares_rule
from hesse.linalg.products import work_dtype

_INDEX = torch.int64.itemsize
_NUMPY = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_FRONT = 1500  # unknowns along the narrowest cut through the image; at 1024 (8 x 64 x 64) sparse factors take 9 s, 0.5 GB


@dense_rule.register(Convolution)
def _dense(A: Convolution, memory: Budget | None = None) -> Tensor:
    """Every entry by its place, which takes about as long as writing it."""
    out, into = A.shape
    need = A.weight.element_size() * out * into + (A.weight.element_size() + 3 * _INDEX) * _count(A)
    chunk_size(1, need, 0, current_budget(memory, A.weight.device), f"the dense {out} x {into} matrix")
    rows, columns, values = _all_entries(A)
    return values.new_zeros(out * into).index_add(0, (rows * into + columns).flatten(), values.flatten()).reshape(out, into)


@dense_rule.register(TransposedConvolution)
def _dense_transposed(A: TransposedConvolution, memory: Budget | None = None) -> Tensor:
    return dense_rule(A.convolution, memory).mT


@entries_rule.register(Convolution)
def _entries(A: Convolution) -> Any:
    """None where sparse factors would fill up, or the entries do not fit the memory budget."""
    need = (A.weight.element_size() + 2 * _INDEX) * _count(A)
    if A.weight.dtype not in _NUMPY or _front(A.geometry) > _FRONT or 3 * need > current_budget(None, "cpu"):
        return None
    import scipy.sparse

    rows, columns, values = _all_entries(A)
    at = tuple(part.expand(values.shape).flatten().cpu().numpy() for part in (rows, columns))
    return scipy.sparse.coo_array((values.detach().resolve_conj().flatten().cpu().numpy(), at), shape=A.shape).tocsr()


def _count(A: Convolution) -> int:
    """At most so many entries."""
    return A.weight.numel() * math.prod(A.geometry.out_size)


def _all_entries(A: Convolution) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns, values of all entries: ``[out_channels, in_channels / groups, count]`` once broadcast; some twice."""
    g, device = A.geometry, A.weight.device
    cells, reads, taps = (part.to(device) for part in places(g))
    outputs = torch.arange(g.out_channels, device=device)[:, None, None]
    inputs = torch.arange(A.weight.shape[1], device=device)[:, None]
    first = outputs // g.one_group.out_channels * g.one_group.in_channels  # of the group
    rows, columns = outputs * math.prod(g.out_size) + cells, (first + inputs) * math.prod(g.size) + reads
    return rows, columns, A.weight.flatten(2)[:, :, taps]


def _front(g: Geometry) -> int:
    """Unknowns that a cut across the longest axis meets: channels of a group times the cross-section times the reach."""
    longest = max(range(g.ndim), key=lambda axis: g.size[axis])
    section = math.prod(n for axis, n in enumerate(g.size) if axis != longest)
    return g.in_channels // g.groups * section * max(min(g.reach[longest], g.size[longest]) - 1, 1)


@entries_rule.register(TransposedConvolution)
def _entries_transposed(A: TransposedConvolution) -> Any:
    known = entries_rule(A.convolution)
    return None if known is None else known.T


@diagonal_rule.register(Convolution)
def _diagonal(A: Convolution) -> Tensor | None:
    """Of a convolution between images of one shape; flat indices of different images meet in no pattern."""
    g = A.geometry
    if g.in_shape != g.out_shape:
        return None
    channels = torch.arange(g.out_channels, device=A.weight.device)
    entries = A.weight[channels, channels % A.weight.shape[1]]
    for axis in range(g.ndim):
        own = g.reads(axis) == torch.arange(g.size[axis])[:, None]
        entries = _along(entries, 1, own)
    return entries.flatten()


@diagonal_rule.register(TransposedConvolution)
def _diagonal_transposed(A: TransposedConvolution) -> Tensor | None:
    return diagonal_rule(A.convolution)


@norm_rule.register(Convolution)
def _norm(A: Convolution, ord: str | int) -> float | None:
    if ord != "fro":
        return None
    weight = A.weight.detach().to(work_dtype(A.weight.dtype))
    scale = float(weight.abs().max())
    if scale == 0:
        return 0.0
    squares, sets = _squares(A.geometry, weight / scale)
    for meeting in sets:
        squares = _along(squares, 2, meeting.cells.sum(0, keepdim=True))
    return scale * math.sqrt(float(squares.sum()))


@norm_rule.register(TransposedConvolution)
def _norm_transposed(A: TransposedConvolution, ord: str | int) -> float | None:
    return norm_rule(A.convolution, ord)


@column_squares_rule.register(Convolution)
def _column_squares(J: Convolution) -> Tensor | None:
    g = J.geometry
    squares, sets = _squares(g, J.weight)
    squares = squares.unflatten(0, (g.groups, -1)).sum(1).flatten(0, 1)  # [in_channels, *sets]
    for meeting in sets:
        squares = _along(squares, 1, meeting.cells)
    return squares.flatten().to(J.in_space.dtype)


@column_squares_rule.register(TransposedConvolution)
def _row_squares(J: TransposedConvolution) -> Tensor | None:
    squares, sets = _squares(J.convolution.geometry, J.convolution.weight)
    squares = squares.sum(1)
    for meeting in sets:
        squares = _along(squares, 1, meeting.windows)
    return squares.flatten().to(J.in_space.dtype)


def _squares(g: Geometry, weight: Tensor) -> tuple[Tensor, list[Any]]:
    """``[out_channels, in_channels / groups, *sets]``: squared sums of the taps that meet, and the sets of each axis."""
    sets = [meetings(g, axis) for axis in range(g.ndim)]
    for meeting in sets:
        weight = _along(weight, 2, meeting.taps)
    return weight.abs().square(), sets


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """A matrix applied along an axis, which becomes the last one."""
    return x.movedim(axis, -1) @ matrix.to(x).mT
