"""An operator of two methods and a count of its products, and matrices with a chosen spectrum."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from hesse.core.space import Space
from hesse.core.tree import Tree
from hesse.operators import LinearOperator, Tag

HERMITIAN = frozenset({Tag.HERMITIAN})
SYMMETRIC = frozenset({Tag.SYMMETRIC})
PSD = frozenset({Tag.HERMITIAN, Tag.PSD})


class Counted(LinearOperator):
    """A matrix that no structured rule knows; counts calls of `mv` and the sizes of the blocks of `mm`."""

    def __init__(
        self,
        matrix: Tensor,
        in_space: Space | None = None,
        out_space: Space | None = None,
        tags: frozenset[Tag] = frozenset(),
    ) -> None:
        rows, columns = matrix.shape
        self.in_space = Space.of(matrix.new_zeros(columns)) if in_space is None else in_space
        self.out_space = Space.of(matrix.new_zeros(rows)) if out_space is None else out_space
        self.matrix, self.tags = matrix, tags
        self.calls: Counter[str] = Counter()
        self.blocks: list[int] = []

    def mv(self, v: Tree) -> Tree:
        self.calls["mv"] += 1
        return self.out_space.unravel(self.matrix @ self.in_space.ravel(v).to(self.matrix.dtype))

    def mm(self, V: Tree) -> Tree:
        rows = self.in_space.ravel(V, 1).to(self.matrix.dtype)
        self.calls["mm"] += 1
        self.blocks.append(len(rows))
        return self.out_space.unravel(rows @ self.matrix.mT)

    def transpose(self) -> LinearOperator:
        other = Counted(self.matrix.mT, self.out_space, self.in_space, self.tags)
        other.calls, other.blocks = self.calls, self.blocks
        return other


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_matrix(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


def with_spectrum(values: Tensor, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A Hermitian matrix with these eigenvalues and random eigenvectors."""
    double = torch.complex128 if dtype.is_complex else torch.float64
    Q = torch.linalg.qr(random_matrix(len(values), len(values), dtype=double, seed=seed)).Q
    M = (Q * values.to(double)) @ Q.mH
    return ((M + M.mH) / 2).to(dtype)


def tree_space(dim: int, dtype: torch.dtype = torch.float64) -> Space:
    """A space of three leaves, not sorted by name, one of them a scalar."""
    rest = dim - 1 - 6
    return Space.of(
        {
            "w": torch.zeros(2, 3, dtype=dtype),
            "a": [torch.zeros(rest, dtype=dtype), torch.zeros((), dtype=dtype)],
        }
    )
