"""What the library wants to reach, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.convolutions.cases import CASES

EPS = 2.0**-52


class Found:
    """Results by case and way."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self._results = {(r["case"], r["way"]): r for r in results if r["status"] == "ok"}

    def get(self, case: str, way: str, field: str) -> float | None:
        """A number of a result, if there is one."""
        value = self._results.get((case, way), {}).get(field)
        return None if value is None or isinstance(value, str) else float(value)


@dataclass(frozen=True)
class Aim:
    """A number that is to be at least, or at most, so large.

    Attributes:
        title: what is measured.
        bound: the number.
        value: the number that was found, or None.
        unit: after the numbers.
        least: whether more is better.
    """

    title: str
    bound: float
    value: Callable[[Found], float | None]
    unit: str = " s"
    least: bool = False

    @property
    def wanted(self) -> str:
        """The bound, in words."""
        return f"at {'least' if self.least else 'most'} {self.bound:g}{self.unit}"

    def show(self, value: float) -> str:
        """The number that was found, in words."""
        return f"{value:.3g}{self.unit}"

    def reached(self, value: float) -> bool:
        """Whether the number is good enough."""
        return value >= self.bound if self.least else value <= self.bound


def aims() -> list[Aim]:
    """All of them."""
    circular = [name for name, case in CASES.items() if case.padding_mode == "circular"]
    return [
        Aim("posted case: set-up", 7, _field("posted", "hesse", "prepare")),
        Aim("posted case: condition estimate", 3, _field("posted", "hesse", "condition_seconds")),
        Aim("posted case: one solve with the factors", 0.16, _field("posted", "hesse", "once_seconds")),
        Aim("posted case: refined and certified solution", 0.40, _field("posted", "hesse", "solve")),
        Aim("posted case: error / (condition x rounding unit)", 10, _error_in_conditions, ""),
        Aim("posted case: normwise backward error", 1e-14, _field("posted", "hesse", "backward"), ""),
        *(
            Aim(f"{CASES[name].title}: batch of 16 / convolution", 2, _field(name, "circular", "ratio"), "x")
            for name in circular
        ),
        *(
            Aim(f"{CASES[name].title}: steps to 1e-6", 16, _field(name, "krylov", "steps"), "")
            for name in ("benign", "benign_large")
        ),
        Aim(f"{CASES['truncated'].title}: dense / hesse", 20, _dense_ratio, "x", least=True),
    ]


def _field(case: str, way: str, field: str) -> Callable[[Found], float | None]:
    return lambda found: found.get(case, way, field)


def _error_in_conditions(found: Found) -> float | None:
    error, condition = (found.get("posted", "hesse", field) for field in ("error", "condition"))
    return None if error is None or not condition else error / (condition * EPS)


def _dense_ratio(found: Found) -> float | None:
    times = [[found.get("truncated", way, field) for field in ("prepare", "first")] for way in ("dense", "hesse")]
    sums = [sum(parts) if None not in parts else None for parts in times]  # pyright: ignore[reportCallIssue, reportArgumentType]
    return None if None in sums else sums[0] / sums[1]  # pyright: ignore[reportOptionalOperand]
