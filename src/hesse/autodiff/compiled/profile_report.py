"""The report of a profile: counts, seconds and the costliest ops, as data and as a table of text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from hesse.autodiff.source_lines import Frame, Phase

ProfileMode = Literal["off", "summary", "detailed"]
_TOP = 10


class OpKey(NamedTuple):
    """What ops are told apart by: name, phase, and the user's line (None where it is not known)."""

    op: str
    phase: Phase
    source: Frame | None


@dataclass(frozen=True)
class OpTime:
    """All runs of one op on one line.

    Attributes:
        op, phase, source: as in `OpKey`.
        runs: how many times it ran.
        seconds: in all.
        of_phase: share of the phase's seconds in ops, 0 to 1.
        of_all: share of all seconds in ops, 0 to 1.
    """

    op: str
    phase: Phase
    source: Frame | None
    runs: int
    seconds: float
    of_phase: float
    of_all: float


@dataclass(frozen=True)
class ProfileReport:
    """The counts and seconds of a profile at one moment; `str` gives them as a table.

    Attributes:
        mode: "off", "summary" or "detailed".
        calls: calls that have returned, of either mode.
        hits: calls served by a trace that stood already.
        misses: number of traces begun, by reason.
        direct: number of calls left to direct mode, by reason.
        traces, nodes: traces finished, and the ops in them.
        tracing, compiling, running: seconds.
        forward, backward: seconds in the passes of the direct calls whose passes were timed apart; `passes` counts those calls.
        ops: by falling cost, `OpTime`; empty unless detailed.
    """

    mode: ProfileMode
    calls: int = 0
    hits: int = 0
    misses: Mapping[str, int] = field(default_factory=dict)
    direct: Mapping[str, int] = field(default_factory=dict)
    traces: int = 0
    nodes: int = 0
    tracing: float = 0.0
    compiling: float = 0.0
    running: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    passes: int = 0
    ops: tuple[OpTime, ...] = ()

    @property
    def hit_rate(self) -> float:
        """Share of the calls that asked for a trace and found one, 0 to 1; 0 without such calls."""
        asked = self.hits + sum(self.misses.values())
        return self.hits / asked if asked else 0.0

    @property
    def mean_microseconds(self) -> float:
        """Mean running time of a call in microseconds, tracing and compiling apart; 0 without calls."""
        return 1e6 * self.running / self.calls if self.calls else 0.0

    def __str__(self) -> str:
        rows = [("calls", f"{self.calls}  ({self.mean_microseconds:.1f} us each)")]
        if self.hits or self.misses:
            rows.append(("cache hits", f"{self.hits}  ({100 * self.hit_rate:.1f} %)"))
            rows.append(("traces", f"{self.traces}  ({self.nodes} ops)"))
            rows += [("", f"{count} x {reason}") for reason, count in self.misses.items()]
        if self.direct:
            rows.append(("direct calls", f"{sum(self.direct.values())}"))
            rows += [("", f"{count} x {reason}") for reason, count in self.direct.items()]
        for name, seconds in (("tracing", self.tracing), ("compiling", self.compiling), ("running", self.running)):
            rows += [(name, f"{seconds:.4g} s")] if seconds else []
        if self.passes:
            each = 1e3 / self.passes
            whole = self.forward + self.backward
            rows.append(("forward", f"{each * self.forward:.4g} ms a call"))
            rows.append(("backward", f"{each * self.backward:.4g} ms a call"))
            rows.append(("overall", f"{each * whole:.4g} ms a call"))
        lines = [f"{name:<13}{value}" for name, value in rows]
        return "\n".join([f"hesse profile ({self.mode})", *lines, *self._table()])

    def _table(self) -> list[str]:
        """The costliest ops as lines of text."""
        if not self.ops:
            return []
        head = f"{'op':<28}{'phase':<10}{'runs':>7}{'ms':>10}{'% phase':>9}{'% all':>7}  line"
        rows = [
            f"{op.op[:27]:<28}{op.phase:<10}{op.runs:>7}{1e3 * op.seconds:>10.3f}{100 * op.of_phase:>9.1f}"
            f"{100 * op.of_all:>7.1f}  {_line(op.source)}"
            for op in self.ops[:_TOP]
        ]
        more = [f"... and {len(self.ops) - _TOP} more"] if len(self.ops) > _TOP else []
        return ["", head, *rows, *more]


def _line(source: Frame | None) -> str:
    return "?" if source is None else f"{os.path.basename(source[0])}:{source[1]} {source[2]}"


def shares(ops: Mapping[OpKey, tuple[int, float]]) -> tuple[OpTime, ...]:
    """The timed ops by falling cost.

    Args:
        ops: runs and seconds of each op.

    Returns:
        The ops with their shares of their phase and of the whole.
    """
    by_phase = {phase: sum(total for key, (_, total) in ops.items() if key.phase == phase) for phase in get_args(Phase)}
    whole = sum(by_phase.values())
    timed = [
        OpTime(*key, runs, total, total / by_phase[key.phase] if total else 0.0, total / whole if total else 0.0)
        for key, (runs, total) in ops.items()
    ]
    return tuple(sorted(timed, key=lambda op: -op.seconds))
