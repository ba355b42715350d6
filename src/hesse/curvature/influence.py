"""Whether matrices of slices of a batch add up to that of the batch: compared on a few of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.model import sample_count, split_batch
from hesse.core import random, tree
from hesse.core.errors import MixedSamplesError
from hesse.core.fingerprint import sample_hashes
from hesse.core.tree import Tree
from hesse.curvature.slicing import rows_of
from hesse.linalg.products import work_dtype
from hesse.operators.base import LinearOperator

Make = Callable[[Any], LinearOperator]
TRIED = 2  # samples in each of the two slices that have to add up
_PART = 4  # and where those of all tries tell nothing, one in so many of a slice


def slices_add_up(make: Make, batch: Any, at_once: int, asked: str) -> bool:
    """Compare a random product with the matrix of a few samples with that of their halves.

    Samples tell something if the inputs of the two halves differ and a product is not zero. Four are tried that are spread over
    the batch, then four others, the first five, and all in turn, until some tell.

    Args:
        make: turns a batch into its matrix.
        batch: what is to be sliced.
        at_once: samples that fit into the memory.
        asked: what for, in error messages.

    Returns:
        Whether all that were tried add up, and some told; or nothing tells since every sample has the same inputs, or since all
        products are zero.

    Cost: a product on eight samples; on twice the batch, where no four tell.
    """
    count = sample_count(batch, None, asked)
    inputs_seen, is_zero, has_differed = set[int](), True, False
    for piece in _pieces(batch, count, at_once):
        size = sample_count(piece, None, asked)
        try:
            found = _compared(make, piece, size)
        except MixedSamplesError:  # a loss that is neither the sum nor the mean of its samples
            return False
        if found is None:
            return False
        hashes = sample_hashes(split_batch(piece, asked)[0])
        if hashes.numel() != size:
            hashes = sample_hashes(piece)
        differs = _differ(hashes[: size // 2].tolist(), hashes[size // 2 :].tolist())
        if differs and found:
            return True
        inputs_seen |= set(hashes.tolist())
        is_zero, has_differed = is_zero and not found, has_differed or differs
    return len(inputs_seen) == 1 or (is_zero and has_differed)


def random_vector(operator: LinearOperator) -> Tree:
    """A vector that is the same for all operators on the same space."""
    return operator.in_space.normal(generator=random.make_generator(0, operator.in_space.device))


def _pieces(batch: Any, count: int, at_once: int) -> Iterator[Any]:
    """Samples to compare, spread over the batch; all of them in the end."""
    few = 2 * TRIED
    if count <= few:
        yield batch
        return
    step = count // few
    for start in sorted({0, step // 2}):
        yield rows_of(_every(batch, start, step), 0, few)
    yield rows_of(batch, 0, few + 1)  # of data that repeat themselves, the others may be all the same
    number = -(-count // max(few, at_once // _PART))
    for start in range(number):
        yield _every(batch, start, number)


def _every(batch: Any, start: int, step: int) -> Any:
    """Samples at equal distances, as views."""
    return tree.map_tree(lambda leaf: leaf[start::step] if isinstance(leaf, Tensor) else leaf, batch)


def _differ(first: list[int], second: list[int]) -> bool:
    return len({*first, *second}) > 1 and sorted(first) != sorted(second)


def _compared(make: Make, piece: Any, count: int) -> bool | None:
    """Whether a product is not zero; None where the halves do not add up to the whole."""
    whole = make(piece)
    v, additive = random_vector(whole), bool(getattr(whole, "additive", False))
    eps = max(torch.finfo(dtype).eps for dtype in whole.in_space.dtypes)
    total = _flat(whole, v, additive)
    del whole  # so that the halves are not made beside it
    bounds = ((0, count // 2), (count // 2, count))
    parts = [_flat(make(rows_of(piece, *bound)), v, additive) for bound in bounds if bound[0] < bound[1]]
    found = [part for part in parts if part is not None]
    size = sum((float(torch.linalg.vector_norm(part)) for part in found), 0.0)
    if total is None:
        return None if found else False
    difference = torch.linalg.vector_norm(sum(found, -total))
    if not bool(difference <= eps**0.5 * size):
        return None
    return size > 0


def _flat(operator: LinearOperator, v: Tree, additive: bool) -> Tensor | None:
    """The product times the mass; None where nothing counts."""
    mass = 1.0 if additive else operator.mass
    if not mass:
        return None
    product = operator.out_space.ravel(operator.mv(v)).detach()
    return product.to(work_dtype(product.dtype)) * mass
