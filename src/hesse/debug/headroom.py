"""How many bits are left before a step overflows, line by line: `exponent_headroom`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hesse.autodiff.events.headroom import Extremes, bits_below, measuring
from hesse.autodiff.graphs.modules import ModulePaths
from hesse.autodiff.source_lines import Place

_SHOWN = 20
_FORWARD = ("forward", "backward", "double backward")


@dataclass(frozen=True)
class OpHeadroom:
    """The magnitudes that one op had at one line, in one module.

    Attributes:
        op: the op's name ("aten.mul.Tensor").
        phase: "forward", "backward" or "double backward".
        dtype: the type that is judged by.
        file, line, function: the user's line; of the forward op for ops of a backward pass. Empty where unknown.
        module: the path of the module whose call runs the op; empty outside of modules.
        largest: the largest finite magnitude that it returned.
        headroom: how often that can double before it overflows, in bits; negative beyond the type's range.
        underflow: the fraction of nonzero entries below the smallest normal number.
        calls: how many outputs were measured.
        overflowed: it made an infinity of finite numbers.
    """

    op: str
    phase: str
    dtype: torch.dtype
    file: str
    line: int
    function: str
    module: str
    largest: float
    headroom: float
    underflow: float
    calls: int
    overflowed: bool


@dataclass(frozen=True)
class HeadroomReport:
    """The ops of a step with the least headroom first; prints as a table of the first 20.

    Attributes:
        rows: one for each op, line, module, phase and type.
    """

    rows: tuple[OpHeadroom, ...]

    @property
    def smallest(self) -> OpHeadroom | None:
        """The op that is nearest to overflow; None of a step without floating-point ops."""
        return self.rows[0] if self.rows else None

    @property
    def underflows(self) -> tuple[OpHeadroom, ...]:
        """The ops that gave subnormal numbers, the largest share first."""
        return tuple(sorted((row for row in self.rows if row.underflow), key=lambda row: -row.underflow))

    @property
    def text(self) -> str:
        """The table as `str()` gives it."""
        if not self.rows:
            return "no floating-point op ran"
        head = ("bits", "largest", "underflow", "dtype", "phase", "op", "module", "line")
        table = [head, *(_cells(row) for row in self.rows[:_SHOWN])]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in table]
        more = len(self.rows) - _SHOWN
        return "\n".join([*lines, *([f"... and {more} more"] if more > 0 else [])])

    def __str__(self) -> str:
        return self.text


def _cells(row: OpHeadroom) -> tuple[str, ...]:
    bits = "over" if row.overflowed or row.headroom < 0 else f"{row.headroom:.1f}"
    dtype, op = str(row.dtype).removeprefix("torch."), row.op.removeprefix("aten.")
    where = f"{row.file}:{row.line} in {row.function}" if row.file else ""
    return bits, f"{row.largest:.3g}", f"{row.underflow:.2%}", dtype, row.phase, op, row.module, where


class _Tally:
    """Adds up what was measured, op by op."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], list[Any]] = {}

    def add(self, op: str, place: Place, found: Extremes) -> None:
        phase = _FORWARD[min(place.order, 2)]
        key = (op, phase, found.dtype, place.source, place.module)
        row = self.rows.setdefault(key, [0.0, 0, 0, 0, False])
        row[0] = max(row[0], found.largest)
        row[1] += found.nonzero
        row[2] += found.small
        row[3] += 1
        row[4] |= found.overflowed

    def report(self) -> HeadroomReport:
        made = []
        for (op, phase, dtype, source, module), (largest, nonzero, small, calls, over) in self.rows.items():
            file, line, function = source or ("", 0, "")
            bits = -math.inf if over else bits_below(largest, dtype)
            share = small / nonzero if nonzero else 0.0
            made.append(OpHeadroom(op, phase, dtype, file, line, function, module, largest, bits, share, calls, over))
        return HeadroomReport(tuple(sorted(made, key=lambda row: (row.headroom, -row.underflow))))


def exponent_headroom(step: Callable[[], Any], *, dtype: torch.dtype | None = None) -> HeadroomReport:
    """Run a training step once and measure how near each op comes to overflow and underflow, before it happens.

    Args:
        step: runs one training step, or a part of one; without arguments. Its effects stand.
        dtype: judge every op as if its outputs were of this type: what would overflow in float16, asked of a float32 run. By
            default each output by its own type.

    Returns:
        A `HeadroomReport`: for each op and line the largest magnitude, the bits left before overflow and the share of entries
        below the smallest normal number, forward and backward; the nearest to overflow first. An op that overflows has minus
        infinity bits.

    Raises:
        Exception: what the step raises.

    Cost: one step and five passes over each op's output: 2 to 4 steps.
    """
    tally = _Tally()
    with measuring(tally.add, dtype) as watch:

        def enter(path: str) -> None:
            watch.places.module = path

        with ModulePaths(enter).watching():
            step()
    return tally.report()
