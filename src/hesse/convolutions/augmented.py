"""The augmented system ``[I A; A^H -d^2 I]`` of least squares, solved directly for a convolution of any shape, rank, padding.

The system has an answer whatever the rank: it is quasi-definite (Vanderbei 1995). On a torus it is block-circulant, one small
inverse a frequency; what the torus has too much is taken back by a dense system between the unknowns of the boundary
(capacitance matrix: Buzbee, Dorr, George, Golub 1971):

* outputs beyond the image have residual 0, and unknown forces hold them there;
* inputs beyond the image are zero, or equal to the cells that they copy, and unknown forces hold them there;
* cells that are copied would be counted more than once in ``d^2 |x|^2``; a third kind of unknown takes the excess back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.convolutions import fields
from hesse.convolutions.border import BorderFactors
from hesse.convolutions.capacity import Response
from hesse.convolutions.fields import Columns
from hesse.convolutions.operator import Convolution
from hesse.convolutions.symbol import symbol
from hesse.convolutions.torus import Torus
from hesse.convolutions.truncation import one_thread


class AugmentedSystem:
    """Factors of ``[I A; A^H -d^2 I]``.

    Attributes:
        d: the square root of the regularization.
        size: of the dense system, of each group.
    """

    def __init__(self, A: Convolution, d: float) -> None:
        g = A.geometry
        self.geometry, self.d = g, d
        self.torus = torus = Torus(g.one_group)
        self.dtype, self.skew = A.weight.dtype, (False,) * g.ndim
        self.channels = (g.out_channels // g.groups, g.in_channels // g.groups)
        weight = A.weight.detach().unflatten(0, (g.groups, -1))
        C = symbol(weight, torus.size, stride=g.stride, dilation=g.dilation).flatten(0, g.ndim - 1)
        self.blocks = _inverse(C, d)
        seen, seeing = torus.touched
        ring, sources = torus.in_ring[seen], torus.sources[seen]
        copies = sources >= 0
        copied = torus.inputs[sources.clamp(min=0)]
        outside = Columns(False, torus.out_ring[seeing])
        inside = Columns(True, ring, copied, copies) if bool(copies.any()) else Columns(True, ring)
        self.columns = [outside, inside]
        excess: list[Tensor] = []
        if bool(copies.any()):
            cells, counts = sources[copies].unique(return_counts=True)
            self.columns.append(Columns(True, torus.inputs[cells]))
            excess = [1 / (d**2 * counts.to(torch.float64)).repeat_interleave(self.channels[1])]
        self._factor(excess)

    @staticmethod
    def boundary(A: Convolution) -> int:
        """Unknowns of the boundary of one group, before anything is computed."""
        g = A.geometry
        torus = Torus(g.one_group)
        seen, seeing = torus.touched
        sources = torus.sources[seen]
        copied = len(sources[sources >= 0].unique())
        return int(seeing.sum()) * (g.out_channels // g.groups) + (int(seen.sum()) + copied) * (g.in_channels // g.groups)

    def _factor(self, excess: list[Tensor]) -> None:
        torus, phases = self.torus, self.torus.phases
        o = self.channels[0]
        of = [
            [self._response(0, 0, (1, 1)), self._response(0, 1, (1, phases))],
            [None, self._response(1, 1, (phases, phases))],
        ]
        rows: list[Tensor] = []
        for a, left in enumerate(self.columns):
            line: list[Tensor] = []
            for b, right in enumerate(self.columns):
                response = of[left.on_inputs][right.on_inputs]
                if b < a:
                    line.append(rows[b][..., self._slice(a)].mH)
                else:
                    assert response is not None
                    line.append(response.between(left, right, torus, self.skew))
            rows.append(torch.cat(line, -1))
        S = torch.cat(rows, -2)
        del rows, of
        if excess:
            S.diagonal(dim1=-2, dim2=-1)[..., -len(excess[0]) :] += excess[0].to(S.device, S.dtype)
        self.size = S.shape[-1]
        half = self.d**0.5
        first = len(self.columns[0].slots) * o
        self.scale = torch.full((self.size,), half, dtype=S.real.dtype, device=S.device)
        self.scale[:first] = 1 / half
        S = S.mul_(self.scale).mul_(self.scale[:, None])
        self.border = BorderFactors(S)
        self.is_singular = self.border.is_singular

    def _slice(self, index: int) -> slice:
        sizes = [len(c.slots) * self.channels[c.on_inputs] for c in self.columns]
        return slice(sum(sizes[:index]), sum(sizes[: index + 1]))

    def _response(self, a: int, b: int, phases: tuple[int, int]) -> Response:
        block = self.blocks[a + b]
        table = fields.impulse_response(block, self.torus, self.skew, self.dtype, phases)
        return Response(table, phases)

    def solve(self, f: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The r and x with ``r + A x = f`` and ``A^H r - d^2 x = h``, for images ``[k, ...]``."""
        g, torus = self.geometry, self.torus
        out = fields.embed(f, torus.outputs, g.groups, torus, 1)
        into = fields.embed(h, torus.inputs, g.groups, torus, torus.phases)
        r, x = self._on_torus(out, into)
        missed = torch.cat([c.take(x if c.on_inputs else r, torus) for c in self.columns], -1)
        forces = self.border.solve(missed * self.scale)
        for index, c in enumerate(self.columns):
            force = (-forces * self.scale)[..., self._slice(index)]
            if c.on_inputs:
                into = c.add(into, force, torus)
            else:
                out = c.add(out, force, torus)
        r, x = self._on_torus(out, into)
        return (
            fields.extract(r, torus.outputs, g.out_shape, torus),
            fields.extract(x, torus.inputs, g.in_shape, torus),
        )

    def _on_torus(self, out: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
        a, b = fields.spectrum(out, self.torus, self.skew), fields.spectrum(into, self.torus, self.skew)
        oo, oi, ii = self.blocks
        r, x = oo @ a + oi @ b, fields.adjoint_product(oi, a) + ii @ b
        return (
            fields.from_spectrum(r, self.torus, self.skew, self.dtype, 1),
            fields.from_spectrum(x, self.torus, self.skew, self.dtype, self.torus.phases),
        )


def _inverse(C: Tensor, d: float) -> list[Tensor]:
    """The blocks (out, out), (out, in), (in, in) of the inverse of ``[I C; C^H -d^2 I]``, each to relative precision."""
    with one_thread(max(C.shape[-2:])):
        U, s, Vh = torch.linalg.svd(C, full_matrices=False)
    o, i = C.shape[-2:]
    f = 1 / (s**2 + d**2)
    eye = torch.eye(max(o, i), dtype=C.dtype, device=C.device)

    def both(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
        return (left * middle[..., None, :].to(left.dtype)) @ right

    oo = both(U, d**2 * f, U.mH) if o <= i else eye[:o, :o] - both(U, s**2 * f, U.mH)
    ii = -both(Vh.mH, f, Vh)
    if i > o:
        ii = ii - (eye[:i, :i] - Vh.mH @ Vh) / d**2
    return [oo, both(U, s * f, Vh), ii]
