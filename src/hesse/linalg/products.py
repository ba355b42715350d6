"""Blocks of products on flat tensors, whose rows are vectors, and the blocks that they are asked with."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core import random, tree
from hesse.core.chunked import ChunkPlan, in_chunks
from hesse.core.errors import NonFiniteError
from hesse.core.memory import Budget, chunk_size, current_budget, given_budget
from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators import LinearOperator

_FEW = 2  # vectors: a block of fewer is not taken apart
_LARGE_BYTES = 2**24  # graphs above this take vectors one by one
_COPIES = 4  # vectors in, vectors out, and as much again for what the product itself holds


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
    if not bool(torch.isfinite(products).all()):
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


def row_norms(V: Tensor) -> Tensor:
    """``[k]``: the 2-norm of each row, right even where squares would underflow (float32 entries below 1e-19)."""
    if not V.shape[-1]:
        return torch.linalg.vector_norm(V, dim=-1)
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
    return chunk_size(total, per_vector, kept, current_budget(memory, device), what)


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
