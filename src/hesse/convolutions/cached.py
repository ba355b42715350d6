"""Inverses kept by the values of the weight that they belong to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.convolutions import ladder
from hesse.convolutions.certificate import warn_of_condition
from hesse.convolutions.geometry import Geometry
from hesse.convolutions.inverse import Inverse
from hesse.convolutions.operator import Convolution
from hesse.core.errors import NonFiniteError
from hesse.core.memory import Budget
from hesse.linalg.products import work_dtype

_MOST = 16


class Inverses:
    """The inverses of convolutions of one geometry, each for some values of the weight.

    An inverse is found again by comparing the values of the weight with those that it was made of: a weight that has
    changed, in whatever way, never meets an old inverse. Weights of 16 bits are inverted in single precision.

    Args:
        geometry: everything but the weight.
        rtol, memory, method: as for `ladder.inverse`.
    """

    def __init__(
        self, geometry: Geometry, *, rtol: float | None = None, memory: Budget | None = None, method: str = "auto"
    ) -> None:
        self.geometry, self.rtol, self.memory, self.method = geometry, rtol, memory, method
        self._kept: list[Inverse] = []
        self._gone = (True, float("inf"))  # what `full_rank` and `gap` were of those that are no longer kept
        self._room = 1

    @property
    def full_rank(self) -> bool:
        """Whether no inverse used so far has dropped a singular value."""
        return self._gone[0] and all(_is_regular(inverse) for inverse in self._kept)

    @property
    def gap(self) -> float:
        """The smallest gap of those used so far."""
        return min([self._gone[1], *(inverse.gap for inverse in self._kept if inverse.truncated)])

    def expect(self, count: int) -> None:
        """Keep as many inverses as weights are mapped over (at most 16)."""
        self._room = max(self._room, min(count, _MOST))

    def of(self, weight: Tensor) -> Inverse:
        """The inverse for these values; made where it is not there.

        Raises:
            NonFiniteError: NaN or infinity in the weight. Others as `ladder.inverse`.
        """
        weight = weight.detach().to(work_dtype(weight.dtype))
        for inverse in self._kept:
            if _same(inverse.convolution.weight, weight):
                return inverse
        if not bool(torch.isfinite(weight).all()):
            raise NonFiniteError(
                "A pseudo-inverse needs a finite weight.", "NaN or infinity in the weight", "look where the weight comes from"
            )
        with torch.no_grad():
            A = Convolution(weight.clone(), self.geometry)
            inverse = ladder.inverse(A, rtol=self.rtol, memory=self.memory, method=self.method)
        warn_of_condition(inverse)
        self._keep(inverse)
        return inverse

    def __getstate__(self) -> dict[str, Any]:
        """The options; inverses are made again where they are needed."""
        return {**vars(self), "_kept": [], "_gone": (self.full_rank, self.gap)}

    def _keep(self, inverse: Inverse) -> None:
        if len(self._kept) == self._room:
            self._gone = (self.full_rank, self.gap)
            self._kept.pop()
        self._kept.insert(0, inverse)


def _is_regular(inverse: Inverse) -> bool:
    return not inverse.truncated and inverse.method != "krylov"  # which does not count singular values


def _same(known: Tensor, weight: Tensor) -> bool:
    return known.dtype == weight.dtype and known.device == weight.device and torch.equal(known, weight)
