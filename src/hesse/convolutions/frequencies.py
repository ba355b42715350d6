"""Images as rows of frequencies, and a convolution on a torus there: what its inverse computes with and is judged by."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hesse.convolutions.geometry import Geometry
from hesse.convolutions.operator import Convolution
from hesse.convolutions.products import convolve, convolve_transposed
from hesse.convolutions.symbol import from_frequencies, multiplicities, symbol, to_frequencies
from hesse.convolutions.truncation import factor_dtype
from hesse.core import pages, random

_SMALL = 100  # units of rounding: residuals up to this need no look at where they point

def blocks(g: Geometry, weight: Tensor) -> Tensor:
    """``[frequencies * groups, out, in * prod(stride)]``: the symbol on the torus of the image; differentiable."""
    weight = weight.reshape(g.groups, g.out_channels // g.groups, *weight.shape[1:])
    offset = tuple(-before for before, _ in g.padding)
    return symbol(weight, g.out_size, stride=g.stride, dilation=g.dilation, offset=offset).flatten(0, g.ndim)


def counts(g: Geometry, weight: Tensor) -> Tensor:
    """``[frequencies]``: how many frequencies of the whole spectrum each stands for."""
    last = multiplicities(g.out_size, not weight.is_complex(), weight.device)
    return last.repeat(math.prod(g.out_size[:-1]))


def rows(g: Geometry, V: Tensor, *, adjoint: bool) -> Tensor:
    """``[frequencies * groups, k, channels]`` of images ``[k, *out_shape]``, or of images ``[k, *in_shape]`` with `adjoint`.

    The latter are conjugated, so that adjoints of blocks act on them by the blocks transposed, and no block is conjugated.
    """
    W = to_frequencies(phases(g, V) if adjoint else V, g.ndim)
    W = W.conj() if adjoint else W
    k, channels = len(V), W.shape[1] // g.groups
    flat = W.reshape(k * g.groups * channels, -1).T
    flat = pages.empty(tuple(flat.shape), flat.dtype, flat.device).copy_(flat)
    return flat.reshape(-1, k, g.groups, channels).transpose(1, 2).reshape(-1, k, channels)


def images(g: Geometry, found: Tensor, dtype: torch.dtype, *, adjoint: bool) -> Tensor:
    """What comes of `rows`: images ``[k, *in_shape]``; with `adjoint`, of conjugated rows, images ``[k, *out_shape]``."""
    k = found.shape[1]
    last = g.out_size[-1] if dtype.is_complex else g.out_size[-1] // 2 + 1
    W = found.reshape(-1, g.groups, k, found.shape[-1]).permute(2, 1, 3, 0)
    W = (W.conj() if adjoint else W).reshape(k, -1, *g.out_size[:-1], last)
    X = from_frequencies(W, g.out_size, dtype)
    return X if adjoint else cells(g, X)


def phases(g: Geometry, x: Tensor) -> Tensor:
    """``[k, c, *size] -> [k, c * prod(stride), *out_size]``, phases varying fastest."""
    if set(g.stride) == {1}:
        return x
    split = [number for pair in zip(g.out_size, g.stride, strict=True) for number in pair]
    last = 2 + 2 * g.ndim
    x = x.reshape(*x.shape[:2], *split).permute(0, 1, *range(3, last, 2), *range(2, last, 2))
    return x.reshape(len(x), -1, *g.out_size)


def cells(g: Geometry, z: Tensor) -> Tensor:
    """Undo `phases`."""
    if set(g.stride) == {1}:
        return z
    d = g.ndim
    z = z.reshape(len(z), -1, *g.stride, *g.out_size)
    order = [axis for a in range(d) for axis in (2 + d + a, 2 + a)]
    return z.permute(0, 1, *order).reshape(len(z), -1, *g.size)


class Solved(NamedTuple):
    """A block of solutions ``x = M⁺ y``, where M is the convolution or its adjoint.

    Attributes:
        right, rows: of y and of x, as `rows` makes them of y; judging writes into the former.
        sizes: ``[2, k]``: the norms of the images y and x.
        inverse: the blocks that gave ``rows = right @ inverse``.
        truncated: whether they leave out singular values.
    """

    right: Tensor
    rows: Tensor
    sizes: Tensor
    inverse: Tensor
    truncated: bool


class Witness:
    """The symbol of a convolution, which judges solutions that were found by frequencies for the price of small products.

    Norms are the same there as for images (Parseval). Rounding may make the rows of real images differ from those of their
    opposite frequencies; the transform back takes the mean, whose residual is not larger than the two.

    Args:
        A: the convolution, on a torus.

    Attributes:
        agreement: what the symbol and the transforms are away from A and its adjoint, at random images, as a fraction of what
            they give: rounding, unless they are wrong. What is measured includes it.
        norm: a lower bound of the norm of A.
    """

    def __init__(self, A: Convolution) -> None:
        self.geometry, self._dtype = A.geometry, A.weight.dtype
        weight = A.weight.detach()
        C = blocks(A.geometry, weight.to(factor_dtype(weight.dtype)))
        self._symbol = C.to(weight.dtype.to_complex())
        parts = counts(A.geometry, weight).repeat_interleave(A.geometry.groups) / math.prod(A.geometry.out_size)
        self._parts = parts.to(weight.real.dtype)
        self.norm = float(torch.linalg.matrix_norm(C).max()) / min(C.shape[-2:]) ** 0.5
        self.agreement = max(self._disagreement(weight, adjoint=adjoint) for adjoint in (False, True))

    def _disagreement(self, weight: Tensor, *, adjoint: bool) -> float:
        """At a random image, beside the convolution, or the transposed one of the conjugated weight with `adjoint`."""
        g = self.geometry
        v = random.normal((1, *(g.out_shape if adjoint else g.in_shape)), self._dtype, weight.device, random.make_generator())
        expected = convolve_transposed(g, weight.conj(), v) if adjoint else convolve(g, weight, v)
        # an inverse leads from one side to the other, a product back: its rows are those of the other inverse
        found = torch.bmm(rows(g, v, adjoint=not adjoint), self._symbol.conj() if adjoint else self._symbol.mH)
        found = images(g, found, self._dtype, adjoint=not adjoint)
        return float((found - expected).norm() / expected.norm()) if bool(expected.any()) else 0.0

    def backward_error(self, of: Solved, *, adjoint: bool) -> float:
        """The largest, over a block, relative change of A and y that makes a solution exact.

        That is, of the residual r the length or that of its part ``M M⁺ r`` in the range of M, and ``|Mᴴ r| / |M|``, beside
        ``|M| |x| + |y|``, as in `certificate.check`; and the part of x outside of the range of the adjoint where singular
        values are left out. Infinite where squares may under- or overflow.

        Args:
            of: the solutions.
            adjoint: M is the adjoint of A.

        Cost: a product of the size of the one that found them; three more where residuals are not small, two where the rank
        lacks.
        """
        forth = self._symbol if adjoint else self._symbol.mT
        y, x = of.sizes
        scale = self.norm * x + y
        info = torch.finfo(scale.dtype)
        if not bool((scale > info.tiny**0.5 / info.eps).all()):
            return math.inf
        R = of.right.baddbmm_(of.rows, forth, alpha=-1)  # in new memory it takes twice as long
        missed, unsure = self._lengths(R), self.agreement * scale
        error = (missed + unsure) / scale
        if float(error.max()) > _SMALL * info.eps:
            steep = self._lengths(torch.bmm(R, forth.mH)) / self.norm
            within = torch.maximum(self._lengths(torch.bmm(torch.bmm(R, of.inverse), forth)), steep)
            error = torch.minimum(error, (within + unsure) / scale)
        if of.truncated:
            Z = torch.bmm(of.rows, of.inverse.mH)
            outside = self._lengths(of.rows - torch.bmm(Z, forth.mH))
            error = torch.maximum(error, outside / (self.norm * self._lengths(Z) + x) + self.agreement)
        worst = float(error.max())
        return worst if worst < math.inf else math.inf

    def _lengths(self, rows: Tensor) -> Tensor:
        """``[k]``: the norms of the images of rows."""
        sizes = torch.linalg.vector_norm(torch.view_as_real(rows.resolve_conj()).flatten(2), dim=-1)
        return (self._parts @ sizes.square()).sqrt()
