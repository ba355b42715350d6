"""The uses of one parameter, added up before any square is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.rules.forms import Chained, Contract, Dense, Form, Lookup, Part, Rows, inside

CACHE_ELEMENTS = 2**19  # rows worked on at a time: what stays in a core's cache (2 MiB of float32)
_CHAINED_ELEMENTS = 2**21  # the same for rows that autograd brings back, a call for each


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

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.forms[0].count

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, *shape]``."""
        return sum_rows(self.forms, self.shape, samples)


@dataclass(frozen=True, eq=False)
class Parts:
    """Uses of disjoint boxes of a parameter; its rows are zero outside of them.

    Attributes:
        uses: the box, ``(start, stop)`` along every axis, and the use of each.
        whole: the parameter's shape.
    """

    uses: tuple[tuple[tuple[tuple[int, int], ...], Use], ...]
    whole: torch.Size

    @property
    def count(self) -> int:
        """The number of samples."""
        return self.uses[0][1].count

    def dense(self, samples: slice = slice(None)) -> Tensor:
        """The rows of some samples, ``[n, *whole]``."""
        rows = [use.dense(samples) for _, use in self.uses]
        result = rows[0].new_zeros(len(rows[0]), *self.whole)
        for (box, _), part in zip(self.uses, rows, strict=True):
            place = inside(result, box)
            place.copy_(part.reshape(place.shape))
        return result


Use = Contract | Lookup | Dense | Mixed | Parts | Chained


def merge(forms: Sequence[Form], shape: torch.Size) -> Use:
    """One form for all uses of a parameter of the given shape (at least one use)."""
    if any(isinstance(form, Part) for form in forms):
        return _merge_parts(forms, shape)
    if len(forms) == 1:
        return forms[0]  # pyright: ignore[reportReturnType]
    contracts = [form for form in forms if isinstance(form, Contract)]
    if len(contracts) == len(forms) and len({(c.dims[1], *c.dims[3:]) for c in contracts}) == 1:
        return Contract(_Joined([c.left for c in contracts]), _Joined([c.right for c in contracts]))
    lookups = [form for form in forms if isinstance(form, Lookup)]
    if len(lookups) == len(forms) and len({(f.table, f.g.shape[2]) for f in lookups}) == 1:
        return Lookup(torch.cat([f.index for f in lookups], 1), torch.cat([f.g for f in lookups], 1), lookups[0].table)
    if all(isinstance(form, Dense) for form in forms):
        return Dense(sum_rows(forms, shape, slice(None)))
    return Mixed(tuple(forms), shape)


def _merge_parts(forms: Sequence[Form], shape: torch.Size) -> Use:
    by_box: dict[tuple[tuple[int, int], ...], list[Form]] = {}
    for form in forms:
        if isinstance(form, Part):
            by_box.setdefault(form.box, []).append(form.form)
        else:
            by_box.setdefault(tuple((0, size) for size in shape), []).append(form)
    boxes = list(by_box)
    if any(_overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
        return Mixed(tuple(forms), shape)
    uses = [(box, merge(inner, torch.Size(stop - start for start, stop in box))) for box, inner in by_box.items()]
    return Parts(tuple(uses), shape)


def _overlap(first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> bool:
    return all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in zip(first, second, strict=True))


def sum_rows(forms: Sequence[Form], shape: torch.Size, samples: slice) -> Tensor:
    """The rows of some samples, all forms added up, ``[n, *shape]``."""
    parts = [wide(form.dense(samples)) for form in forms]
    total = parts[0].reshape(parts[0].shape[0], *shape)
    for part in parts[1:]:
        total = total + part.reshape(total.shape)
    return total


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every tensor that a use (or a part of one) is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Contract):
        yield from tensors_in(value.left)
        yield from tensors_in(value.right)
    elif isinstance(value, Dense):
        yield value.rows
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from tensors_in(getattr(value, part.name))


def is_chained(use: Use | Form) -> bool:
    """Whether autograd brings the rows back (through a graph that reads the parameters)."""
    if isinstance(use, Mixed):
        return any(is_chained(form) for form in use.forms)
    if isinstance(use, Parts):
        return any(is_chained(part) for _, part in use.uses)
    return isinstance(use, Chained) or (isinstance(use, Part) and is_chained(use.form))


def wide(tensor: Tensor) -> Tensor:
    """16-bit numbers are accumulated in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def in_cache(count: int, elements_per_sample: int) -> Iterator[slice]:
    """Slices of samples whose work stays in cache."""
    return slices(count, max(1, CACHE_ELEMENTS // max(elements_per_sample, 1)))


def row_blocks(use: Use, size: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a parameter with `size` elements, ``[n, size]``, a few samples at a time."""
    elements = _CHAINED_ELEMENTS if is_chained(use) else CACHE_ELEMENTS
    for s in slices(use.count, max(1, elements // max(size, 1))):
        yield s, flat_rows(use, s)


def flat_rows(use: Use, samples: slice) -> Tensor:
    """The rows of some samples, ``[n, parameters]``."""
    rows = wide(use.dense(samples))
    return rows.reshape(rows.shape[0], -1)
