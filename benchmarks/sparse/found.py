"""Results by case, size, way and stage, and their ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Key = tuple[str, int]  # a case and a size
Stage = tuple[str, str]  # a way and what it did


class Found:
    """The results of a report.

    Args:
        results: as `benchmarks.sparse.run` lists them.
    """

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self._all = {(r["case"], r["n"], r["way"], r["what"]): r for r in results}
        self.keys: list[Key] = list(dict.fromkeys((r["case"], r["n"]) for r in results))

    def get(self, key: Key, way: str, what: str) -> dict[str, Any] | None:
        """A result, or None where nothing was measured."""
        return self._all.get((*key, way, what))

    def seconds(self, key: Key, stage: Stage) -> float | None:
        """A time, or None where there is none."""
        result = self.get(key, *stage)
        return result["seconds"] if result and result["status"] == "ok" else None

    def ratio(self, key: Key, above: Stage, below: Stage) -> float | None:
        """How many times as long one stage took as another."""
        over, under = self.seconds(key, above), self.seconds(key, below)
        return over / under if over is not None and under else None

    def reasons(self) -> list[str]:
        """What gave no time, and why."""
        lines = []
        for (case, n, way, what), result in self._all.items():
            if result["status"] == "wrong":
                lines.append(f"{case} {n:,}, {way}, {what}: relative error {result['error']:.1g}")
            elif result["status"] != "ok":
                lines.append(f"{case} {n:,}, {way}, {what}: {result['reason']}")
        return lines
