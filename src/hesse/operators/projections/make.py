"""`random_projection`: a map of a space to a few dimensions that keeps inner products, and how it is stored."""

from __future__ import annotations

import operator
from typing import Any, Literal

import torch
from torch import nn

from hesse.core.errors import LeafError, StructureError, UnsupportedError
from hesse.core.random import seed_of
from hesse.core.space import Space
from hesse.operators.base import LinearOperator, flat_space
from hesse.operators.projections.base import RandomProjection
from hesse.operators.projections.gaussian import GaussianProjection
from hesse.operators.projections.hadamard import HadamardProjection
from hesse.operators.projections.rademacher import RademacherProjection
from hesse.operators.storage import storable

Kind = Literal["gaussian", "rademacher", "fjlt"]
_ASKED = "random_projection(space, k) maps a space to k dimensions."
_NONZEROS = 4


def random_projection(
    space: Any,
    k: int,
    *,
    kind: Kind = "gaussian",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    nonzeros: int | None = None,
    dtype: torch.dtype | None = None,
) -> RandomProjection:
    """A random map P of a space to k dimensions, with ``E PᵀP = 1``: it keeps inner products up to an error of about 1/√k.

    P holds its seed, and computes columns when it needs them: it takes no memory, is stored in a few bytes, and is the same on
    every device, for every batch and in every process. For rows of gradients use ``J.project(P)``, which does not form them
    all at once (data attribution: Park et al. 2023, "TRAK", section 3.2).

    Args:
        space: what P takes: an operator (its `in_space`, as of a `ParameterJacobian`), a `Space`, a model (its parameters that
            require grad), a pair ``(f, params)``, or a tree of tensors. Real.
        k: the dimension of the result. For n vectors, ``8 log(n) / ε²`` keeps all their distances to a factor of ``1 ± ε`` with
            high probability (Johnson and Lindenstrauss 1984; Dasgupta and Gupta 2003).
        kind: "gaussian": independent normal numbers; the slowest, k multiplications an entry. "rademacher": a few random signs
            a column (Kane and Nelson 2014); the cheapest, a few additions an entry. "fjlt": random signs and fast
            Walsh-Hadamard transforms (Ailon and Chazelle 2009); ``log k`` additions an entry.
        seed: any integer, of which the lowest 64 bits count; by default the one of hesse.
        generator: draws the seed instead.
        nonzeros: for "rademacher": signs a column, from 1 to k; by default 4 (k if that is less).
        dtype: of the results, a real floating-point type; by default that of the space, 16-bit ones float32. Sums are taken in
            float32 or better. The numbers in P do not depend on it.

    Returns:
        A `RandomProjection`, an operator ``[k x D]``: ``P @ v``, ``P.T``, ``P.times(rows, places)``.

    Raises:
        StructureError: k below one, another kind, `nonzeros` out of range or for another kind, seed and generator together.
        LeafError: integer leaves. UnsupportedError: complex leaves.

    Cost: nothing; a product costs as `GaussianProjection`, `RademacherProjection` and `HadamardProjection` say.
    """
    into = _real_space(space)
    k = _count(k, 1, None, "k")
    if seed is not None and generator is not None:
        raise StructureError(_ASKED, "seed= and generator= together", "pass one of them")
    number = seed_of(generator) if seed is None else operator.index(seed)
    if nonzeros is not None and kind != "rademacher":
        raise StructureError(_ASKED, f"nonzeros= with kind={kind!r}", "pass kind='rademacher', or leave nonzeros= away")
    dtype = torch.promote_types(into.dtype, torch.float32) if dtype is None else dtype
    if not dtype.is_floating_point:
        raise StructureError(_ASKED, f"dtype={dtype}", "pass a real floating-point type")
    spaces = into, flat_space(k, dtype, into.device)
    if kind == "gaussian":
        return GaussianProjection(*spaces, number)
    if kind == "rademacher":
        signs = min(_NONZEROS, k) if nonzeros is None else _count(nonzeros, 1, k, "nonzeros")
        return RademacherProjection(*spaces, number, signs)
    if kind == "fjlt":
        return HadamardProjection(*spaces, number)
    raise StructureError(_ASKED, f"kind={kind!r}", "pass kind='gaussian', 'rademacher' or 'fjlt'")


def _count(number: Any, least: int, most: int | None, name: str) -> int:
    limits = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        found = operator.index(number)
    except TypeError:
        found = least - 1
    if isinstance(number, bool) or found < least or (most is not None and found > most):
        raise StructureError(_ASKED, f"{name}={number!r}", f"pass an integer {limits}")
    return found


def _real_space(like: Any) -> Space:
    space = _space_of(like)
    for name, dtype in zip(space.names, space.dtypes, strict=True):
        if dtype.is_complex:
            raise UnsupportedError(_ASKED, f"{dtype} at '{name}'", "project real and imaginary parts as separate leaves")
        if not dtype.is_floating_point:
            raise LeafError(_ASKED, f"{dtype} at '{name}'", "leave it out")
    return space


def _space_of(like: Any) -> Space:
    if isinstance(like, nn.Module):
        like = {name: leaf for name, leaf in like.named_parameters() if leaf.requires_grad}
    if isinstance(like, tuple) and len(like) == 2 and callable(like[0]):
        like = like[1]
    if isinstance(like, LinearOperator):
        return like.in_space
    return like if isinstance(like, Space) else Space.of(like)


@storable.register(GaussianProjection, HadamardProjection, RademacherProjection)
def _stored(A: RandomProjection) -> dict[str, Any]:
    arguments = {"in_space": A.in_space, "out_space": A.out_space, "seed": A.seed}
    return {**arguments, "nonzeros": A.nonzeros} if isinstance(A, RademacherProjection) else arguments
