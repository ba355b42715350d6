"""Laws of the map itself: it is linear, and its transpose is its transpose."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hesse.check.operators.evidence import Evidence, Sides, wide
from hesse.check.operators.probe import Probe
from hesse.core import tree
from hesse.operators import LinearOperator

_LINEAR = "write mv so that it is linear; the derivative of a map is, an affine or nonlinear map is not"
_TRANSPOSE = "mend transpose(): it returns the operator of the transposed matrix, without conjugation"
_FACTORS = (-1.0, -1.3)
_COMPLEX = (1j, 0.7 - 1.1j)


def homogeneous(probe: Probe) -> Iterator[Evidence]:
    """``A (c v) = c A v`` for negative, large, small and, where every leaf is complex, complex c."""
    for name, B in probe.chosen:
        v = probe.vector(B.in_space)
        Bv = probe.flat(B, v)
        is_complex = bool(B.in_space.dtypes) and all(dtype.is_complex for dtype in B.in_space.dtypes)
        large = 64.0 if B.in_space.dtype.itemsize == 2 else 1024.0
        for factor in (*_FACTORS, large, 1 / large, *(_COMPLEX if is_complex else ())):
            scaled = tree.map_tree(lambda leaf, c=factor: c * leaf, v)
            statement = f"{name} (c v) = c {name} v with c = {factor:g}"
            yield Sides(statement, probe.flat(B, scaled), factor * Bv, _LINEAR, B.out_space)


def additive(probe: Probe) -> Iterator[Evidence]:
    """``A (v + w) = A v + A w``."""
    for name, B in probe.chosen:
        for _ in range(3 if probe.thorough else 1):
            v, w = probe.vector(B.in_space), probe.vector(B.in_space)
            Bv, Bw = probe.flat(B, v), probe.flat(B, w)
            total = probe.flat(B, tree.map_tree(torch.add, v, w))
            scale = Bv.norm() + Bw.norm()
            yield Sides(f"{name} (v + w) = {name} v + {name} w", total, Bv + Bw, _LINEAR, B.out_space, scale)


def zero(probe: Probe) -> Iterator[Evidence]:
    """``A 0 = 0``, exactly."""
    for name, B in probe.sides:
        found = probe.flat(B, B.in_space.zeros())
        yield Sides(f"{name} 0 = 0", found, torch.zeros_like(found), _LINEAR, B.out_space, allowed=0.0)


def transpose(probe: Probe) -> Iterator[Evidence]:
    """``A.T.T v = A v``."""
    if probe.T is None:
        return
    v = probe.vector(probe.A.in_space)
    yield Sides("A.T.T v = A v", probe.flat(probe.T.T, v), probe.flat(probe.A, v), _TRANSPOSE, probe.A.out_space)


def adjoint(probe: Probe) -> Iterator[Evidence]:
    """``<A v, u> = <v, A.T u>`` with no conjugation, and ``<A v, u*> = <v, (A.H u)*>``; small matrices element by element."""
    if probe.T is None:
        return
    A, H = probe.A, probe.A.H
    if max(A.shape) <= probe.most and _has_matrix(A):
        yield from _elements(probe, probe.T, H)
        return
    for _ in range(4 if probe.thorough else 1):
        v, u = probe.vector(A.in_space), probe.vector(A.out_space)
        flat_v, flat_u, Av = wide(A.in_space, v), wide(A.out_space, u), probe.flat(A, v)
        for statement, B, left, sign in (
            ("<A v, u> = <v, A.T u>", probe.T, flat_u, False),
            ("<A v, u*> = <v, (A.H u)*>", H, flat_u.conj(), True),
        ):
            Bu = probe.flat(B, u)
            bound = torch.maximum(Av.norm() * flat_u.norm(), flat_v.norm() * Bu.norm())
            right = (flat_v * (Bu.conj() if sign else Bu)).sum()
            yield Sides(statement, right, (Av * left).sum(), _TRANSPOSE, scale=bound)


def _has_matrix(A: LinearOperator) -> bool:
    """Whether both spaces are real, or both complex, in every leaf."""
    return len({dtype.is_complex for dtype in A.in_space.dtypes + A.out_space.dtypes}) == 1


def _elements(probe: Probe, T: LinearOperator, H: LinearOperator) -> Iterator[Evidence]:
    """The matrices of the transpose and of the adjoint against that of the operator."""
    M = probe.matrix(probe.A)
    yield Sides("A.T[j, i] = A[i, j]", probe.matrix(T), M.mT, _TRANSPOSE)
    if M.is_complex() or H is not T:
        yield Sides("A.H[j, i] = A[i, j]*", probe.matrix(H), M.mH, _TRANSPOSE)
