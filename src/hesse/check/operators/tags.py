"""The law of tags: what an operator claims of itself holds in numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hesse.check.operators.evidence import Evidence, Fact, Sides, wide
from hesse.check.operators.probe import Probe
from hesse.core import tree
from hesse.operators import LinearOperator, Tag

_REMEDY = "take the tag off, or mend mv"


def tags(probe: Probe) -> Iterator[Evidence]:
    """SYMMETRIC, HERMITIAN, PSD and DIAGONAL hold numerically where they are claimed.

    Symmetry and diagonality are decided by random vectors (a lie survives with probability 0), definiteness by the eigenvalues
    of the matrix where it is small, and by the Ritz values of a Krylov space where it is large.
    """
    for name, B in probe.chosen:
        claimed = ", ".join(sorted(tag.value for tag in B.tags))
        if B.tags:
            breach = "" if B.in_space == B.out_space else f"tags {claimed} on a map from {B.in_space} to {B.out_space}"
            yield Fact(f"{name} is tagged, so it maps a space to itself", breach, _REMEDY)
            if breach:
                return
        if Tag.SYMMETRIC in B.tags:
            yield _self_paired(probe, name, B, Tag.SYMMETRIC)
        if B.tags & {Tag.HERMITIAN, Tag.PSD}:
            yield _self_paired(probe, name, B, Tag.HERMITIAN)
        if Tag.PSD in B.tags and B.in_space.dim:
            yield _semi_definite(probe, name, B)
        if Tag.DIAGONAL in B.tags:
            v = probe.vector(B.in_space)
            ones = probe.flat(B, tree.map_tree(torch.ones_like, v))
            statement = f"{name} is tagged diagonal: {name} v = ({name} 1) * v"
            yield Sides(statement, probe.flat(B, v), ones * wide(B.in_space, v), _REMEDY, B.out_space)


def _self_paired(probe: Probe, name: str, B: LinearOperator, tag: Tag) -> Sides:
    v, w = probe.vector(B.in_space), probe.vector(B.in_space)
    flat_v, flat_w, Bv, Bw = wide(B.in_space, v), wide(B.in_space, w), probe.flat(B, v), probe.flat(B, w)
    if tag is Tag.HERMITIAN:
        flat_w, Bw = flat_w.conj(), Bw.conj()
    pairing = f"<{name} v, w> = <v, {name} w>" if tag is Tag.SYMMETRIC else f"<{name} v, w*> = <v, ({name} w)*>"
    scale = torch.maximum(Bv.norm() * flat_w.norm(), flat_v.norm() * Bw.norm())
    statement = f"{name} is tagged {tag.value}: {pairing}"
    return Sides(statement, (Bv * flat_w).sum(), (flat_v * Bw).sum(), _REMEDY, scale=scale)


def _semi_definite(probe: Probe, name: str, B: LinearOperator) -> Evidence:
    """The negative part of the smallest eigenvalue against the size of the largest."""
    small = B.in_space.dim <= probe.most
    projected = probe.matrix(B) if small else _projected(probe, B, 40 if probe.thorough else 12)
    if not projected.isfinite().all():
        return Fact(f"{name} is tagged positive semi-definite", "products are not finite", _REMEDY)
    values = torch.linalg.eigvalsh((projected + projected.mH) / 2)
    statement = f"{name} is tagged positive semi-definite: no eigenvalue is negative"
    least = values[0].clamp(max=0)
    return Sides(statement, least, torch.zeros_like(least), _REMEDY, scale=values.abs().max())


def _projected(probe: Probe, B: LinearOperator, steps: int) -> torch.Tensor:
    """``Q* B Q`` on the Krylov space of a random vector; no eigenvalue of it lies below the smallest of B.

    The Rayleigh-Ritz method with full orthogonalization (Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 11).
    """
    basis: list[torch.Tensor] = []
    images: list[torch.Tensor] = []
    q = wide(B.in_space, probe.vector(B.in_space))
    for _ in range(min(steps, B.in_space.dim)):
        for _ in range(2):
            for other in basis:
                q = q - (other.conj() * q).sum() * other
        if not q.norm() > 0:
            break
        basis.append(q / q.norm())
        unit = basis[-1].to(device=B.in_space.device, dtype=B.in_space.dtype)
        basis[-1] = wide(B.in_space, B.in_space.unravel(unit))
        q = probe.flat(B, B.in_space.unravel(unit))
        images.append(q)
    Q, BQ = torch.stack(basis, 1), torch.stack(images, 1)
    return Q.mH @ BQ
