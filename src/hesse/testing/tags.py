"""The law of tags: what an operator claims of itself holds in numbers."""

from __future__ import annotations

import torch

from hesse.core import tree
from hesse.operators.base import LinearOperator, Tag
from hesse.testing.comparison import broken, require_close, source_of, tolerance, wide

_SMALL = 256  # up to this dimension definiteness is decided by eigenvalues
_PROBES = 8
_REMEDY = "take the tag off, or mend mv"


def assert_tags(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """SYMMETRIC, HERMITIAN, PSD and DIAGONAL hold numerically where they are claimed.

    Symmetry and diagonality are decided by random vectors (a lie survives with probability 0), definiteness
    by the eigenvalues of the matrix up to dimension 256, above it by quadratic forms of random vectors, which
    find only operators with much of their spectrum below zero.
    """
    source, allowed = source_of(generator), tolerance(A, rtol)
    if A.tags and A.in_space != A.out_space:
        names = ", ".join(sorted(tag.value for tag in A.tags))
        found = f"tags {names} on a map from {A.in_space} to {A.out_space}"
        raise broken("tags", A, "tags are for operators from a space to itself", found, _REMEDY)
    if Tag.SYMMETRIC in A.tags:
        _assert_self_paired(A, Tag.SYMMETRIC, source, allowed)
    if A.tags & {Tag.HERMITIAN, Tag.PSD}:
        _assert_self_paired(A, Tag.HERMITIAN, source, allowed)
    if Tag.PSD in A.tags:
        _assert_psd(A, source, allowed)
    if Tag.DIAGONAL in A.tags:
        _assert_diagonal(A, source, allowed)


def _assert_self_paired(A: LinearOperator, tag: Tag, source: torch.Generator, allowed: float) -> None:
    v, w = A.in_space.normal(generator=source), A.in_space.normal(generator=source)
    flat_v, flat_w = wide(A.in_space, v), wide(A.in_space, w)
    Av, Aw = wide(A.out_space, A.mv(v)), wide(A.out_space, A.mv(w))
    if tag is Tag.HERMITIAN:
        flat_w, Aw = flat_w.conj(), Aw.conj()
    statement = "<A v, w> = <v, A w>" if tag is Tag.SYMMETRIC else "<A v, w*> = <v, (A w)*>"
    sides = (Av * flat_w).sum(), (flat_v * Aw).sum()
    scale = torch.maximum(Av.norm() * flat_w.norm(), flat_v.norm() * Aw.norm())
    require_close(A, "tags", f"{tag.value} means {statement}", sides, allowed, _REMEDY, scale)


def _assert_psd(A: LinearOperator, source: torch.Generator, allowed: float) -> None:
    statement = "positive semi-definite means no eigenvalue is negative"
    if A.in_space.dim <= _SMALL:
        eye = torch.eye(A.in_space.dim, dtype=A.in_space.dtype, device=A.in_space.device)
        rows = [wide(A.out_space, A.mv(A.in_space.unravel(row))) for row in eye]
        values = torch.linalg.eigvalsh(torch.stack(rows, dim=1)) if rows else torch.zeros(1)
        least, scale = float(values[0]), float(values.abs().max())
    else:
        forms = [_quadratic_form(A, source) for _ in range(_PROBES)]
        least, scale = min(value for value, _ in forms), max(bound for _, bound in forms)
        statement = "positive semi-definite means v* A v >= 0"
    if not least >= -allowed * scale:
        raise broken("tags", A, statement, f"{least:.6g}, where the largest size is {scale:.6g}", _REMEDY)


def _quadratic_form(A: LinearOperator, source: torch.Generator) -> tuple[float, float]:
    v = A.in_space.normal(generator=source)
    flat, Av = wide(A.in_space, v), wide(A.out_space, A.mv(v))
    return float((flat.conj() * Av).sum().real), float(flat.norm() * Av.norm())


def _assert_diagonal(A: LinearOperator, source: torch.Generator, allowed: float) -> None:
    v = A.in_space.normal(generator=source)
    ones = tree.map_tree(torch.ones_like, v)
    sides = wide(A.out_space, A.mv(v)), wide(A.out_space, A.mv(ones)) * wide(A.in_space, v)
    statement = "diagonal means A v = (A 1) * v entry by entry"
    require_close(A, "tags", statement, sides, allowed, _REMEDY)
