"""``c I + J^H H J`` with few rows J: a system of the size of the rows (Woodbury 1950)."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

import torch
from torch import Tensor

from hesse.core.batching import slices
from hesse.core.memory import given_budget, too_small
from hesse.linalg.answer import Answer, solve_matrix
from hesse.linalg.dense import dense
from hesse.linalg.groups import CHECK, in_groups, least_bytes
from hesse.linalg.products import apply, rows_at_once, unit_vectors, work_dtype
from hesse.linalg.sum_rules import flatten_sum
from hesse.operators import Congruence, Conjugate, Dense, Identity, Kronecker, LinearOperator, Scaled, Sum

_MOST_ROWS = 2048
_MOST_PRODUCTS = 128
_COPIES = 8  # of the Gram matrix: itself, with the curvature, the system, its factors and its inverse


@singledispatch
def gram_rule(J: LinearOperator) -> Tensor | None:
    """``J J^H`` ``[out, out]``, where the operator can form it for less than `out` products with it; else None.

    Open: ``@gram_rule.register(MyOperator)``. A Jacobian of samples by parameters registers its Gram matrix here, and
    damped curvature made from it is then solved through as many rows as there are samples.

    Args:
        J: the operator.
    """
    return None


@gram_rule.register(Dense)
def _dense(J: Dense) -> Tensor | None:
    return J.matrix @ J.matrix.mH


@gram_rule.register(Identity)
def _identity(J: Identity) -> Tensor | None:
    return torch.eye(J.shape[0], dtype=J.in_space.dtype, device=J.in_space.device)


@gram_rule.register(Kronecker)
def _kronecker(J: Kronecker) -> Tensor | None:
    return torch.kron(J.left @ J.left.mH, J.right @ J.right.mH)


@gram_rule.register(Scaled)
def _scaled(J: Scaled) -> Tensor | None:
    found = gram_rule(J.operator)
    return None if found is None else abs(complex(J.factor)) ** 2 * found


@gram_rule.register(Conjugate)
def _conjugate(J: Conjugate) -> Tensor | None:
    found = gram_rule(J.operator)
    return None if found is None else found.conj().resolve_conj()


@singledispatch
def congruence_rule(A: LinearOperator) -> Congruence | None:
    """The operator as ``J^H H J``, if it is one; else None.

    Open: wrappers register ``congruence_rule(A.operator)``.

    Args:
        A: the operator.
    """
    return None


@congruence_rule.register(Congruence)
def _congruence(A: Congruence) -> Congruence | None:
    return A


def woodbury(A: LinearOperator, B: Tensor | None = None, *, always: bool = False) -> Callable[[Tensor], Answer] | None:
    """A direct method for ``A = c I + f J^H H J`` (c, f numbers), or None if A is not of that form.

    ``A^-1 = (I - J^H (I + f H K / c)^-1 f H J / c) / c`` with the Gram matrix ``K = J J^H``, which needs no inverse of H.

    Args:
        A: the operator; numbers and sums may be nested, the terms stand behind `congruence_rule`.
        B: right-hand sides ``[k, dim]``, for which there must be room beside the system of the rows.
        always: also where it may not pay: where J has more than 2048 rows, or a quarter as many as columns; or more than 128
            while its Gram matrix has to be formed by products.

    Returns:
        rows b ``[k, dim]`` -> rows x.

    Cost: the Gram matrix by its rule, or by as many products with J and its adjoint as J has rows, in blocks; the matrix of H;
    then one product with J and one with its adjoint for all right-hand sides.
    """
    if not isinstance(A, Sum):
        return None
    shift, factor, found = 0j, 0j, None
    for scale, term in flatten_sum(A):
        congruence = congruence_rule(term)
        if isinstance(term, Identity):
            shift += scale
        elif congruence is not None and found is None:
            factor, found = scale, congruence
        else:
            return None
    if found is None or not shift or found.outer.in_space.dtype.is_complex != found.outer.out_space.dtype.is_complex:
        return None
    rows, dim = found.outer.shape
    if not always and (rows > _MOST_ROWS or 4 * rows >= dim):
        return None
    needed = _COPIES * rows**2 * work_dtype(found.outer.out_space.dtype).itemsize
    given = given_budget(None, A.in_space.device)
    least = needed if B is None else least_bytes(A, B, CHECK, kept=needed)
    if given is not None and least > given:
        if always:
            raise too_small(given, least, f"a system of the size of {rows} rows")
        return None
    gram = gram_rule(found.outer)
    if gram is None:
        if not always and rows > _MOST_PRODUCTS:
            return None
        gram = _gram_by_products(found.outer)
    through_rows = _through_rows(found, gram.detach(), factor, shift)
    return lambda B: in_groups(A, B, through_rows, CHECK, kept=needed)


def _through_rows(A: Congruence, gram: Tensor, factor: complex, shift: complex) -> Callable[[Tensor], Answer]:
    dtype = torch.promote_types(work_dtype(gram.dtype), work_dtype(A.in_space.dtype))
    gram, ratio = gram.to(dtype), factor / shift
    middle = None if A.middle is None else dense(A.middle).detach().to(dtype)
    curved = gram if middle is None else middle @ gram
    small = torch.eye(len(gram), dtype=dtype, device=gram.device) + _number(ratio, dtype) * curved
    J, JH = A.outer, A.outer.H

    def solution(B: Tensor) -> Answer:
        seen = apply(J, B).to(dtype)
        seen = seen if middle is None else seen @ middle.mT
        inside = solve_matrix(small, _number(ratio, dtype) * seen)
        value = (B - apply(JH, inside.value)) / _number(shift, B.dtype)
        return Answer(value, None, 0, inside.trouble)

    return solution


def _gram_by_products(J: LinearOperator) -> Tensor:
    rows, JH = J.shape[0], J.H
    dtype = work_dtype(J.out_space.dtype)
    gram = torch.empty(rows, rows, dtype=dtype, device=J.out_space.device)
    count = rows_at_once(J, rows, f"the Gram matrix of {rows} rows", kept=gram.nbytes)
    for part in slices(rows, count, "Gram matrix"):
        gram[part] = apply(J, apply(JH, unit_vectors(J.out_space, part.start, part.stop)))
    return (gram.mT + gram.conj()) / 2


def _number(value: complex, dtype: torch.dtype) -> complex | float:
    return value if dtype.is_complex else value.real
