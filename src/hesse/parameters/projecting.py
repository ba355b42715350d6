"""Rows of a parameter Jacobian through a random projection."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.memory import chunk_size, current_budget
from hesse.operators.projections import RandomProjection
from hesse.parameters.contractions import Use, stack
from hesse.parameters.contractions.projected import Columns, projected, rows_at_once
from hesse.rules.forms import Dense

if TYPE_CHECKING:
    from hesse.parameters.base import JacobianBySample
    from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "J.project(P) takes the rows of a Jacobian through a random projection of its parameters."


def project(J: JacobianBySample, P: RandomProjection, out: Tensor | None = None) -> Tensor:
    """``[N, k]`` (``[N, C, k]``), block by block; see `JacobianBySample.project`."""
    _require_projection(J, P)
    shape, dtype, device = (*J.out_space.shapes[0], P.rows), P.out_space.dtype, J.in_space.device
    budget = current_budget(J.memory, device)
    result_bytes = 0 if out is not None else J.out_space.dim * P.rows * dtype.itemsize
    if result_bytes:
        chunk_size(1, result_bytes, 0, budget, f"{J.shape[0]} rows of {P.rows} numbers")
    elements = rows_at_once(budget - result_bytes, P.work_dtype.itemsize)
    if out is not None and (tuple(out.shape) != shape or out.dtype != dtype):
        found = f"{tuple(out.shape)} {out.dtype} instead of {shape} {dtype}"
        raise StructureError("project(P, out=) writes into a tensor of the result's shape and dtype.", found, "pass such a one")
    parts = []
    for samples, block in J.blocks():
        rows = _block(block, P, elements).reshape(samples.stop - samples.start, *shape[1:])
        if rows.requires_grad:
            _require_numbers(out)
            parts.append(rows.to(dtype))
            continue
        out = torch.empty(shape, dtype=dtype, device=device) if out is None else out
        out[samples] = rows
    return torch.cat(parts) if out is None else out


def _require_numbers(out: Tensor | None) -> None:
    if out is not None:
        raise StructureError("project(P, out=) writes numbers.", "create_graph=True", "leave out= away")


def _require_projection(J: JacobianBySample, P: RandomProjection) -> None:
    if not isinstance(P, RandomProjection):
        remedy = "pass hesse.random_projection(J, k); for other operators ask for hesse.dense(J @ A.T)"
        raise StructureError(_ASKED, type(P).__name__, remedy)
    if P.in_space != J.in_space:
        found = f"a projection of {P.in_space}, where J has {J.in_space}"
        raise StructureError(_ASKED, found, "make it by hesse.random_projection(J, k)")


def _block(J: ParameterJacobian, P: RandomProjection, elements: int) -> Tensor:
    """``[n * roots, k]`` by sample, then root, in the working dtype."""
    starts = [0, *itertools.accumulate(J.in_space.sizes)]
    columns = {name: Columns(start) for name, start in zip(J.in_space.names, starts, strict=False)}
    count, roots = J.source.count, J.source.roots
    found = torch.zeros(roots, count, P.rows, dtype=P.work_dtype, device=J.in_space.device)
    if roots == 1 or J.held_bytes is None:
        parts = list(found)

        def take(root: int, name: str, use: Use) -> None:
            part = projected(use, P, columns[name], elements)
            parts[root] = parts[root] + part if part.requires_grad else parts[root].add_(part)

        J.source.visit(take)
        return torch.stack(parts, 1).flatten(0, 1)
    for name, use in _over_roots(J).items():
        found = found + projected(use, P, columns[name], elements).unflatten(0, (roots, count))
    return found.transpose(0, 1).flatten(0, 1)


def _over_roots(J: ParameterJacobian) -> dict[str, Use]:
    """The uses of every parameter in all roots, one root after the other: columns of P are made once for all."""
    uses = J.source.collect()
    sizes = dict(zip(J.in_space.names, J.in_space.sizes, strict=True))
    nothing = torch.zeros(1, dtype=J.in_space.dtype, device=J.in_space.device)
    names = [name for name in sizes if any(name in root for root in uses)]
    return {
        name: stack([root.get(name, Dense(nothing.expand(J.source.count, sizes[name]))) for root in uses]) for name in names
    }
