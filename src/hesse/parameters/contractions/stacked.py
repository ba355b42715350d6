"""Rows of several roots, one root after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.parameters.contractions.uses import Mixed, Parts, Use, flat_rows
from hesse.rules.forms import Contract, Dense, Lookup, Rows
from hesse.rules.layers.convolution import Patches


@dataclass(frozen=True, eq=False)
class _Stacked:
    """Rows of several roots, one root after the other along the samples."""

    parts: Sequence[Any]
    cut: Callable[[Any, slice], Tensor]
    shape: torch.Size

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def count(self) -> int:
        return self.shape[0]

    def __getitem__(self, samples: slice) -> Tensor:
        return self.dense(samples)

    def dense(self, samples: slice = slice(None)) -> Tensor:
        start, stop, _ = samples.indices(self.shape[0])
        each = self.shape[0] // len(self.parts)
        found = []
        for i, part in enumerate(self.parts):
            first, last = max(start - i * each, 0), min(stop - i * each, each)
            if first < last:
                found.append(self.cut(part, slice(first, last)))
        return torch.cat(found)


def stack(uses: list[Use]) -> Use:
    """The rows of several roots, one root after the other along the samples."""
    if len(uses) == 1:
        return uses[0]
    contracts = [use for use in uses if isinstance(use, Contract)]
    if len(contracts) == len(uses) and len({use.dims[1:] for use in contracts}) == 1:
        return Contract(_stack_rows([use.left for use in contracts]), _stack_rows([use.right for use in contracts]))
    lookups = [use for use in uses if isinstance(use, Lookup)]
    if len(lookups) == len(uses) and len({use.index.shape[1] for use in lookups}) == 1:
        return Lookup(torch.cat([use.index for use in lookups]), torch.cat([use.g for use in lookups]), lookups[0].table)
    parts = [use for use in uses if isinstance(use, Parts)]
    if len(parts) == len(uses) and len({tuple(box for box, _ in use.uses) for use in parts}) == 1:
        columns = zip(*(use.uses for use in parts), strict=True)
        return Parts(tuple((column[0][0], stack([use for _, use in column])) for column in columns), parts[0].whole)
    if all(isinstance(use, Dense) for use in uses):
        return Dense(torch.cat([use.dense() for use in uses]))
    width = flat_rows(uses[0], slice(0, 1)).shape[1]
    form = _Stacked(uses, flat_rows, torch.Size((sum(use.count for use in uses), width)))
    return Mixed((form,), torch.Size((width,)))  # pyright: ignore[reportArgumentType]


def _stack_rows(parts: list[Rows]) -> Rows:
    patches = [part for part in parts if isinstance(part, Patches)]
    if len(patches) == len(parts):
        return replace(patches[0], image=torch.cat([part.image for part in patches]))
    n, *rest = parts[0].shape
    return _Stacked(parts, lambda rows, s: rows[s], torch.Size((n * len(parts), *rest)))
