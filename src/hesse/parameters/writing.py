"""Rows written out, into memory of one's own or of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.core.errors import StructureError
from hesse.parameters.contractions import Use, row_blocks
from hesse.parameters.contractions.tokens import add_equal_tokens
from hesse.parameters.source import Source
from hesse.rules.forms import Contract, Lookup


def write(source: Source, tables: Mapping[str, Tensor]) -> None:
    """Write the rows of every parameter into its table ``[N, roots, size]`` (any strides)."""
    missing = {(root, name) for root in range(source.roots) for name in tables}

    def take(root: int, name: str, use: Use) -> None:
        missing.discard((root, name))
        table = tables[name][:, root]
        fill(table, use)

    source.visit(take)
    for root, name in missing:
        tables[name][:, root] = 0


def fill(table: Tensor, use: Use) -> None:
    """Write rows into a table ``[N, size]``: without a copy where they are outer products, or zero but for a few tokens."""
    if isinstance(use, Contract) and use.dims[1] == use.dims[2] == 1 and use.left.dtype == use.right.dtype == table.dtype:
        left, right = use.left[:].reshape(len(table), -1, 1), use.right[:].reshape(len(table), 1, -1)
        torch.mul(left, right, out=table.unflatten(1, (left.shape[1], right.shape[2])))
        return
    if isinstance(use, Lookup):
        sums, first = add_equal_tokens(use)
        sample = torch.arange(len(table), device=use.index.device).repeat_interleave(use.index.shape[1])
        table.zero_()
        table.unflatten(1, (use.table, -1)).index_put_((sample, use.index.flatten()), sums[first].to(table.dtype))
        return
    for s, rows in row_blocks(use, table.shape[1]):
        table[s] = rows


def differentiable_rows(source: Source, sizes: Mapping[str, int], like: Tensor) -> dict[str, Tensor]:
    """The rows of every parameter, ``[N, roots, size]``, with their graph."""
    found: dict[tuple[int, str], Tensor] = {}

    def take(root: int, name: str, use: Use) -> None:
        found[root, name] = torch.cat([rows for _, rows in row_blocks(use, sizes[name])])

    source.visit(take)
    zeros = {name: like.new_zeros(source.count, size) for name, size in sizes.items()}
    return {name: torch.stack([found.get((root, name), zeros[name]) for root in range(source.roots)], 1) for name in sizes}


def target_of(
    out: Any, shape: tuple[int, ...], dtype: torch.dtype | None, device: torch.device | None, name: str
) -> Tensor:
    """The memory behind a buffer of the user's, as a tensor without a graph.

    Args:
        out: a tensor, or a NumPy array (memory-mapped, too).
        shape, dtype, device: of the result; None: any floating-point dtype, any device.
        name: of the method that was given it, in error messages.

    Raises:
        StructureError: it is none of these, of another shape, dtype or device, read-only, or its entries share memory.
    """
    found = ""
    target: Any = out
    if isinstance(out, np.ndarray):
        found = "" if out.flags.writeable else "a read-only array"
        try:
            target = out if found else torch.from_numpy(out)
        except (TypeError, ValueError) as error:
            found = f"an array that is no tensor ({error})"
    elif not isinstance(out, Tensor):
        found = f"a {type(out).__name__}"
    if not found:
        pairs = ((tuple(target.shape), shape), (target.dtype, dtype), (target.device, device))
        asked = [(own, one) for own, one in pairs if one is not None]
        if any(own != one for own, one in asked):
            found = f"{' '.join(str(own) for own, _ in asked)} instead of {' '.join(str(one) for _, one in asked)}"
        elif dtype is None and not target.dtype.is_floating_point:
            found = f"numbers of {target.dtype}, which would cut off digits"
    if not found and any(size > 1 and stride == 0 for size, stride in zip(target.shape, target.stride(), strict=True)):
        found = "an expanded one, whose entries share memory"
    if found:
        kinds = ", dtype and device" if dtype is not None else ", of floating-point numbers"
        raise StructureError(
            f"{name}(out=) writes into a tensor or NumPy array of the result's shape{kinds}.",
            found,
            "pass torch.empty(shape, dtype=..., device=...) with these, or leave it out",
        )
    return target.detach()
