"""What a gradient function spends its time on: cache hits and traces with their reasons, seconds by activity, the costliest ops
with the lines of the user's code."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import cast, get_args

import torch

from hesse.autodiff.compiled.profile_report import OpKey, OpTime, ProfileMode, ProfileReport, shares
from hesse.autodiff.source_lines import Frame, Phase
from hesse.core.errors import StructureError

__all__ = ["OpKey", "OpTime", "Profile", "ProfileMode", "ProfileReport"]


class Profile:
    """Counters that a gradient function feeds. Several threads may feed one; with mode "off" nothing is counted.

    Args:
        mode: "off", "summary" (counts and seconds) or "detailed" (each op too).

    Raises:
        StructureError: another mode.

    Cost: below a microsecond a call of its methods; what detailed mode costs is the clock around each op (see `timed_ops`).
    """

    def __init__(self, mode: ProfileMode = "summary") -> None:
        if mode not in get_args(ProfileMode):
            allowed = ", ".join(map(repr, get_args(ProfileMode)))
            raise StructureError(f"profile is one of {allowed}.", repr(mode), "pass one of these")
        self.mode: ProfileMode = mode
        self._lock = threading.Lock()
        self.reset()

    @property
    def active(self) -> bool:
        """Whether anything is counted."""
        return self.mode != "off"

    @property
    def detailed(self) -> bool:
        """Whether single ops are timed."""
        return self.mode == "detailed"

    def reset(self) -> None:
        """Forget everything counted so far."""
        with self._lock:
            self._counts: Counter[str] = Counter()
            self._seconds: dict[str, float] = dict.fromkeys(("tracing", "compiling", "running", "forward", "backward"), 0.0)
            self._misses: Counter[str] = Counter()
            self._direct: Counter[str] = Counter()
            self._ops: dict[OpKey, list[float]] = {}

    def _count(self, counts: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        if self.mode == "off":
            return
        with self._lock:
            self._counts.update(counts)
            for name, value in seconds.items():
                self._seconds[name] += value

    def hit(self) -> None:
        """A call found its trace."""
        self._count({"hits": 1}, {})

    def miss(self, reason: str) -> None:
        """A call found none, and traces.

        Args:
            reason: why, in words ("first call", "the shape of params['w'] changed"); counted by it.
        """
        self._note(self._misses, reason)

    def fell_back(self, reason: str) -> None:
        """A call is left to direct mode.

        Args:
            reason: why, in words; counted by it.
        """
        self._note(self._direct, reason)

    def _note(self, counter: Counter[str], reason: str) -> None:
        if self.mode != "off":
            with self._lock:
                counter[reason] += 1

    def traced(self, seconds: float, nodes: int) -> None:
        """A trace was finished.

        Args:
            seconds: that it took.
            nodes: ops in it.
        """
        self._count({"traces": 1, "nodes": nodes}, {"tracing": seconds})

    def compiled(self, seconds: float) -> None:
        """A program was built from a trace, in so many seconds."""
        self._count({}, {"compiling": seconds})

    def ran(self, seconds: float) -> None:
        """A call returned; its run took so many seconds, tracing and compiling apart. Every call says so once."""
        self._count({"calls": 1}, {"running": seconds})

    def passed(self, forward: float, backward: float) -> None:
        """The two passes of a direct call (which counts as a run of both).

        Args:
            forward: seconds of the function itself.
            backward: seconds of its gradient.
        """
        counts = {"calls": 1, "passes": 1}
        self._count(counts, {"running": forward + backward, "forward": forward, "backward": backward})

    def op(self, node: torch.fx.Node, seconds: float) -> None:
        """A node of a traced program ran.

        Args:
            node: with `meta["source"]` and `meta["phase"]`.
            seconds: that it took.
        """
        source = node.meta.get("source")
        phase = cast(Phase, node.meta.get("phase", "forward"))
        self.op_at(OpKey(_name(node), phase, None if source is None else Frame(*source)), seconds)

    def op_at(self, key: OpKey, seconds: float) -> None:
        """An op ran.

        Args:
            key: its name, phase and line.
            seconds: that it took.
        """
        if self.mode != "detailed":
            return
        with self._lock:
            entry = self._ops.setdefault(key, [0, 0.0])
            entry[0] += 1
            entry[1] += seconds

    def report(self) -> ProfileReport:
        """What was counted up to now.

        Returns:
            A report that later counts leave as it is.
        """
        with self._lock:
            counts, seconds = Counter(self._counts), dict(self._seconds)
            misses, direct = dict(self._misses), dict(self._direct)
            ops = {key: (int(runs), total) for key, (runs, total) in self._ops.items()}
        return ProfileReport(
            self.mode,
            calls=counts["calls"],
            hits=counts["hits"],
            misses=misses,
            direct=direct,
            traces=counts["traces"],
            nodes=counts["nodes"],
            passes=counts["passes"],
            ops=shares(ops),
            **seconds,
        )


def _name(node: torch.fx.Node) -> str:
    target = node.target
    return str(target) if isinstance(target, (str, torch._ops.OpOverload)) else getattr(target, "__name__", str(target))
