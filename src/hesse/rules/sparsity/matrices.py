"""Linear algebra: each matrix of a batch by itself, inside of which everything depends on everything."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, everything, sparsity_rules, whole

_OF_MATRICES = (
    "cholesky", "cholesky_inverse", "linalg_cholesky_ex", "linalg_inv_ex", "linalg_inv", "linalg_matrix_exp", "linalg_qr",
    "geqrf", "linalg_eig", "linalg_eigvals", "_linalg_eigvals", "_linalg_eigh", "_linalg_svd", "_linalg_det", "_linalg_slogdet",
    "linalg_lu", "linalg_lu_factor_ex", "linalg_ldl_factor_ex", "linalg_householder_product",
)  # fmt: skip
_SOLVES = {  # the matrix, and the right side
    "_linalg_solve_ex": ("A", "B"), "linalg_solve_triangular": ("self", "B"), "cholesky_solve": ("input2", "self"),
    "triangular_solve": ("A", "self"), "linalg_lu_solve": ("LU", "B"), "linalg_ldl_solve": ("LD", "B"),
}  # fmt: skip


@sparsity_rules.register(*_OF_MATRICES)
def of_matrices(call: Call) -> list[Link]:
    """Every result on the matrix with the same leading places."""
    x = call.operands[0]
    batch = x.shape[:-2]
    if any(y.shape[: len(batch)] != batch for y in call.outputs) or any(t.shape[: len(batch)] != batch for t in call.operands):
        return everything(call)
    return [(index, t, Grouped(_matrix(t, len(batch)), _matrix(y, len(batch))))
            for index, y in enumerate(call.outputs) for t in call.operands]  # fmt: skip


@sparsity_rules.register("linalg_pinv", "pinverse")
def pseudo_inverse(call: Call) -> list[Link]:
    """Each matrix by itself; tolerances have no derivative."""
    x, y = call["self"], call.outputs[0]
    return [(0, x, Grouped(_matrix(x, x.ndim - 2), _matrix(y, x.ndim - 2)))]


@sparsity_rules.register(*_SOLVES)
def solves(call: Call) -> list[Link]:
    """A column of the solution on that column of the right side and on all of its matrix; a row where the matrix stands on the
    right. Leading axes are broadcast."""
    matrix, right = (call[name] for name in _SOLVES[call.func.overloadpacket.__name__])
    y, column = call.outputs[0], right
    if right.ndim == matrix.ndim - 1 and right.shape == matrix.shape[:-1]:  # vectors
        y, column = y.unsqueeze(-1), right.unsqueeze(-1)
    links: list[Link] = [(0, matrix, _broadcast(matrix, y, matrix.ndim - 2))]
    if column.ndim != y.ndim or column.ndim < 2:
        links.append((0, right, whole(right, y)))
    else:
        axis = -1 if call.given.get("left", True) else -2
        links.append((0, right, Grouped(*_lines(column, y, axis))))
    for index, z in enumerate(call.outputs[1:], 1):  # factors of the matrix
        links.append((index, matrix, _broadcast(matrix, z, matrix.ndim - 2)))
    return links


def _broadcast(matrix: Tensor, y: Tensor, batch: int) -> Grouped:
    """Results on the matrix in their place, which may stand for several."""
    own, count = _matrix(matrix, batch), y.ndim - 2
    if count < batch or any(n not in (1, m) for n, m in zip(matrix.shape[:batch], y.shape[count - batch : count], strict=True)):
        return whole(matrix, y)
    first = own[..., :1, :1]
    return Grouped(own, first.expand(*y.shape[:-2], 1, 1).expand(y.shape))


def _lines(right: Tensor, y: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Numbers of columns, or of rows, of each matrix; the axes in front are broadcast."""
    sizes = [*right.shape[:-2], *((1, right.shape[-1]) if axis == -1 else (right.shape[-2], 1))]
    number = torch.arange(torch.Size(sizes).numel()).view(sizes)
    return number.expand(right.shape), number.expand(*y.shape[:-2], *sizes[-2:]).expand(y.shape)


@sparsity_rules.register("linalg_lstsq", "ormqr")
def together(call: Call) -> list[Link]:
    """Results on the matrices with the same leading places, where operands have them all and none is broadcast."""
    moved = [t for t in call.operands if t.is_floating_point() or t.is_complex()]
    batch = moved[0].shape[:-2]
    if any(t.shape[: len(batch)] != batch for t in (*moved, *call.outputs)):
        return everything(call, moved)
    return [(index, t, Grouped(_matrix(t, len(batch)), _matrix(y, len(batch))))
            for index, y in enumerate(call.outputs) for t in moved]  # fmt: skip


def _matrix(t: Tensor, batch: int) -> Tensor:
    count = t.shape[:batch].numel()
    return torch.arange(count).view([*t.shape[:batch], *[1] * (t.ndim - batch)]).expand(t.shape)
