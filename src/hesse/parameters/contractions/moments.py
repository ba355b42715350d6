"""Kronecker moments: the second moments of the two factors of a layer's rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.errors import UnsupportedError
from hesse.parameters.contractions.uses import CACHE_ELEMENTS, Use, flat_rows, in_cache, wide
from hesse.rules.forms import Contract, Dense, Lookup

Approximation = Literal["expand", "reduce"]


@dataclass(frozen=True, eq=False)
class Moments:
    """``sum_n j[n] j[n]^T`` of one parameter, approximated by ``left[G] (x) right[G]`` in every group G.

    The rows of the parameter, of shape ``[G, a, b]`` (its own shape otherwise viewed), have factors of a and b numbers.

    Attributes:
        left: ``[G, a, a]``; ``[G, a]``, a diagonal, for an embedding table.
        right: ``[G, b, b]``.
        kind: "kronecker", or "exact" for parameters without two factors (biases, norm affines): left is ``[1, 1, 1]`` there.
    """

    left: Tensor
    right: Tensor
    kind: Literal["kronecker", "exact"]

    def dense(self) -> Tensor:
        """The matrix ``[size, size]`` written out."""
        left = torch.diag_embed(self.left) if self.left.ndim == 2 else self.left
        return torch.block_diag(*(torch.kron(a, b) for a, b in zip(left, self.right, strict=True)))

    def __repr__(self) -> str:
        return f"Moments({self.kind}: {tuple(self.left.shape)} (x) {tuple(self.right.shape)})"


def moments(use: Use, name: str, approximation: Approximation) -> Moments:
    """The Kronecker moments of one parameter (Martens, Grosse 2015; shared weights: Eschenhagen et al. 2023).

    With n samples and t shared positions, "expand" takes all n t positions as samples, "reduce" adds up positions first. Both
    are exact for t = 1 and one sample. Tokens without a cotangent (padding) are not counted.

    Raises:
        UnsupportedError: uses of different kinds in one parameter, which have no common factors.
    """
    if isinstance(use, Contract):
        return _contract(use, approximation)
    if isinstance(use, Lookup):
        return _lookup(use, approximation)
    if isinstance(use, Dense):
        rows = flat_rows(use, slice(None))
        return Moments(rows.new_ones(1, 1, 1), (rows.mT @ rows).unsqueeze(0), "exact")
    raise UnsupportedError(
        "moments() needs rows that are products of two factors.",
        f"'{name}' is used in several ways ({type(use).__name__.lower()} rows)",
        "leave it out: J.select(params=...).moments(), or use sum_of_squares() for it",
    )


def _contract(use: Contract, approximation: Approximation) -> Moments:
    n, groups, t, a, b = use.dims
    left = right = None
    for s in in_cache(n, groups * t * (a + b)):
        parts = [wide(rows[s]) for rows in (use.left, use.right)]
        if approximation == "reduce":
            parts = [part.sum(2, keepdim=True) for part in parts]
        L, R = (part.movedim(1, 0).flatten(1, 2) for part in parts)
        left = L.mT @ L if left is None else left + L.mT @ L
        right = R.mT @ R if right is None else right + R.mT @ R
    assert left is not None and right is not None
    return Moments(left, right / (n * (t if approximation == "expand" else t * t)), "kronecker")


def _lookup(use: Lookup, approximation: Approximation) -> Moments:
    n, t, d = use.g.shape
    counts = torch.zeros(use.table, dtype=wide(use.g).dtype, device=use.g.device)
    right = counts.new_zeros(d, d)
    for s in slices(n, max(1, CACHE_ELEMENTS // max(t * d, 1))):
        g = wide(use.g[s])
        g = g.flatten(0, 1) if approximation == "expand" else g.sum(1)
        right = right + g.mT @ g
    flat, live = use.index.flatten(), (use.g != 0).any(2).flatten().to(counts.dtype)
    if approximation == "expand":
        counts = counts.index_add(0, flat, live)
        return Moments(counts.unsqueeze(0), (right / live.sum().clamp(min=1)).unsqueeze(0), "kronecker")
    raise UnsupportedError(
        "The 'reduce' moments of an embedding table are a dense matrix of its tokens.",
        f"{use.table} tokens",
        "use approximation='expand'",
    )


def add_moments(roots: list[Moments]) -> Moments:
    """The moments of the rows of several roots together (their inputs are the same, their cotangents differ)."""
    first = roots[0]
    if len(roots) == 1:
        return first
    left, right = (torch.stack([getattr(m, side) for m in roots]).sum(0) for side in ("left", "right"))
    return replace(first, left=left / len(roots), right=right)
