"""The small singular triplets of a convolution, by block inverse iteration with the factors of the boundary method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.convolutions.operator import Convolution
from hesse.convolutions.systems import System
from hesse.core import random
from hesse.operators import LinearOperator

_FIRST = 8
_STEPS = 40
_EXACT = 1e-15
_FEW = 3  # steps after which a block that has nothing small is believed
_MARGIN = 1.5
_INVARIANT = 1e-12  # what an inverse iteration may add to the span of converged vectors


@dataclass(frozen=True)
class Triplets:
    """Singular triplets as images: ``A v = s u``.

    Attributes:
        U: ``[p, *out_shape]``, orthonormal where the value is not tiny.
        values: ``[p]``, ascending.
        V: ``[p, *in_shape]``.
        smallest: the smallest singular value that was met and is not among them, about; None if none was looked for.
        complete: whether all that were asked for have converged.
    """

    U: Tensor
    values: Tensor
    V: Tensor
    smallest: float | None
    complete: bool

    def __len__(self) -> int:
        return len(self.values)


def nothing(A: Convolution, zeros: int = 0) -> Triplets:
    """No triplets but those of value zero of the zero operator, whose vectors nobody needs."""
    U, V = A.out_space.zeros(0), A.in_space.zeros(0)
    return Triplets(U, A.weight.real.new_zeros(zeros), V, None if not zeros else float("inf"), True)


def small_triplets(A: Convolution, system: System, needed: float, most: int) -> Triplets:
    """All singular triplets with values up to `needed` (and some above).

    Subspace iteration with Rayleigh-Ritz steps on the shorter side (Golub and Van Loan, Matrix Computations, 8.2 and 8.6),
    in blocks that grow until their largest value is beyond what was asked for.

    Args:
        A: of norm about 1.
        system: its factors.
        needed: values up to here.
        most: triplets that are looked for at most.

    Cost: a solution of a block a step, 3 steps where nothing is small.
    """
    B = A.H if A.shape[0] < A.shape[1] else A
    count, generator = min(A.shape), random.make_generator()
    V = _orthonormal(system.small_first(B.in_space.normal(min(_FIRST, count), generator=generator)))
    block, last = _ritz(B, system, V), 1.0
    for step in range(1, _STEPS):
        is_small, converged = block.values <= needed, block.left_out <= _INVARIANT
        enough = len(V) == count or float(block.values[-1]) > _MARGIN * needed
        if step >= _FEW and not enough and 2 * len(V) > max(most, _FIRST):
            break  # there are more than may be looked for
        if step >= _FEW and enough and bool((converged | ~is_small).all()):
            worst = float(block.left_out[is_small].max()) if bool(is_small.any()) else 0.0
            if not worst < last / 2 or worst <= _EXACT:  # as good as rounding lets it be
                break
            last = worst
        V = block.images
        if step >= _FEW and not enough:
            more = B.in_space.normal(min(len(V), count - len(V)), generator=generator)
            V = torch.cat([V, system.small_first(more)])
        V = _orthonormal(V)
        block = _ritz(B, system, V)
    return _result(A, block, needed, len(V) == count)


class _Block(NamedTuple):
    """Ritz triplets of B, ascending; what inverse iteration makes of V; and how much of that lies outside of the span of V."""

    U: Tensor
    values: Tensor
    V: Tensor
    images: Tensor
    left_out: Tensor


def _result(A: Convolution, block: _Block, needed: float, is_all: bool) -> Triplets:
    converged = block.left_out <= _INVARIANT
    small = block.values <= needed
    complete = bool((converged | ~small).all()) and (is_all or float(block.values[-1]) > _MARGIN * needed)
    taken = converged & (block.values <= _MARGIN * needed)
    left, right = (block.V, block.U) if A.shape[0] < A.shape[1] else (block.U, block.V)
    rest = block.values[~taken]
    smallest = float(rest.min()) if len(rest) else float(block.values.max())
    return Triplets(left[taken], block.values[taken], right[taken], smallest, complete)


def _orthonormal(V: Tensor) -> Tensor:
    return torch.linalg.qr(V.flatten(1).mT).Q.mT.reshape(V.shape)


def _beyond(W: Tensor, V: Tensor) -> Tensor:
    """How much of each image of W, relative to it, lies outside of the span of V."""
    rows, basis = W.flatten(1), V.flatten(1)
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    for _ in range(2):
        rows = rows - (rows @ basis.mH) @ basis
    return torch.linalg.vector_norm(rows, dim=1)


def _ritz(B: LinearOperator, system: System, V: Tensor) -> _Block:
    """Triplets of the operator restricted to the span of V, and an inverse iteration of them."""
    image = B @ V
    Q, R = torch.linalg.qr(image.flatten(1).mT)
    left, values, right = torch.linalg.svd(R)
    U = (Q @ left.flip(-1)).mT.reshape(image.shape)
    V = (V.flatten(1).mT @ right.mH.flip(-1)).mT.reshape(V.shape)
    images = system.small_first(V)
    return _Block(U, values.flip(-1), V, images, _beyond(images, V))
