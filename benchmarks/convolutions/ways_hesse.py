"""hesse's factorizations of convolutions."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.convolutions.cases import Case
from benchmarks.convolutions.ways import Way


class Hesse(Way):
    """`hesse.pinv`, or its Krylov methods alone, at a tolerance of 1e-6.

    Args:
        method: ``"auto"`` or ``"krylov"``.
    """

    def __init__(self, case: Case, weight: Tensor, method: str) -> None:
        super().__init__(case, weight)
        import hesse

        self.hesse, self.method = hesse, method
        self.A = hesse.convolution(weight, (case.channels, case.side, case.side), padding=1, padding_mode=case.padding_mode)

    def prepare(self) -> None:
        if self.method == "auto":
            self.pinv = self.hesse.pinv(self.A, rtol=self.case.rtol or None)
            self.about["method"] = self.pinv.method
        else:
            from hesse.convolutions import krylov

            self.krylov = krylov.make(self.A, tolerance=1e-6)

    def solve(self, y: Tensor) -> Tensor:
        if self.method == "auto":
            return self.pinv @ y
        found = self.krylov.apply(y)
        self.about["steps"] = found.iterations
        return found.value

    def extras(self) -> dict[str, Any]:
        if self.method != "auto":
            return {}
        found = {"truncated": self.pinv.truncated}
        begin = time.perf_counter()
        found["condition"] = float(self.pinv.condition)
        found["condition_seconds"] = time.perf_counter() - begin
        way = getattr(self.pinv.inverse, "current", self.pinv.inverse)
        factors = getattr(getattr(way, "_system", None), "system", None)
        if type(factors).__name__ == "SquareSystem":
            found["once_seconds"] = self._once(factors)
        return found

    def _once(self, factors: Any) -> float:
        """The least seconds of five solves with the factors alone: nothing refined, nothing checked."""
        y, times = self.case.pictures(), []
        with torch.no_grad():
            for _ in range(5):
                begin = time.perf_counter()
                factors.solve(y)
                times.append(time.perf_counter() - begin)
        return min(times)
