"""How near every op of a step comes to the largest and smallest numbers of a floating-point type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.events.ops import checkable, has_own_dispatch, knowledge, tensors
from hesse.autodiff.events.records import all_finite, entries
from hesse.autodiff.source_lines import Place, SourceMap


@dataclass(frozen=True)
class Extremes:
    """The magnitudes of what an op returned or wrote.

    Attributes:
        largest: of the finite entries.
        nonzero: how many entries are not zero.
        small: how many of these are smaller than the smallest normal number of the type.
        overflowed: an entry is infinite although the op was given finite numbers only, and no infinite constant.
        dtype: the type that counts.
    """

    largest: float
    nonzero: int
    small: int
    overflowed: bool
    dtype: torch.dtype


class MagnitudeWatch(LightMode):
    """Measures the outputs of every op that runs.

    Args:
        see_op: called with the op's name, its place, and the `Extremes` of each output.
        dtype: judge all outputs as if they were of this type; by default each by its own.

    Attributes:
        places: where ops come from; its `module` is the owner's to set.
    """

    def __init__(self, see_op: Callable[[str, Place, Extremes], Any], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.places = SourceMap()
        self._see_op, self._dtype = see_op, dtype

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op and measure its outputs; ops on tensors that wrap others are left to those."""
        place, known = self.places.place(), knowledge(func)
        given = list(tensors((*args, *kwargs.values())))
        if any(has_own_dispatch(type(value)) for value in given):
            return NotImplemented
        written = known.written(args, kwargs)
        own = {id(value) for value in written}
        given = [value for value in given if id(value) not in own]
        outputs = func(*args, **kwargs)
        if known.view or known.unfilled:
            return outputs
        with _disable_current_modes():
            for value in {id(value): value for value in (*tensors(outputs), *written)}.values():
                if checkable(value):
                    extremes = self._measured(value)
                    over = extremes.overflowed and not known.meant and all(map(_fine, given))
                    self._see_op(str(func), place, Extremes(*_fields(extremes, over)))
        return outputs

    def _measured(self, value: Tensor) -> Extremes:
        dtype = self._dtype or (value.dtype if not value.is_complex() else value.real.dtype)
        size = entries(value).abs()
        finite = torch.isfinite(size)
        infinite = bool(torch.isinf(size).any())
        size = size if not infinite and bool(finite.all()) else size[finite]
        if not size.numel():
            return Extremes(0.0, 0, 0, infinite, dtype)
        nonzero = size > 0
        small = nonzero & (size < torch.finfo(dtype).smallest_normal)
        return Extremes(float(size.max()), int(nonzero.sum()), int(small.sum()), infinite, dtype)


def _fields(found: Extremes, overflowed: bool) -> tuple[Any, ...]:
    return found.largest, found.nonzero, found.small, overflowed, found.dtype


def _fine(value: Tensor) -> bool:
    return not checkable(value) or all_finite(value)


def bits_below(largest: float, dtype: torch.dtype) -> float:
    """How many times a magnitude can double before it overflows.

    Args:
        largest: the magnitude.
        dtype: a floating-point type.

    Returns:
        ``log2(largest number of the type / magnitude)``, in bits; infinite for zero, negative beyond the type's range.
    """
    return math.inf if largest == 0 else math.log2(torch.finfo(dtype).max) - math.log2(largest)


@contextmanager
def measuring(see_op: Callable[[str, Place, Extremes], Any], dtype: torch.dtype | None = None) -> Iterator[MagnitudeWatch]:
    """Measure the outputs of every op while the block runs.

    Args:
        see_op: as for `MagnitudeWatch`.
        dtype: as for `MagnitudeWatch`.

    Yields:
        The mode.

    Cost: five passes over every output.
    """
    with MagnitudeWatch(see_op, dtype) as watch:
        yield watch
