"""Laws of the ways to apply an operator: vectors, blocks, batch axes, flat tensors, other strides, SciPy, the matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hesse.check.layouts import layouts, slices
from hesse.check.operators.evidence import Evidence, Fact, Sides, wide
from hesse.check.operators.probe import BLOCK, Probe, columns, copied, modes_kept
from hesse.core import tree
from hesse.core.errors import LeafError, StructureError
from hesse.core.tree import Tree
from hesse.linalg import dense
from hesse.linalg.dense import dense_rule
from hesse.operators import LinearOperator

_MM = "mend mm(): the leading axis of every leaf counts the vectors"
_LAYOUT = "make mv and mm independent of strides: reshape instead of view, no arithmetic on storage"
_OF_BLOCKS = ("vectors along the last axis", "expanded")  # strides of blocks that are always tried
_MATRIX = 1 << 20  # elements of a matrix that a registered rule may be asked for


def spaces(probe: Probe) -> Iterator[Evidence]:
    """``A.T`` swaps the spaces; results have the paths, shapes, dtypes and devices of their out space."""
    A, T = probe.A, probe.T
    if T is not None:
        swapped = T.in_space == A.out_space and T.out_space == A.in_space
        breach = "" if swapped else f"A.T from {T.in_space} to {T.out_space}"
        yield Fact("A.T maps from the out space to the in space", breach, "mend transpose()")
        if breach:
            return
    for name, B in probe.sides:
        v, V = probe.vector(B.in_space), probe.vector(B.in_space, BLOCK)
        for product, result, lead in ((f"{name} mv", probe.mv(B, v), 0), (f"{name} mm", probe.mm(B, V), 1)):
            statement = f"{product} gives the paths, shapes, dtypes and devices of the out space"
            yield Fact(statement, _misfit(B, result, product, lead), "return a tree of out_space (mm: one axis more in front)")


def _misfit(B: LinearOperator, result: Tree, product: str, lead: int) -> str:
    try:
        B.out_space.check(result, product, lead)
    except (StructureError, LeafError) as error:
        return error.found
    wanted = zip(B.out_space.dtypes, B.out_space.devices, strict=True)
    for (path, leaf), (dtype, device) in zip(tree.named_leaves(result), wanted, strict=True):
        if not isinstance(leaf, Tensor):
            return f"{type(leaf).__name__} at '{path}', where a tensor belongs"
        if (leaf.dtype, leaf.device) != (dtype, device):
            return f"{leaf.dtype}, {leaf.device} at '{path}', where {dtype}, {device} belongs"
    return ""


def finite(probe: Probe) -> Iterator[Evidence]:
    """Products with standard normal vectors are finite numbers."""
    for name, B in probe.sides:
        v, V = probe.vector(B.in_space), probe.vector(B.in_space, BLOCK)
        for what, result in ((f"{name} v", probe.flat(B, v)), (f"{name}.mm(V)", wide(B.out_space, probe.mm(B, V), 1))):
            wrong = int((~result.isfinite()).sum())
            breach = f"{wrong} of {result.numel()} numbers are NaN or infinite" if wrong else ""
            yield Fact(f"{what} is finite for standard normal vectors", breach, "look for the operation that makes them")


def blocks(probe: Probe) -> Iterator[Evidence]:
    """``A.mm(V)`` is the stack of ``A.mv(v)`` over the leading axis of V: one vector, a few, many, and none."""
    for name, B in probe.sides:
        for count in (BLOCK, 1, 17, 33) if probe.thorough else (BLOCK, 1):
            V = probe.vector(B.in_space, count)
            found, expected = wide(B.out_space, probe.mm(B, V), 1), probe.stacked(B, V)
            yield Sides(f"{name}.mm(V) = stack of {name}.mv(v), {count} vectors", found, expected, _MM, B.out_space)
        if probe.thorough and B.in_space.shapes:
            yield Fact(f"{name}.mm of no vectors gives none", _misfit(B, probe.mm(B, B.in_space.zeros(0)), "mm", 1), _MM)


def batch_axes(probe: Probe) -> Iterator[Evidence]:
    """``A @ V`` with two batch axes in front of every leaf holds the products with the single vectors."""
    for name, B in probe.chosen:
        V = probe.vector(B.in_space, 2, BLOCK)
        with modes_kept():
            found = wide(B.out_space, B @ V, 2)
        expected = torch.stack([probe.stacked(B, row) for row in columns(V)])
        yield Sides(f"({name} @ V)[i, j] = {name} @ V[i, j]", found, expected, _MM, B.out_space)


def flat(probe: Probe) -> Iterator[Evidence]:
    """``A.flat`` on ``[dim]`` and on ``[dim, k]`` agrees with ``A @`` on trees, in the order of leaves."""
    for name, B in probe.chosen:
        V = probe.vector(B.in_space, BLOCK)
        expected = probe.stacked(B, V)
        rows = torch.stack([B.in_space.ravel(v) for v in columns(V)])
        with modes_kept():
            single, block = B.flat @ rows[0], B.flat @ rows.mT
        for statement, left, right in (
            (f"{name}.flat @ [dim] = {name} @ tree", single, expected[0]),
            (f"{name}.flat @ [dim, k] = {name} @ trees", block.mT, expected),
        ):
            yield Sides(statement, left.detach().cpu().to(right.dtype), right, _MM, B.out_space)


def scipy(probe: Probe) -> Iterator[Evidence]:
    """``A.to_scipy()`` agrees with ``A`` and ``A.H`` on vectors and on matrices, where NumPy has the dtype."""
    A = probe.A
    if torch.bfloat16 in (A.in_space.dtype, A.out_space.dtype):
        return
    S = A.to_scipy()
    sides = [("A", A, S.matvec, S.matmat)] + ([("A.H", A.H, S.rmatvec, S.rmatmat)] if probe.T is not None else [])
    for name, B, vector_map, matrix_map in sides:
        V = probe.vector(B.in_space, BLOCK)
        expected = probe.stacked(B, V)
        arrays = B.in_space.ravel(V, 1).mT.contiguous().cpu().numpy()
        with modes_kept():
            single, block = torch.from_numpy(vector_map(arrays[:, 0])), torch.from_numpy(matrix_map(arrays))
        for what, left, right in (("vector", single, expected[0]), ("matrix", block.mT, expected)):
            yield Sides(f"to_scipy() times a {what} = {name} times it", left.to(right.dtype), right, _MM, B.out_space)


def strided(probe: Probe) -> Iterator[Evidence]:
    """Vectors and blocks of other strides, expanded ones too, give the products of their contiguous copies."""
    for name, B in probe.sides:
        for what, product, lead, V in (
            (f"{name}.mv", B.mv, 0, probe.vector(B.in_space)), (f"{name}.mm", B.mm, 1, probe.vector(B.in_space, 2)),
        ):  # fmt: skip
            own = _product(product, V)
            for kind, other in _other_layouts(V, lead):
                if lead and not probe.thorough and kind not in _OF_BLOCKS:
                    continue
                expected = own if kind != "expanded" else _product(product, tree.map_tree(Tensor.contiguous, other))
                found = _product(product, other)
                probe.products += 1 + lead
                left, right = wide(B.out_space, found, lead), wide(B.out_space, expected, lead)
                shares = wide(B.in_space, other, lead).norm() / wide(B.in_space, V, lead).norm()
                size = torch.maximum(right.norm(), shares * wide(B.out_space, own, lead).norm())  # it may lie in the null space
                yield Sides(f"{what}(v) = {what}(v.contiguous()), {kind}", left, right, _LAYOUT, B.out_space, size)


def _product(product: Callable[[Tree], Tree], v: Tree) -> Tree:
    with modes_kept():
        return copied(product(v))


def _other_layouts(vector: Tree, lead: int) -> Iterator[tuple[str, Tree]]:
    """The same vector with every leaf in other strides, for each kind of strides that one of the leaves can have."""
    own, structure = tree.flatten(vector)
    kinds = [dict([*layouts(leaf), *slices(leaf)]) for leaf in own]
    for name in dict.fromkeys(name for found in kinds for name in found):
        yield name, structure.unflatten([kind.get(name, leaf) for kind, leaf in zip(kinds, own, strict=True)])
    if lead:
        yield _OF_BLOCKS[0], tree.map_tree(lambda leaf: leaf.movedim(0, -1).contiguous().movedim(-1, 0), vector)
    if any(leaf.numel() > 1 for leaf in own):
        yield "expanded", structure.unflatten([leaf.reshape(-1)[:1].view((1,) * leaf.dim()).expand(leaf.shape) for leaf in own])


def matrix(probe: Probe) -> Iterator[Evidence]:
    """``hesse.dense(A)`` is the matrix of the products: column by column where it is small, else along a random vector."""
    A = probe.A
    rule = "mend the rule registered with dense_rule, or the order in which mm returns its vectors"
    if max(A.shape) <= probe.most and len({dtype.is_complex for dtype in A.in_space.dtypes + A.out_space.dtypes}) == 1:
        yield Sides("hesse.dense(A)[:, j] = A e_j", _wide_matrix(dense(A)), probe.matrix(A), rule)
    elif dense_rule.dispatch(type(A)) is not dense_rule.dispatch(object) and A.shape[0] * A.shape[1] <= _MATRIX:
        v = probe.vector(A.in_space)
        found = _wide_matrix(dense(A)) @ wide(A.in_space, v).to(_wide_matrix(dense(A)).dtype)
        yield Sides("hesse.dense(A) @ v = A v", found, probe.flat(A, v), rule, A.out_space)


def _wide_matrix(M: Tensor) -> Tensor:
    return M.detach().cpu().to(torch.complex128 if M.is_complex() else torch.float64)
