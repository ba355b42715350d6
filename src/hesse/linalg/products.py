"""Blocks of products on flat tensors, whose rows are vectors, and the blocks that they are asked with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hesse.core import memory as budgets
from hesse.core import random, tree
from hesse.core.chunked import ChunkPlan, in_chunks
from hesse.core.errors import MemoryBudgetError, NonFiniteError
from hesse.core.memory import Budget, chunk_size, current_budget, given_budget, too_small
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators import Dense, Diagonal, Function, Identity, Kronecker, LinearOperator, LowRank

_FEW = 2  # vectors: a block of fewer is not taken apart
_LARGE_BYTES = 2**24  # graphs above this take vectors one by one
_COPIES = 4  # vectors in, vectors out, and as much again for what the product itself holds
_WITH_PROBES = 1.5  # times as many, where a budget was set: random signs are drawn in 64 bits, and moments taken of products
_LIGHT = (Dense, Diagonal, Function, Identity, Kronecker, LowRank)  # whose products take little but their vectors


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over vectors of this dtype are taken: 16-bit ones in float32."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real part."""
    return dtype.to_real() if dtype.is_complex else dtype


def apply(A: LinearOperator, V: Tensor) -> Tensor:
    """``[k, out]``: `A` times each row of ``[k, in]``, by one `mm`, detached, in the working dtype.

    Raises:
        NonFiniteError: a product has a NaN or an infinity.
    """
    products = A.out_space.ravel(mm_within(A, A.in_space.unravel(V)), 1).detach()
    if not all_finite(products):
        raise NonFiniteError(
            f"A product with {type(A).__name__} of shape {A.shape} is not finite.",
            "NaN or infinity in A @ v",
            "look for the operation that makes it, or scale the problem",
        )
    return products.to(work_dtype(products.dtype))


def mm_within(A: LinearOperator, V: Tree, memory: Budget | None = None, held: int | None = None) -> Tree:
    """``A.mm(V)``, in blocks of vectors whose growth of memory is measured if the user set a budget.

    Args:
        A: the operator.
        V: vectors along a leading axis.
        memory: the budget; None: that in force.
        held: bytes of the graph behind the products, which a block may hold once for each vector; by default A's `graph_bytes`.
            Operators without one take their blocks whole (those over several processes have to: all must ask the same).

    Raises:
        MemoryBudgetError: one product does not fit.
    """
    device, count = A.in_space.device, tree.leaves(V)[0].shape[0]
    held = getattr(A, "graph_bytes", None) if held is None else held
    if held is None or count < _FEW or given_budget(memory, device) is None:
        return A.mm(V)
    into, out = (space.dim * space.dtype.itemsize for space in (A.in_space, A.out_space))
    per_vector = _COPIES * (into + out) + (2 * held if held < _LARGE_BYTES else 0)
    plan = ChunkPlan.within(memory, device, "a block of products", per_item=per_vector, kept=2 * count * out)
    parts = [
        found for _, found in in_chunks(count, lambda part: A.mm(tree.map_tree(lambda leaf: leaf[part], V)), plan)
    ]
    return parts[0] if len(parts) == 1 else tree.map_tree(lambda *leaves: torch.cat(leaves), *parts)


def all_finite(V: Tensor) -> bool:
    """Whether there is no NaN and no infinity; takes no memory of the size of V unless there may be one."""
    return bool(torch.isfinite(V.sum())) or bool(torch.isfinite(V).all())


def row_norms(V: Tensor) -> Tensor:
    """``[k]``: the 2-norm of each row, right even where squares would underflow (float32 entries below 1e-19)."""
    size, limits = torch.linalg.vector_norm(V, dim=-1), torch.finfo(V.dtype)
    if not V.numel() or bool(((size > limits.tiny**0.5 / limits.eps) & (size < torch.inf)).all()):
        return size
    largest = V.abs().amax(-1)
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest * torch.linalg.vector_norm(V / unit[:, None], dim=-1)


def rows_at_once(A: LinearOperator, total: int, what: str, *, memory: Budget | None = None, kept: int = 0) -> int:
    """How many vectors of `total` one `mm` may take under the memory budget.

    Args:
        A: the operator.
        total: vectors wanted.
        what: how the error names the work.
        memory: the budget; by default the one in force.
        kept: bytes of results that are held all the while.
    """
    device = A.in_space.device
    per_vector = _COPIES * (A.in_space.dim * A.in_space.dtype.itemsize + A.out_space.dim * A.out_space.dtype.itemsize)
    given = given_budget(memory, device)
    if given is None:
        return chunk_size(total, per_vector, kept, current_budget(memory, device), what)
    per_vector, share = math.ceil(_WITH_PROBES * per_vector), share_of_vectors(A)
    if total and kept + per_vector / share > given:
        raise too_small(given, kept + math.ceil(per_vector / share), what)
    return min(max(int(share * (given - kept) / max(per_vector, 1)), 1), max(total, 1))


def share_of_vectors(A: LinearOperator) -> float:
    """The part of a memory budget that vectors may take; what is left is for the products."""
    return 0.9 if isinstance(A, _LIGHT) else 0.5


@contextmanager
def beside(
    A: LinearOperator, taken: int, memory: Budget | None = None, *, kept: int | None = None, part: float = 1.0
) -> Iterator[None]:
    """Within this context products keep to what is left of the memory budget; nothing without one.

    Args:
        A: the operator.
        taken: bytes that are taken already.
        memory: the budget; None: that in force.
        kept: bytes of them that are taken whatever the budget, where the others are as many as it allows; None: all.
        part: of the rest of the budget that these others and the products share.

    Raises:
        MemoryBudgetError: a product does not fit beside the vectors; `least` is for both.
    """
    given = given_budget(memory, A.in_space.device)
    if given is None:
        yield
        return
    try:
        with budgets.memory(max(given - taken, 1)):
            yield
    except MemoryBudgetError as error:
        least = error.least + taken
        if kept is not None:
            least = max(least, kept + math.ceil(error.least / (1 - share_of_vectors(A)) / part))
        raise too_small(given, least, f"a product with {type(A).__name__} of shape {A.shape}") from error


def block_bytes(A: LinearOperator, count: int) -> int:
    """Bytes of a block of so many vectors, its products and what is made of them."""
    into, out = (space.dim * space.dtype.itemsize for space in (A.in_space, A.out_space))
    return math.ceil(_WITH_PROBES * _COPIES * (into + out)) * count


def unit_vectors(space: Space, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the identity, real even for complex spaces (so that mixed leaves can take
    them)."""
    rows = torch.zeros(stop - start, space.dim, dtype=real_dtype(space.dtype), device=space.device)
    rows.diagonal(offset=start).fill_(1)
    return rows


def sign_vectors(space: Space, count: int, generator: torch.Generator) -> Tensor:
    """``[count, dim]``: probes with ``E[v conj(v)^T] = 1`` and entries of modulus one.

    Random signs for real leaves (Hutchinson 1989); the four corners ``(+-1 +- i) / sqrt(2)`` for complex
    ones, whose variance does not depend on the phases of the operator's entries.
    """
    first = space.rademacher(count, generator=generator)
    if space.dtype.is_complex:
        second = space.rademacher(count, generator=generator)
        first = tree.map_tree(lambda a, b: (a + 1j * b) / 2**0.5 if a.is_complex() else a, first, second)
    return space.ravel(first, 1)


def normal_vectors(space: Space, count: int, generator: torch.Generator) -> Tensor:
    """``[count, dim]``: independent standard normal rows in the working dtype."""
    return random.normal((count, space.dim), work_dtype(space.dtype), space.device, generator)
