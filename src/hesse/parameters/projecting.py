"""Rows of a parameter Jacobian through a random projection."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.core.memory import chunk_size, current_budget
from hesse.operators.projections import RandomProjection
from hesse.parameters.contractions import Use
from hesse.parameters.contractions.projected import Columns, projected, rows_at_once
from hesse.parameters.writing import target_of

if TYPE_CHECKING:
    from hesse.parameters.base import JacobianBySample
    from hesse.parameters.jacobian import ParameterJacobian

_ASKED = "J.project(P) takes the rows of a Jacobian through a random projection of its parameters."


def project(J: JacobianBySample, P: RandomProjection, out: Any = None) -> Any:
    """``[N, k]`` (``[N, C, k]``), block by block; see `JacobianBySample.project`."""
    require_projection(J, P)
    shape, dtype, device = (*J.out_space.shapes[0], P.rows), P.out_space.dtype, J.in_space.device
    budget = current_budget(J.memory, device)
    result_bytes = 0 if out is not None else J.out_space.dim * P.rows * dtype.itemsize
    if result_bytes:
        chunk_size(1, result_bytes, 0, budget, f"{J.shape[0]} rows of {P.rows} numbers")
    elements = rows_at_once(budget - result_bytes, P.work_dtype.itemsize)
    target = None if out is None else target_of(out, shape, dtype, device, "project")
    parts = []
    found = J.each(lambda block, part: _block(block, P, elements), "projected rows", result_bytes)
    for samples, values in found:
        rows = values.reshape(samples.stop - samples.start, *shape[1:])
        if rows.requires_grad:
            _require_numbers(target)
            parts.append(rows.to(dtype))
            continue
        target = torch.empty(shape, dtype=dtype, device=device) if target is None else target
        target[samples] = rows
    if parts:
        return torch.cat(parts)
    return target if out is None else out


def _require_numbers(out: Tensor | None) -> None:
    if out is not None:
        raise StructureError("project(P, out=) writes numbers.", "create_graph=True", "leave out= away")


def require_projection(J: JacobianBySample, P: RandomProjection) -> None:
    """Refuse what is no random projection of the parameters of a Jacobian.

    Raises:
        StructureError: something else, or one of another space.
    """
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
    shapes = dict(zip(J.in_space.names, J.in_space.shapes, strict=True))
    nothing = torch.zeros(1, dtype=J.in_space.dtype, device=J.in_space.device)
    for name, use in J.source.stacked(shapes, nothing).items():  # columns of P are made once for all roots
        found = found + projected(use, P, columns[name], elements).unflatten(0, (roots, count))
    return found.transpose(0, 1).flatten(0, 1)
