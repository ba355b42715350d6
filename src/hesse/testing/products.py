"""Laws of the ways to apply an operator: `mv`, `mm`, batch axes, flat tensors and SciPy give the same."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.core.tree import Tree
from hesse.operators.base import LinearOperator, stack
from hesse.testing.comparison import broken, require_close, source_of, tolerance, wide

_BLOCK = 3
_REMEDY = "mend mm(): the leading axis of every leaf counts the vectors"


def _columns(block: Tree, count: int) -> list[Tree]:
    return [tree.map_tree(lambda leaf, k=k: leaf[k], block) for k in range(count)]


def assert_spaces(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``A.T`` swaps the spaces; results have the paths, shapes, dtypes and devices of their out space."""
    source = source_of(generator)
    if A.T.in_space != A.out_space or A.T.out_space != A.in_space:
        found = f"A.T from {A.T.in_space} to {A.T.out_space}"
        raise broken("spaces", A, "A.T maps from the out space to the in space", found, "mend transpose()")
    statement = "results have the paths, shapes, dtypes and devices of the out space"
    for name, B in (("A", A), ("A.T", A.T)):
        v, V = B.in_space.normal(generator=source), B.in_space.normal(_BLOCK, generator=source)
        for product, result, lead in ((f"{name}.mv", B.mv(v), 0), (f"{name}.mm", B.mm(V), 1)):
            try:
                B.out_space.check(result, product, lead)
            except (StructureError, LeafError) as error:
                remedy = "return a tree of out_space, with the axis of mm in front of every leaf"
                raise broken("spaces", A, statement, str(error), remedy) from error
            spaces = zip(B.out_space.dtypes, B.out_space.devices, strict=True)
            for (path, leaf), (dtype, device) in zip(tree.named_leaves(result), spaces, strict=True):
                kind = (leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else (type(leaf), "no device")
                if kind != (dtype, device):
                    found = f"{kind[0]}, {kind[1]} at '{path}' of {product}, where {dtype}, {device} belongs"
                    raise broken("spaces", A, statement, found, "cast to the dtypes of out_space")


def assert_mm(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``A.mm(V)`` is the stack of ``A.mv(v)`` over the leading axis of V, for ``A`` and for ``A.T``."""
    source, allowed = source_of(generator), tolerance(A, rtol)
    for name, B in (("A", A), ("A.T", A.T)):
        V = B.in_space.normal(_BLOCK, generator=source)
        expected = stack([B.mv(v) for v in _columns(V, _BLOCK)])
        left, right = wide(B.out_space, B.mm(V), 1), wide(B.out_space, expected, 1)
        require_close(A, "mm", f"{name}.mm(V) = stack of {name}.mv(v)", (left, right), allowed, _REMEDY)


def assert_batch_axes(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``A @ V`` with two batch axes in front of every leaf holds the products with the single vectors."""
    source, allowed = source_of(generator), tolerance(A, rtol)
    V = A.in_space.normal(2, _BLOCK, generator=source)
    left = wide(A.out_space, A @ V, 2)
    rows = [stack([A.mv(v) for v in _columns(row, _BLOCK)]) for row in _columns(V, 2)]
    right = wide(A.out_space, stack(rows), 2)
    require_close(A, "batch axes", "(A @ V)[i, j] = A @ V[i, j]", (left, right), allowed, _REMEDY)


def assert_flat(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``A.flat`` on ``[dim]`` and on ``[dim, k]`` agrees with ``A @`` on trees, in the order of leaves."""
    source, allowed = source_of(generator), tolerance(A, rtol)
    V = A.in_space.normal(_BLOCK, generator=source)
    columns = _columns(V, _BLOCK)
    trees = torch.stack([wide(A.out_space, A @ v) for v in columns], dim=1)
    block = A.flat @ torch.stack([A.in_space.ravel(v) for v in columns], dim=1)
    single = A.flat @ A.in_space.ravel(columns[0])
    for statement, left, right in (
        ("A.flat @ [dim] = A @ tree", single, trees[:, 0]),
        ("A.flat @ [dim, k] = A @ trees", block, trees),
    ):
        if left.shape != right.shape:
            raise broken("flat", A, statement, f"shape {tuple(left.shape)} for {tuple(right.shape)}", _REMEDY)
        left = left.detach().cpu().to(right.dtype)
        require_close(A, "flat", statement, (left, right), allowed, _REMEDY)


def assert_scipy(
    A: LinearOperator, *, generator: torch.Generator | None = None, rtol: float | None = None
) -> None:
    """``A.to_scipy()`` agrees with ``A`` and ``A.H`` on vectors and on matrices.

    Does nothing where NumPy lacks the dtype (bfloat16).
    """
    if torch.bfloat16 in (A.in_space.dtype, A.out_space.dtype):
        return
    source, allowed = source_of(generator), tolerance(A, rtol)
    S = A.to_scipy()
    for name, B, vector_map, matrix_map in (("A", A, S.matvec, S.matmat), ("A.H", A.H, S.rmatvec, S.rmatmat)):
        V = B.in_space.normal(_BLOCK, generator=source)
        right = torch.stack([wide(B.out_space, B.mv(v)) for v in _columns(V, _BLOCK)], dim=1)
        arrays = B.in_space.ravel(V, 1).mT.contiguous().cpu().numpy()
        for what, left, expected in (
            ("vector", vector_map(arrays[:, 0]), right[:, 0]),
            ("matrix", matrix_map(arrays), right),
        ):
            sides = torch.from_numpy(left).to(right.dtype), expected
            require_close(A, "scipy", f"to_scipy() times a {what} = {name} times it", sides, allowed, _REMEDY)
