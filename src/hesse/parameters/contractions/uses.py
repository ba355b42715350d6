"""The uses of one parameter, added up before any square is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.rules.forms import Contract, Dense, Form, Lookup, Rows

CACHE_ELEMENTS = 2**19  # rows worked on at a time: what stays in a core's cache (2 MiB of float32)


@dataclass(frozen=True, eq=False)
class _Joined:
    """Rows of several uses, one after the other along the shared positions."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> torch.Size:
        n, groups, _, width = self.parts[0].shape
        return torch.Size((n, groups, sum(part.shape[2] for part in self.parts), width))

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def __getitem__(self, samples: slice) -> Tensor:
        return torch.cat([part[samples] for part in self.parts], 2)


@dataclass(frozen=True, eq=False)
class Mixed:
    """Uses of different forms, which add up only as dense rows."""

    forms: tuple[Form, ...]
    shape: torch.Size

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, *shape]``."""
        return sum_rows(self.forms, self.shape, samples)


Use = Contract | Lookup | Dense | Mixed


def merge(forms: Sequence[Form], shape: torch.Size) -> Use:
    """One form for all uses of a parameter of the given shape (at least one use)."""
    if len(forms) == 1:
        return forms[0]
    contracts = [form for form in forms if isinstance(form, Contract)]
    if len(contracts) == len(forms) and len({(c.dims[1], *c.dims[3:]) for c in contracts}) == 1:
        return Contract(_Joined([c.left for c in contracts]), _Joined([c.right for c in contracts]))
    lookups = [form for form in forms if isinstance(form, Lookup)]
    if len(lookups) == len(forms):
        return Lookup(torch.cat([f.index for f in lookups], 1), torch.cat([f.g for f in lookups], 1), lookups[0].table)
    if all(isinstance(form, Dense) for form in forms):
        return Dense(sum_rows(forms, shape, slice(None)))
    return Mixed(tuple(forms), shape)


def sum_rows(forms: Sequence[Form], shape: torch.Size, samples: slice) -> Tensor:
    """The rows of some samples, all forms added up, ``[n, *shape]``."""
    parts = [wide(form.dense(samples)) for form in forms]
    return (
        torch.stack([part.reshape(part.shape[0], *shape) for part in parts]).sum(0)
        if len(parts) > 1
        else parts[0].reshape(parts[0].shape[0], *shape)
    )


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor that a use (or a part of one) is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors_in(getattr(value, part.name))


def wide(tensor: Tensor) -> Tensor:
    """16-bit numbers are accumulated in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def samples_of(use: Use) -> int:
    """How many samples a use has rows for."""
    if isinstance(use, Contract):
        return use.left.shape[0]
    if isinstance(use, Mixed):
        return samples_of(use.forms[0])
    return use.index.shape[0] if isinstance(use, Lookup) else use.rows.shape[0]


def in_cache(count: int, elements_per_sample: int) -> Iterator[slice]:
    """Slices of samples whose work stays in cache."""
    return slices(count, max(1, CACHE_ELEMENTS // max(elements_per_sample, 1)))


def flat_rows(use: Use, samples: slice) -> Tensor:
    """The rows of some samples, ``[n, parameters]``."""
    rows = wide(use.dense(samples))
    return rows.reshape(rows.shape[0], -1)


def combine_equal_tokens(use: Lookup) -> tuple[Tensor, Tensor]:
    """For each place the sum of the cotangents of all equal tokens of its sample, and whether it is the token's first place.

    Returns ``[n, t, d]`` and ``[n, t]``: an embedding's rows with no one-hot array. Cost: n t^2 d multiplications.
    """
    equal = use.index.unsqueeze(2) == use.index.unsqueeze(1)
    g = wide(use.g)
    earlier = equal.tril(-1).any(2)
    return equal.to(g.dtype) @ g, ~earlier
