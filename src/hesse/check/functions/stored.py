"""Sparse leaves: what they store moves, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@dataclass(frozen=True, eq=False)
class Stored:
    """The pattern of a sparse tensor, and its values.

    Attributes:
        values: that it stores.
        tensor: values -> the sparse tensor, differentiable.
    """

    values: Tensor
    tensor: Callable[[Tensor], Tensor]


def stored(leaf: Tensor) -> Stored | None:
    """The pattern and the values of a sparse tensor; None for a dense one.

    Entries of an uncoalesced tensor are added up first, as every reader of it sees their sum.
    """
    if leaf.layout is torch.sparse_coo:
        whole = leaf.coalesce()
        indices, shape = whole.indices(), whole.shape
        return Stored(
            whole.values(), lambda v: torch.sparse_coo_tensor(indices, v, shape, is_coalesced=True, check_invariants=False)
        )
    if leaf.layout in _COMPRESSED:
        by_row = leaf.layout in (torch.sparse_csr, torch.sparse_bsr)
        outer = leaf.crow_indices() if by_row else leaf.ccol_indices()
        inner = leaf.col_indices() if by_row else leaf.row_indices()
        layout, shape = leaf.layout, leaf.shape
        return Stored(
            leaf.values(),
            lambda v: torch.sparse_compressed_tensor(outer, inner, v, shape, layout=layout, check_invariants=False),
        )
    return None
