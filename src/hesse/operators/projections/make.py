"""`random_projection`: a map of a space to a few dimensions that keeps inner products, and how it is stored."""

from __future__ import annotations

import operator
from typing import Any, Literal

import torch
from torch import nn

from hesse.core.errors import LeafError, StructureError, UnsupportedError
from hesse.core.random import seed_of
from hesse.core.space import Space
from hesse.operators.base import flat_space
from hesse.operators.projections.base import RandomProjection
from hesse.operators.projections.gaussian import GaussianProjection
from hesse.operators.projections.hadamard import HadamardProjection
from hesse.operators.projections.rademacher import RademacherProjection
from hesse.operators.storage import space_of, storable

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
        StructureError: k below one, a seed that is no integer, another kind, `nonzeros` out of range or for another kind, seed
        and generator together, nothing to project.
        LeafError: integer leaves. UnsupportedError: complex leaves.

    Cost: nothing; a product costs as `GaussianProjection`, `RademacherProjection` and `HadamardProjection` say.
    """
    into = _real_space(space)
    k = _count(k, 1, None, "k")
    number = _seed(seed, generator)
    if nonzeros is not None and kind != "rademacher":
        raise StructureError(_ASKED, f"nonzeros= with kind={kind!r}", "pass kind='rademacher', or leave nonzeros= away")
    dtype = torch.promote_types(into.dtype, torch.float32) if dtype is None else dtype
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise StructureError(_ASKED, f"dtype={dtype}", "pass a real floating-point type such as torch.float32")
    spaces = into, flat_space(k, dtype, into.device)
    if kind == "gaussian":
        return GaussianProjection(*spaces, number)
    if kind == "rademacher":
        signs = min(_NONZEROS, k) if nonzeros is None else _count(nonzeros, 1, k, "nonzeros")
        return RademacherProjection(*spaces, number, signs)
    if kind == "fjlt":
        return HadamardProjection(*spaces, number)
    raise StructureError(_ASKED, f"kind={kind!r}", "pass kind='gaussian', 'rademacher' or 'fjlt'")


def _seed(seed: Any, generator: Any) -> int:
    if seed is not None and generator is not None:
        raise StructureError(_ASKED, "seed= and generator= together", "pass one of them")
    if not isinstance(generator, (torch.Generator, type(None))):
        raise StructureError(_ASKED, f"generator={generator!r}", "pass a torch.Generator, or seed=")
    return seed_of(generator) if seed is None else _integer(seed, "seed", "any integer")


def _count(number: Any, least: int, most: int | None, name: str) -> int:
    wanted = f"an integer at least {least}" if most is None else f"an integer from {least} to {most}"
    found = _integer(number, name, wanted)
    if found < least or (most is not None and found > most):
        raise StructureError(_ASKED, f"{name}={number!r}", f"pass {wanted}")
    return found


def _integer(number: Any, name: str, wanted: str) -> int:
    try:
        if not isinstance(number, bool):
            return operator.index(number)
    except TypeError:
        pass
    raise StructureError(_ASKED, f"{name}={number!r}", f"pass {wanted}")


def _real_space(like: Any) -> Space:
    space = space_of(like, _ASKED)
    if not space.dim:
        what = f"a {type(like).__name__} without parameters that require grad" if isinstance(like, nn.Module) else repr(like)
        raise StructureError(_ASKED, f"no numbers in {what}", "pass an operator, a space, a model, or a tree of tensors")
    for name, dtype in zip(space.names, space.dtypes, strict=True):
        if dtype.is_complex:
            raise UnsupportedError(_ASKED, f"{dtype} at '{name}'", "project real and imaginary parts as separate leaves")
        if not dtype.is_floating_point:
            raise LeafError(_ASKED, f"{dtype} at '{name}'", "leave it out")
    return space


@storable.register(GaussianProjection, HadamardProjection, RademacherProjection)
def _stored(A: RandomProjection) -> dict[str, Any]:
    arguments = {"in_space": A.in_space, "out_space": A.out_space, "seed": A.seed}
    return {**arguments, "nonzeros": A.nonzeros} if isinstance(A, RademacherProjection) else arguments
