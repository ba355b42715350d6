"""A function along a line: its outputs, each point computed once, whatever is asked of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.check.functions.subject import BudgetSpent, Leaves, flat


class Samples:
    """Vectors along a line, kept, so that any number of cotangents share their evaluations.

    Args:
        run: a point, to tensors.
        point, direction: of the line.
        home: what `run` gives at the point.
    """

    def __init__(
        self, run: Callable[[Leaves], Sequence[Tensor]], point: Leaves, direction: list[Tensor | None], home: Leaves
    ) -> None:
        self._run, self.point, self.direction = run, point, direction
        self._home = flat(home)
        self._known: dict[float, Tensor] = {}
        self._has_border = False

    def change(self, t: float) -> Tensor:
        """How far the tensors move: a float64 vector, complex numbers as two each; NaN where the function refuses the point.

        Raises:
            Exception: what the function raises, if it does so at the point too.

        Cost: 1 evaluation the first time; 1 more at the first point that the function refuses.
        """
        if t == 0.0:
            return torch.where(self._home.isfinite(), 0.0, self._home)
        if t not in self._known:
            moved = [x if v is None else x + t * v for x, v in zip(self.point, self.direction, strict=True)]
            self._known[t] = self._values(moved) - self._home
        return self._known[t]

    def _values(self, moved: Leaves) -> Tensor:
        try:
            return flat([y.detach() for y in self._run(moved)])
        except BudgetSpent:
            raise
        except Exception:
            if not self._has_border:
                self._run(self.point)
            self._has_border = True
            return torch.full_like(self._home, torch.nan)

    def phi(self, cotangent: Tensor) -> Callable[[float], float]:
        """``t -> <cotangent, tensors(t) - tensors(0)>``; entries with a zero cotangent count nothing, even if infinite."""

        def phi(t: float) -> float:
            change = self.change(t)
            if len(change) != len(cotangent):
                return float("nan")
            value = torch.dot(cotangent, change).item()
            return value if value - value == 0 else torch.dot(cotangent, torch.where(cotangent == 0, 0.0, change)).item()

        return phi

    def gap(self, cotangent: Tensor) -> Callable[[float], float]:
        """``t ->`` the norm of how far the slopes of all elements to both sides differ."""

        def gap(t: float) -> float:
            bend = self.change(t) + self.change(-t)
            return torch.where(cotangent == 0, 0.0, cotangent * bend).norm().item() / t if len(bend) == len(cotangent) else 0.0

        return gap

    def size(self, cotangent: Tensor) -> float:
        """The size of the values whose rounding disturbs `phi`: the root of the sum of squares of the terms that move.

        Where none moves, all count.
        """
        moves = cotangent != 0
        moved = moves & (sum((change != 0 for change in self._known.values()), torch.zeros_like(moves)) > 0)
        if bool(moved.any()):
            moves = moved
        return torch.where(moves, cotangent * self._home, 0.0).norm().item()
