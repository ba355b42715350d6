"""How the terms of a window become one number: block by block, all at once, and backwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.core.errors import StructureError

NAMES = ("sum", "mean", "prod", "max", "min", "logsumexp")
Reduce = str | Callable[[Tensor, int], Any]


@dataclass(frozen=True)
class Reduction:
    """An associative reduction over the first axis.

    Attributes:
        partial: of a block of terms.
        combine: writes the reduction of its two arguments into the first.
        whole: of all terms, in operations that can be differentiated to any order, also where a term is zero.
    """

    partial: Callable[[Tensor], Tensor]
    combine: Callable[[Tensor, Tensor], Any]
    whole: Callable[[Tensor], Tensor]


def _product(terms: Tensor) -> Tensor:
    """The product over the first axis, in pairs: its derivatives of any order are right where terms are zero."""
    while terms.shape[0] > 1:
        half = terms.shape[0] // 2
        pairs = terms[:half] * terms[half : 2 * half]
        terms = torch.cat([pairs, terms[2 * half :]]) if terms.shape[0] % 2 else pairs
    return terms[0]


def _sum(terms: Tensor) -> Tensor:
    return terms.sum(0)


def _amax(terms: Tensor) -> Tensor:
    return terms.amax(0)


def _amin(terms: Tensor) -> Tensor:
    return terms.amin(0)


def _prod(terms: Tensor) -> Tensor:
    return terms.prod(0)


def _logsumexp(terms: Tensor) -> Tensor:
    return terms.logsumexp(0)


def _mean(terms: Tensor) -> Tensor:
    return terms.mean(0)


REDUCTIONS = {
    "sum": Reduction(_sum, Tensor.add_, _sum),
    "mean": Reduction(_sum, Tensor.add_, _mean),  # divided by the number of taps at the end
    "prod": Reduction(_prod, Tensor.mul_, _product),
    "max": Reduction(_amax, lambda total, part: torch.maximum(total, part, out=total), _amax),
    "min": Reduction(_amin, lambda total, part: torch.minimum(total, part, out=total), _amin),
    "logsumexp": Reduction(_logsumexp, lambda total, part: torch.logaddexp(total, part, out=total), _logsumexp),
}  # fmt: skip


def whole(reduce: Reduce, terms: Tensor) -> Tensor:
    """The reduction of all terms over the first axis, by name or by the user's function.

    Args:
        reduce: a name, or a callable ``(tensor, dim)``.
        terms: ``[window, groups, filters, positions]``.

    Returns:
        ``[groups, filters, positions]``.

    Raises:
        StructureError: the user's function returned something else.
    """
    if isinstance(reduce, str):
        return REDUCTIONS[reduce].whole(terms)
    result = reduce(terms, 0)
    result = getattr(result, "values", result) if isinstance(result, tuple) else result
    if not isinstance(result, Tensor) or result.shape != terms.shape[1:]:
        found = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise StructureError(
            "reduce(tensor, dim) takes the terms of each window to one number: it removes the axis `dim`.",
            f"{found}, from terms of shape {tuple(terms.shape)} and dim=0",
            "return the tensor without that axis, as torch.sum(tensor, dim) does",
        )
    return result


def is_delicate(reduce: str, out: Tensor) -> bool:
    """Whether the quotient ``out / term``, the product of the other terms, may be wrong: zeros, subnormals, infinities."""
    if reduce != "prod":
        return False
    size = out.abs()
    return not bool(((size >= torch.finfo(out.dtype).tiny) & (size < torch.inf)).all())


def cotangents(reduce: str, terms: Tensor, g: Tensor, out: Tensor | None, count: Tensor | None, window: int) -> Tensor:
    """The cotangents of a block of terms.

    Args:
        reduce: a name.
        terms: ``[T, groups, filters, positions]``.
        g: cotangents of the outputs, ``[groups, filters, positions]``.
        out: the outputs, where the rule needs them: for "prod" none of them zero.
        count: for "max" and "min": how many terms equal the output; they share its cotangent evenly.
        window: taps of a window.

    Returns:
        Of the shape of the terms, or expanded to it.
    """
    if reduce == "sum":
        return g.expand_as(terms)
    if reduce == "mean":
        return (g / window).expand_as(terms)
    assert out is not None
    if reduce == "prod":
        return g * (out / terms).conj() if terms.is_complex() else (g * out) / terms
    if reduce == "logsumexp":
        return torch.exp(terms - out.masked_fill(out == -torch.inf, 0)).mul_(g)
    assert count is not None
    return (terms == out).to(terms.dtype).mul_(g / count)
