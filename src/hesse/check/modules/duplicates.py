"""Indices that occur twice: the gradient of a row that is looked up twice is the sum of both."""

from __future__ import annotations

from torch import Tensor

from hesse.check.modules.exact import check_slope, exact_specimen
from hesse.check.modules.ledger import Ledger
from hesse.check.modules.specimen import Specimen


def check_duplicates(specimen: Specimen, ledger: Ledger) -> None:
    """Compare the derivative with a difference where one half of an input's indices, the smaller ones, stands in both halves.

    Integers that never fall may be offsets, whose order matters: they are left alone. Others may be lengths of parts of
    something: what stands there afterwards has no larger sum.

    Cost: 1 gradient and usually 4 evaluations for each input of integers that are not repeated already.
    """
    s = specimen
    for name, t in s.call.constants():
        if t.is_floating_point() or t.is_complex() or not _are_distinct(t):
            continue
        own, s.call = s.call, s.call.changed({name: _doubled(t)})
        try:
            exact = exact_specimen(s)
            if exact is not None:
                check_slope(exact, ledger, f"duplicated indices in '{name}'")
                s.evaluations += exact.evaluations
        finally:
            s.call = own


def _are_distinct(t: Tensor) -> bool:
    """Whether these may be indices, none of which occurs twice."""
    if t.dtype.itemsize < 4 or t.numel() < 2 or t.unique().numel() < t.numel():
        return False
    return t.dim() > 1 or bool((t.diff() < 0).any())


def _doubled(t: Tensor) -> Tensor:
    flat = t.flatten().clone()
    count = flat.numel() // 2
    first, last = flat[:count].clone(), flat[-count:].clone()
    flat[:count] = flat[-count:] = first if first.sum() <= last.sum() else last
    return flat.view(t.shape)
